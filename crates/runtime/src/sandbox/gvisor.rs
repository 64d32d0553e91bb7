//! gVisor (`runsc`) in the place of the program: a kernel of the instance's own between its programs and the host's.
//!
//! Owns: where `runsc` is, with which arguments it is run, what it costs beyond the app, and the description of a container
//! that it reads (an OCI bundle's `config.json`), made of typed values only. Doesn't: make the sandbox it runs in (the same as
//! for every instance: `inside::gvisor`), or install it.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use utsuwa_model::instance::Limits;
use utsuwa_model::quantity::MemoryBytes;

use super::inside::{KEPT, OPEN_FILES};
use super::user::Identity;
use crate::spawner::SpawnError;

/// How to get it, for messages.
pub const INSTALL: &str = "as root on Debian or Ubuntu: apt-get install runsc";
/// Where it is looked for. Not along anybody's PATH: it is run with privileges over the sandbox.
const PLACES: [&str; 4] = [
    "/usr/local/bin/runsc",
    "/usr/bin/runsc",
    "/usr/local/sbin/runsc",
    "/usr/sbin/runsc",
];
/// The instance's name to `runsc`, whose state no other instance sees.
const NAME: &str = "instance";
/// Paths in the sandbox, of the stage and of the tmpfs over one of its directories.
pub(crate) const IMAGE: &str = "/image";
pub(crate) const STATE: &str = "/state";
pub(crate) const BUNDLE: &str = "/state/config.json";
/// Where there is nothing.
pub(crate) const EMPTY: &str = "/empty";
/// A /proc without covers. The kernel lets gVisor's parts, in user namespaces of their own, mount one only if they see one in full.
pub(crate) const WHOLE_PROC: &str = "/whole";
/// `runsc` of 2022 takes a namespace in which it sees a file here for the host's and refuses to use it. On 6.18 every
/// namespace has some of them.
pub(crate) const TELLS_THE_HOST: &str = "/proc/sys/net/core";

/// What gVisor itself takes, beyond what the app may use: measured here at 20 MiB with a small app; it grows with files and memory in
/// use. Charged to the instance's cgroup, so its limit is so much higher.
const MEMORY_ALLOWANCE: u64 = 64 << 20;
/// Its own threads: some 50 here. Each thread of the app is one of the host's as well.
const PIDS_ALLOWANCE: u32 = 128;

/// Limits of the cgroup of an instance of which the app may use `limits`.
pub(crate) fn with_allowance(limits: &Limits) -> Limits {
    Limits {
        memory: MemoryBytes(limits.memory.0.saturating_add(MEMORY_ALLOWANCE)),
        pids: limits.pids.saturating_add(PIDS_ALLOWANCE),
        ..*limits
    }
}

/// The program, to be executed by its descriptor: the sandbox has no path to it.
///
/// # Errors
/// [`SpawnError::GvisorMissing`].
pub(crate) fn open() -> Result<OwnedFd, SpawnError> {
    let path = find().map_err(|why| SpawnError::GvisorMissing { why })?;
    rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SpawnError::sys("open", e, path.display().to_string()))
}

/// Whether instances can be started on it, without trying.
///
/// # Errors
/// Why not, in the user's words.
pub fn installed() -> Result<(), String> {
    find().map(|_| ())
}

fn find() -> Result<PathBuf, String> {
    let found = PLACES.iter().map(Path::new).find(|place| place.exists());
    let Some(found) = found else {
        return Err(format!("looked for {}", PLACES.join(", ")));
    };
    trusted(found).map(|()| found.to_owned())
}

/// Whoever may change it could leave its sandbox.
fn trusted(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if metadata.is_file() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(format!(
            "{} is not a file that only root may change",
            path.display()
        ))
    }
}

/// What `doctor` says: its version when it is there and runs a program.
///
/// # Errors
/// Why it isn't, or doesn't, in the user's words.
pub fn try_out() -> Result<String, String> {
    let path = find()?;
    let output = |arguments: &[&str]| {
        let output = Command::new(&path)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or("it said nothing");
        Err(format!("{} does not work here: {said}", path.display()))
    };
    let version = output(&["--version"])?;
    let version = version.lines().next().unwrap_or_default().trim();
    if rustix::process::geteuid().is_root() {
        let state = format!("/run/utsuwa-doctor-{}", rustix::process::getpid());
        let root = format!("--root={state}");
        let tried = output(&[
            &root,
            "--platform=ptrace",
            "--network=none",
            "--ignore-cgroups",
            "do",
            "true",
        ]);
        let _ = fs::remove_dir_all(&state);
        tried?;
    }
    Ok(format!("{version} at {}", path.display()))
}

/// To run the instance. `ptrace` needs nothing of the host that an unprivileged process lacks; `kvm` would need a device. The
/// network is gVisor's own, which takes the addresses of `eth0`: with the host's sockets inside (`--network=host`) a `read(2)`
/// that should wait fails with `EAGAIN` in Debian 12's version, and every socket would be one of the host's kernel.
pub(crate) fn run_arguments() -> Vec<CString> {
    let bundle = format!("--bundle={STATE}");
    arguments(&["run", &bundle, NAME])
}

/// To send its first process SIGTERM.
pub(crate) fn terminate_arguments() -> Vec<CString> {
    arguments(&["kill", NAME, "TERM"])
}

fn arguments(rest: &[&str]) -> Vec<CString> {
    let root = format!("--root={STATE}/run");
    let log = format!("--log={STATE}/log");
    [
        "runsc",
        &root,
        &log,
        "--platform=ptrace",
        "--network=sandbox",
        "--ignore-cgroups",
    ]
    .iter()
    .chain(rest)
    .map(|text| CString::new(*text).expect("no NUL in our own words"))
    .collect()
}

/// What shall run.
#[derive(Debug)]
pub(crate) struct Contained<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: Vec<String>,
    pub(crate) cwd: &'a str,
    pub(crate) identity: &'a Identity,
    /// A volume is mounted at /tmp, where gVisor otherwise puts a directory of its own that no limit knows.
    pub(crate) own_tmp: bool,
}

/// `config.json`.
pub(crate) fn bundle(contained: &Contained<'_>) -> Value {
    let identity = contained.identity;
    // As with the host's kernel: root keeps a few, everybody else none.
    let held: Vec<&str> = if identity.uid == 0 {
        kept_names()
    } else {
        Vec::new()
    };
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", &[]),
        mount("/sys", "sysfs", &["ro", "nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid"]),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777"],
        ),
    ];
    if contained.own_tmp {
        let source = format!("{IMAGE}/tmp");
        mounts.push(
            json!({"destination": "/tmp", "type": "bind", "source": source, "options": ["rbind"]}),
        );
    }
    json!({
        "ociVersion": "1.0.2",
        "hostname": "localhost",
        "root": {"path": IMAGE, "readonly": false},
        "process": {
            "terminal": false,
            "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups},
            "args": contained.args,
            "env": contained.env,
            "cwd": contained.cwd,
            "noNewPrivileges": true,
            "capabilities": {"bounding": kept_names(), "effective": held, "permitted": held},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": OPEN_FILES, "soft": OPEN_FILES},
                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
        },
        "mounts": mounts,
        // That of the sandbox, made and entered already. Without a path `runsc` would make another, without a cable.
        "linux": {"namespaces": [{"type": "network", "path": "/proc/self/ns/net"}]},
    })
}

/// [`KEPT`] as the bundle spells it.
fn kept_names() -> Vec<&'static str> {
    use rustix::thread::CapabilitySet as Set;
    [
        (Set::CHOWN, "CAP_CHOWN"),
        (Set::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
        (Set::FOWNER, "CAP_FOWNER"),
        (Set::FSETID, "CAP_FSETID"),
        (Set::KILL, "CAP_KILL"),
        (Set::SETGID, "CAP_SETGID"),
        (Set::SETUID, "CAP_SETUID"),
        (Set::SETPCAP, "CAP_SETPCAP"),
        (Set::NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"),
        (Set::SETFCAP, "CAP_SETFCAP"),
    ]
    .into_iter()
    .filter(|(one, _)| KEPT.contains(*one))
    .map(|(_, name)| name)
    .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_bundle_holds_what_was_asked_for_and_no_privilege_more() {
        let identity = |uid| Identity {
            uid,
            gid: 7,
            groups: vec![8],
            home: "/".to_owned(),
        };
        let args = ["sh".to_owned(), "-c".to_owned(), "echo \"\n\"".to_owned()];
        let of = |uid| {
            bundle(&Contained {
                args: &args,
                env: vec!["A=b".to_owned()],
                cwd: "/srv",
                identity: &identity(uid),
                own_tmp: false,
            })
        };
        let (root, other) = (of(0), of(33));
        let names = kept_names();
        assert_eq!(names.len(), KEPT.bits().count_ones() as usize);
        assert_eq!(root["process"]["capabilities"]["effective"], json!(names));
        assert_eq!(other["process"]["capabilities"]["permitted"], json!([]));
        assert_eq!(other["process"]["args"], json!(args));
        assert_eq!(
            other["process"]["user"],
            json!({"uid": 33, "gid": 7, "additionalGids": [8]})
        );
    }

    #[test]
    fn a_program_that_others_may_change_is_not_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("runsc");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(trusted(&path).unwrap_err().contains("only root"));
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            trusted(&path).unwrap();
        }
        assert!(trusted(directory.path()).is_err());
    }
}
