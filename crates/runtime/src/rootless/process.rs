//! A process written down: number and start time, so that a number used again is never mistaken for it.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) pid: u32,
    started: String,
    /// What it is called in the note.
    pub(super) what: String,
}

impl Known {
    /// The process `pid`, unless it has ended.
    pub(super) fn of(pid: u32, what: &str) -> Option<Self> {
        let started = start_time(pid)?;
        Some(Self {
            pid,
            started,
            what: what.to_owned(),
        })
    }

    pub(super) fn note(&self, file: &Path) -> io::Result<()> {
        fs::write(
            file,
            format!("{} {} {}\n", self.pid, self.started, self.what),
        )
    }

    /// What `file` notes, if that process still runs.
    pub(super) fn noted(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let mut words = text.split_whitespace();
        let (pid, started) = (words.next()?.parse().ok()?, words.next()?);
        let found = Self::of(pid, words.next().unwrap_or_default())?;
        (found.started == started).then_some(found)
    }

    /// Kills it, if it is still the same.
    pub(super) fn end(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
            return;
        };
        if start_time(self.pid).as_ref() == Some(&self.started) {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}

/// Field 22 of `/proc/PID/stat`; `None` for a process that has ended.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name (field 2) may contain spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let known = Known::of(child.id(), "sleeper").unwrap();
        known.note(&file).unwrap();
        assert_eq!(Known::noted(&file), Some(known.clone()));
        fs::write(&file, format!("{} 1 other\n", child.id())).unwrap();
        assert_eq!(Known::noted(&file), None, "the number is another's by now");
        known.note(&file).unwrap();
        known.end();
        child.wait().unwrap();
        assert_eq!(Known::noted(&file), None);
    }
}
