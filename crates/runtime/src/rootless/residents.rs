//! Finding a user's keeper without its help: its socket is the server's, so that the user can't ask it from outside.
//!
//! Doesn't: believe a command line alone, which anybody may give to a process. It is the keeper only if it is the user's own, and
//! in a user namespace that they may enter.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The process that keeps the server whose directory is `run`, of the user `uid`.
pub(super) fn keeper(run: &Path, uid: u32) -> Option<u32> {
    let config = run.join("keeper.json");
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| says_so(*pid, &config) && is_of(*pid, uid) && is_elsewhere(*pid))
}

fn says_so(pid: u32, config: &Path) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = words.split(|b| *b == 0).skip(1);
    words.next() == Some(b"internal")
        && words.next() == Some(b"keeper")
        && words.any(|word| word == config.as_os_str().as_bytes())
}

/// All its ids: what has another one has been given it by somebody else.
fn is_of(pid: u32, uid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let ids = line.map(|line| line.split_whitespace().map(str::parse));
    ids.is_some_and(|mut ids| ids.all(|id| id == Ok(uid)))
}

/// Whether it is in another user namespace than this process, as far as we may know it: what we may not look at can't be entered.
fn is_elsewhere(pid: u32) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user")).ok();
    match (namespace(&pid.to_string()), namespace("self")) {
        (Some(theirs), Some(ours)) => theirs != ours,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Called like a keeper, until its standard input ends.
    fn pretender(run: &Path, before: &[&str]) -> Child {
        fs::write(run.join("internal"), "echo here; read line\n").unwrap();
        let mut words = before.to_vec();
        words.extend(["sh", "internal", "keeper", "--config"]);
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .arg(run.join("keeper.json"))
            .current_dir(run)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 4];
        let out = child.stdout.as_mut().unwrap();
        let _ = std::io::Read::read_exact(out, &mut said);
        child
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn only_the_users_own_in_a_namespace_of_its_own_is_believed() {
        let top = tempfile::tempdir().unwrap();
        let run = top.path().canonicalize().unwrap();
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(keeper(&run, uid), None);

        let outside = pretender(&run, &[]);
        assert!(says_so(outside.id(), &run.join("keeper.json")));
        assert_eq!(keeper(&run, uid), None, "it is in no namespace to enter");
        end(outside);

        let can = Command::new("unshare").args(["--user", "true"]).output();
        if !can.is_ok_and(|output| output.status.success()) {
            crate::skip::skip(crate::skip::here!(), "this user may make no user namespace");
            return;
        }
        let inside = pretender(&run, &["unshare", "--user"]);
        assert!(says_so(inside.id(), &run.join("keeper.json")));
        assert_eq!(keeper(&run, uid), Some(inside.id()));
        assert_eq!(keeper(&run, uid + 1), None, "it is somebody else's");
        assert_eq!(keeper(&run.join("other"), uid), None);
        end(inside);
    }
}
