//! What a keeper needs to know, and the id of a data directory.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utsuwa_model::host_dir::HostDir;

use super::capture::LogLimits;
use crate::image::unpack::Limits;
use crate::network::NetConfig;

/// Build of this executable, shown when keeper and server differ.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// All a keeper needs to know. Written to the runtime directory, where its successors find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperConfig {
    /// Holds `images/`, `logs/`, `state/`.
    pub data_dir: PathBuf,
    /// [`data_id`] of `data_dir`: part of the name of every kernel object.
    pub id: String,
    /// The server's user: the only one (besides root) that may connect.
    pub server_uid: u32,
    pub server_gid: u32,
    /// `None`: sandboxes with loopback only.
    pub net: Option<NetConfig>,
    /// What to run as keeper (`BINARY internal keeper …`).
    pub binary: PathBuf,
    /// For the keeper's and the spawners' own messages.
    pub log_file: PathBuf,
    /// Ports below 1024 that the keeper may bind at the server's request.
    pub privileged_ports: Vec<u16>,
    /// Sandboxes kept ready, at least and at most.
    pub pool: PoolLimits,
    pub logs: LogLimits,
    /// Copy layers for each service also where they could be idmapped: for tests of that way.
    #[serde(default)]
    pub copy_layers: bool,
    /// Directories of the host that instances may have. Who asks for one names its rule; no path of a server's is opened.
    #[serde(default)]
    pub host_dirs: Vec<HostDir>,
    /// Free bytes that unpacking a layer leaves on the disk.
    #[serde(default = "default_disk_reserve")]
    pub disk_reserve: u64,
    /// Tells two builds apart: another one here than the running keeper's makes [`super::ensure_keeper`] replace it in place.
    pub build: String,
}

/// How many sandboxes are kept ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLimits {
    pub min: usize,
    pub max: usize,
    /// What it grows to, one by one, while nothing starts.
    #[serde(default)]
    pub calm: usize,
    /// The same after a burst that took as many.
    #[serde(default)]
    pub after_burst: usize,
}

/// The pool grows to one sandbox for so much of the machine's memory: each takes up to 1 MiB, in the kernel for the most part.
const MEMORY_PER_POOLED: u64 = 256 << 20;
/// But to no more: each is 0.3 MiB of the 60 that the system at rest may have. Beyond it demand decides.
const CALM_AT_MOST: usize = 48;
/// More at once nobody needs who has 2 processors, and 64 take 64 MiB.
const AT_MOST: usize = 64;

impl Default for PoolLimits {
    fn default() -> Self {
        let system = rustix::system::sysinfo();
        let memory = system.totalram.saturating_mul(u64::from(system.mem_unit));
        let fitting = usize::try_from(memory / MEMORY_PER_POOLED).unwrap_or(0);
        Self {
            min: 6,
            max: AT_MOST,
            calm: fitting.min(CALM_AT_MOST),
            after_burst: fitting.min(AT_MOST),
        }
    }
}

impl KeeperConfig {
    /// With defaults for everything that has one; the binary is this process's own.
    ///
    /// # Errors
    /// The id of the data directory can't be read or made.
    pub fn new(
        data_dir: &Path,
        server_uid: u32,
        server_gid: u32,
        net: Option<NetConfig>,
    ) -> io::Result<Self> {
        Ok(Self {
            data_dir: data_dir.to_owned(),
            id: data_id(data_dir)?,
            server_uid,
            server_gid,
            net,
            binary: executable()?,
            log_file: data_dir.join("keeper.log"),
            privileged_ports: Vec::new(),
            pool: PoolLimits::default(),
            logs: LogLimits::default(),
            copy_layers: false,
            host_dirs: Vec::new(),
            disk_reserve: default_disk_reserve(),
            build: build_of(Path::new("/proc/self/exe")),
        })
    }

    /// `/run/utsuwa/ID`, or the user's own.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        runtime_dir(&self.id)
    }

    /// Where the keeper listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket_path(&self.id)
    }

    /// Where instance logs lie.
    #[must_use]
    pub fn logs_dir(&self) -> PathBuf {
        self.data_dir.join("logs")
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.runtime_dir().join("keeper.json")
    }

    pub(crate) fn write(&self) -> io::Result<()> {
        let temporary = self.runtime_dir().join("keeper.json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs::rename(temporary, self.file())
    }
}

/// What a keeper leaves whose configuration was written before it could say.
fn default_disk_reserve() -> u64 {
    Limits::default().reserve_bytes
}

/// Where servers have what dies with a boot: `/run/utsuwa`, or a directory of the user whose server it is.
pub(crate) fn runtime_base() -> PathBuf {
    match crate::rootless::user_outside() {
        Some(uid) => crate::rootless::runtime_base(uid),
        None => PathBuf::from("/run/utsuwa"),
    }
}

/// Where everything of one server lies that dies with a boot.
#[must_use]
pub fn runtime_dir(id: &str) -> PathBuf {
    match crate::rootless::user_outside() {
        Some(uid) => crate::rootless::runtime_dir(uid, id),
        None => runtime_base().join(id),
    }
}

/// Where the keeper of the server with this id listens.
#[must_use]
pub fn socket_path(id: &str) -> PathBuf {
    runtime_dir(id).join("keeper.sock")
}

/// What to run as keeper. A user's server may not see the folder in which its own program lies.
fn executable() -> io::Result<PathBuf> {
    if crate::rootless::is_rootless() {
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    fs::read_link("/proc/self/exe")
}

/// Version, and size and time of the file: a rebuilt executable counts as another build.
fn build_of(executable: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(executable) {
        Ok(file) => format!("{BUILD}+{:x}.{:x}", file.size(), file.mtime()),
        Err(_) => BUILD.to_owned(),
    }
}

/// The id of a data directory: 8 hexadecimal digits from its path and a random part kept in it, so that a copy of the
/// directory elsewhere is another server. Makes the random part at the first call.
///
/// # Errors
/// The directory can't be read or written.
pub fn data_id(data_dir: &Path) -> io::Result<String> {
    let path = fs::canonicalize(data_dir)?;
    let file = path.join("id");
    let random = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_random(&file)?,
        Err(error) => return Err(error),
    };
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    hash.update([0]);
    hash.update(random.trim());
    let digest = hash.finalize();
    Ok(digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn make_random(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    match fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(file)
    {
        Ok(mut new) => {
            new.write_all(text.as_bytes())?;
            new.sync_all()?;
            Ok(text)
        }
        // Somebody was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::read_to_string(file),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use super::*;

    #[test]
    fn an_id_stays_and_differs_between_directories() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = data_id(a.path()).unwrap();
        assert_eq!(id.len(), 8);
        assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(data_id(a.path()).unwrap(), id);
        assert_ne!(data_id(b.path()).unwrap(), id);
        fs::copy(a.path().join("id"), b.path().join("id")).unwrap();
        assert_ne!(
            data_id(b.path()).unwrap(),
            id,
            "a copy elsewhere is another server"
        );
    }
}
