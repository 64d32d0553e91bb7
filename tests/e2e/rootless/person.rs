//! Ordinary users, and a place outside of the host, made by a test and gone with it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Far from people, system users and what servers give to services.
const FIRST_UID: u32 = 2_100_000_000;
const FIRST_GIVEN: u32 = 3_000_000_000;
const GIVEN: u32 = 65_536;
const TUN: &str = "/dev/net/tun";

/// Two tests of one process make two.
static MADE: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Person {
    pub(super) uid: u32,
    directory: tempfile::TempDir,
    /// Name in the user database, if they are in it.
    name: Option<String>,
    program: PathBuf,
    /// Mode of the file that network devices of users are made from, as it was.
    tun: Option<u32>,
}

impl Person {
    /// Somebody whom nobody gave ids, and who isn't in the user database either.
    pub(super) fn with_one_id() -> Self {
        let uid = FIRST_UID + std::process::id() + MADE.fetch_add(1, Ordering::Relaxed);
        Self::of(uid, None)
    }

    /// Somebody with a range of ids, or why there can't be one.
    pub(crate) fn with_ids() -> Result<Self, String> {
        let there = |program: &str| {
            let found = ["/usr/bin", "/usr/sbin", "/sbin"]
                .iter()
                .any(|f| Path::new(f).join(program).exists());
            found
                .then_some(())
                .ok_or_else(|| format!("{program} is not installed"))
        };
        ["newuidmap", "useradd", "usermod", "userdel"]
            .into_iter()
            .try_for_each(there)?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let uid = FIRST_UID + std::process::id() + number;
        let name = format!("utsuwa-e2e-{}-{number}", std::process::id());
        let person = Self::of(uid, Some(name.clone()));
        let home = person.home().display().to_string();
        run("groupadd", &["--gid", &uid.to_string(), &name])?;
        run(
            "useradd",
            &[
                "--no-create-home",
                "--no-log-init",
                "--home-dir",
                &home,
                "--uid",
                &uid.to_string(),
                "--gid",
                &uid.to_string(),
                &name,
            ],
        )?;
        let range = format!("{FIRST_GIVEN}-{}", FIRST_GIVEN + GIVEN - 1);
        // What the machine gives to everybody may be too few here.
        for file in ["/etc/subuid", "/etc/subgid"] {
            run("sed", &["-i", &format!("/^{name}:/d"), file])?;
        }
        run(
            "usermod",
            &["--add-subuids", &range, "--add-subgids", &range, &name],
        )?;
        Ok(person)
    }

    fn of(uid: u32, name: Option<String>) -> Self {
        use std::os::unix::fs::{PermissionsExt, chown};
        let directory = tempfile::Builder::new()
            .prefix("utsuwa-e2e-user-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let mode = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(directory.path(), 0o755);
        let home = directory.path().join("home");
        std::fs::create_dir(&home).unwrap();
        chown(&home, Some(uid), Some(uid)).unwrap();
        // Closed, as a home is: the server must find its way regardless.
        mode(&home, 0o700);
        // Where the user may execute it, whoever built it wherever.
        let binary = directory.path().join("utsuwa");
        std::fs::copy(env!("CARGO_BIN_EXE_utsuwa"), &binary).unwrap();
        mode(&binary, 0o755);
        let program = directory.path().join("as-user");
        let script = format!(
            "#!/bin/sh\n\
             # The test's own directory is closed to the user: they get a way to their data directory.\n\
             if [ \"$1 $2\" = 'up --data-dir' ] && [ ! -e \"$3\" ] && [ -O \"$(dirname \"$3\")\" ]; then\n\
               chmod 711 \"$(dirname \"$3\")\"; mkdir -m 700 \"$3\"; chown {uid}:{uid} \"$3\"\n\
             fi\n\
             export HOME='{home}' PATH=/usr/bin:/bin:/usr/sbin:/sbin\n\
             unset XDG_DATA_HOME XDG_CONFIG_HOME XDG_RUNTIME_DIR\n\
             exec setpriv --reuid {uid} --regid {uid} --clear-groups '{binary}' \"$@\"\n",
            home = home.display(),
            binary = binary.display(),
        );
        std::fs::write(&program, script).unwrap();
        mode(&program, 0o755);
        // Distributions let everybody use it; machines without a device manager may not.
        let tun = std::fs::metadata(TUN)
            .ok()
            .map(|found| found.permissions().mode());
        let tun = tun.filter(|found| found & 0o006 != 0o006);
        if tun.is_some() {
            mode(Path::new(TUN), 0o666);
        }
        Self {
            uid,
            directory,
            name,
            program,
            tun,
        }
    }

    /// The program, run as them.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    pub(super) fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// In the user database.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The ids they were given.
    pub(super) fn given(&self) -> RangeInclusive<u32> {
        FIRST_GIVEN..=FIRST_GIVEN + GIVEN - 1
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        use std::os::unix::fs::PermissionsExt;
        if let Some(mode) = self.tun {
            drop(std::fs::set_permissions(
                TUN,
                std::fs::Permissions::from_mode(mode),
            ));
        }
        drop(std::fs::remove_dir(format!("/tmp/utsuwa-{}", self.uid)));
        if let Some(name) = &self.name
            && let Err(error) = run("userdel", &["--force", name])
        {
            eprintln!("{error}");
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// A network that is neither the host's nor private, with one service in it.
pub(super) struct Outside {
    name: String,
    service: Child,
}

/// TEST-NET-3: nobody's.
const HOST: &str = "203.0.113.1";
const THERE: &str = "203.0.113.7";
const PORT: u16 = 8000;

impl Outside {
    pub(super) fn make() -> Result<Self, String> {
        // A device's name has 15 characters.
        let name = format!("ut-e2e-{}", std::process::id() % 1_000_000);
        let inner = format!("{name}i");
        run("ip", &["netns", "add", &name])?;
        let made = Self {
            service: Command::new("ip")
                .args([
                    "netns",
                    "exec",
                    &name,
                    "python3",
                    "-m",
                    "http.server",
                    &PORT.to_string(),
                ])
                // What it serves doesn't matter.
                .current_dir("/usr/share")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| format!("ip: {error}"))?,
            name,
        };
        let name = &made.name;
        run(
            "ip",
            &[
                "link", "add", name, "type", "veth", "peer", "name", &inner, "netns", name,
            ],
        )?;
        run("ip", &["addr", "add", &format!("{HOST}/24"), "dev", name])?;
        run("ip", &["link", "set", name, "up"])?;
        run(
            "ip",
            &[
                "-n",
                name,
                "addr",
                "add",
                &format!("{THERE}/24"),
                "dev",
                &inner,
            ],
        )?;
        run("ip", &["-n", name, "link", "set", &inner, "up"])?;
        crate::harness::until(
            "the service outside",
            std::time::Duration::from_secs(10),
            || std::net::TcpStream::connect((THERE, PORT)).ok(),
        );
        Ok(made)
    }

    /// This host's address there.
    pub(super) fn host(&self) -> &'static str {
        HOST
    }

    pub(super) fn service(&self) -> String {
        format!("{THERE}:{PORT}")
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.service.kill());
        drop(self.service.wait());
        for arguments in [
            &["link", "del", &self.name][..],
            &["netns", "del", &self.name],
        ] {
            if let Err(error) = run("ip", arguments) {
                eprintln!("{error}");
            }
        }
    }
}
