//! A user's server outlives the session it was started in, and is found again without it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Person, SAID};
use crate::harness::{Server, can_run, skip};
use crate::skip::here;

/// Directories of the machine that were missing; they go with it again.
struct Made(Vec<PathBuf>);

impl Made {
    fn all_of(path: &Path) -> Self {
        let missing: Vec<PathBuf> = path
            .ancestors()
            .take_while(|folder| !folder.exists())
            .map(Path::to_owned)
            .collect();
        std::fs::create_dir_all(path).unwrap();
        Self(missing)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for folder in &self.0 {
            if folder.exists() {
                told("remove what was made", std::fs::remove_dir(folder));
            }
        }
    }
}

/// A failure where a test may have failed already: a second panic would hide the first.
fn told<T, E: std::fmt::Debug>(what: &str, result: Result<T, E>) {
    if let Err(error) = result {
        let said = format!("{what}: {error:?}");
        assert!(std::thread::panicking(), "{said}");
        eprintln!("{said}");
    }
}

/// The directory of a user's session, as the session manager makes it.
struct Session {
    path: PathBuf,
    mounted: bool,
    _made: Made,
}

impl Session {
    fn begin(uid: u32, mounted: bool) -> Self {
        use std::os::unix::fs::{PermissionsExt, chown};
        let path = PathBuf::from(format!("/run/user/{uid}"));
        let made = Made::all_of(&path);
        let session = Self {
            path,
            mounted,
            _made: made,
        };
        if mounted {
            session
                .run("mount", &["-t", "tmpfs", "utsuwa-e2e-session"])
                .unwrap();
        }
        chown(&session.path, Some(uid), Some(uid)).unwrap();
        std::fs::set_permissions(&session.path, std::fs::Permissions::from_mode(0o700)).unwrap();
        session
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(program);
        let status = command.args(arguments).arg(&self.path).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            failed => Err(format!("{program} {arguments:?}: {failed:?}")),
        }
    }
}

/// Its end, with what is in it.
impl Drop for Session {
    fn drop(&mut self) {
        if self.mounted {
            told("end a session", self.run("umount", &["--lazy"]));
        } else {
            told("end a session", std::fs::remove_dir_all(&self.path));
        }
    }
}

/// What `loginctl enable-linger` leaves: the session manager keeps what it made for the user, sessions or none.
struct Linger {
    file: PathBuf,
    _made: Made,
}

impl Linger {
    fn enable(name: &str) -> Self {
        let all = Path::new("/var/lib/systemd/linger");
        let made = Made::all_of(all);
        let file = all.join(name);
        std::fs::write(&file, "").unwrap();
        Self { file, _made: made }
    }
}

/// `loginctl disable-linger`.
impl Drop for Linger {
    fn drop(&mut self) {
        told("disable lingering", std::fs::remove_file(&self.file));
    }
}

#[test]
fn the_server_of_a_user_who_lingers_lives_in_what_lasts_and_is_found_after_that() {
    if !can_run(here!()) {
        return;
    }
    let person = match Person::with_ids() {
        Ok(person) => person,
        Err(why) => return skip(here!(), &why),
    };
    let session = Session::begin(person.uid, true);
    let linger = Linger::enable(person.name().unwrap());
    let mut server = Server::start_as(person.program(), &[]);
    server.expect_warning(SAID);
    server.deploy("hello", &["--min-instances", "1"]);
    assert_eq!(server.get("hello", "/healthz").0, 200);
    let run = session.path.join("utsuwa");
    let lives = || std::fs::read_dir(&run).map_or(0, Iterator::count);
    assert_eq!(lives(), 1, "in the directory that logouts leave alone");
    assert!(!PathBuf::from(format!("/tmp/utsuwa-{}", person.uid)).exists());
    let instance = server.instance_pids("hello");

    // Another server of a user who doesn't linger would be elsewhere; this one is still found, with what it runs.
    drop(linger);
    server.kill_9();
    server.up();
    assert_eq!(server.get("hello", "/healthz").0, 200);
    assert_eq!(server.instance_pids("hello"), instance, "adopted");
    server.finish();
    assert_eq!(lives(), 0, "nothing of it is left");
    drop(session);
}

#[test]
fn a_server_that_was_started_in_a_session_is_ended_after_it() {
    if !can_run("rootless::sessions::a_server_that_was_started_in_a_session_is_ended_after_it") {
        return;
    }
    let person = Person::with_one_id();
    let session = Session::begin(person.uid, true);
    let mut server = Server::start_as(person.program(), &[]);
    server.expect_warning(SAID);
    server.deploy("hello", &["--min-instances", "1"]);
    assert_eq!(server.get("hello", "/healthz").0, 200);
    drop(session);
    assert_eq!(server.get("hello", "/healthz").0, 200, "it goes on");
    // It ends the server, which is waited for.
    server.finish();
}

#[test]
fn a_server_that_was_started_without_a_session_is_ended_in_one() {
    if !can_run("rootless::sessions::a_server_that_was_started_without_a_session_is_ended_in_one") {
        return;
    }
    let person = Person::with_one_id();
    let mut server = Server::start_as(person.program(), &[]);
    server.expect_warning(SAID);
    server.deploy("hello", &["--min-instances", "1"]);
    let session = Session::begin(person.uid, false);
    server.kill_9();
    server.up();
    assert_eq!(server.get("hello", "/healthz").0, 200);
    assert!(!session.path.join("utsuwa").exists(), "it is the same one");
    server.finish();
    drop(session);
}
