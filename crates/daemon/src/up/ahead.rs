//! What a start would fail by, found before the server that serves is asked to go.
//!
//! Owns: reading, for root, what belongs to the server's user: a process of this program gives up root for that user and reads
//! then, so that a link put there leads to nothing which that user couldn't read anyway, and a file that only root can read is
//! found out now. Deliberately not here: making or mending anything; the start does that, and looks again.
//!
//! Fails by saying what is wrong. What can't be known yet (a database that an operator put there as root) is left to the start.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use utsuwa_ingress::tls::{Authority, Cabinet, TlsError};
use utsuwa_runtime::privilege::{self, ServerUser};
use utsuwa_store::{Settings, StoreError};

use super::environment::Machine;
use super::given;
use crate::config::{Config, Layers, frozen};
use crate::output::{line, note};

/// The role's name behind `utsuwa internal`.
pub(crate) const ROLE: &str = "look";

/// An answer takes milliseconds. Whoever can write there could put a pipe in a file's place, or stop the process that reads.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// What one process is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    /// Whom it becomes before it reads.
    uid: u32,
    gid: u32,
    look: Look,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Look {
    /// The database in this folder.
    State(PathBuf),
    /// The keys in this folder.
    Keys(PathBuf),
    /// The operator's own certificates.
    Certificates(PathBuf),
    /// The authority by which another one's address is trusted.
    AcmeAuthority(PathBuf),
}

/// What it found.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Found {
    /// Nothing is there yet, or nothing is wrong with it.
    Nothing,
    /// The data directory is made for these.
    MadeFor(Settings),
    /// A start would fail by these.
    Wrong(Vec<String>),
    /// So it would, and one of them is that who reads may not.
    Denied(Vec<String>),
    /// It can't be read by whom it belongs to, which may be mended by the start itself.
    Unknown(String),
}

/// Refuses a start that would fail over `config.data_dir` when it is too late: by a newer database, by settings that are frozen
/// otherwise, by keys that can't be used.
///
/// # Errors
/// Such a problem, with what to do about it.
pub(super) fn check(config: &Config, layers: &Layers) -> anyhow::Result<()> {
    let data = &config.data_dir;
    match made_for(data)? {
        Found::MadeFor(settings) => {
            let problems = frozen::differing(layers, config, &settings);
            if !problems.is_empty() {
                bail!("{}", problems.join("\n"));
            }
        }
        Found::Wrong(problems) | Found::Denied(problems) => {
            bail!("open the database: {}", problems.join("\n"))
        }
        Found::Nothing | Found::Unknown(_) => {}
    }
    if config.listen_https.is_none() {
        return Ok(());
    }
    let keys = data.join("keys");
    if let Found::Wrong(problems) = of_owner(data, &keys, Look::Keys)? {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

/// What is wrong with the files at `look`, read as `user`.
///
/// # Errors
/// No process can be started for it.
pub(super) fn of_user(user: &ServerUser, look: Look) -> anyhow::Result<Found> {
    ask(user.uid, user.gid, look)
}

/// What the data directory was made for at its first start, read with no more rights than its server has.
///
/// # Errors
/// No process can be started for it.
pub(crate) fn made_for(data: &Path) -> anyhow::Result<Found> {
    of_owner(data, &data.join("state"), Look::State)
}

/// `look` at a folder below `data` as whom it belongs to.
fn of_owner(data: &Path, folder: &Path, look: fn(PathBuf) -> Look) -> anyhow::Result<Found> {
    let stat = match std::fs::symlink_metadata(folder) {
        Ok(stat) if stat.is_dir() => stat,
        // The start says what is to be done about it.
        Ok(_) => {
            let why = format!("{} is a link or a file", folder.display());
            return Ok(Found::Unknown(why));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Ok(Found::Unknown(format!("{}: {error}", folder.display()))),
    };
    let above = std::fs::metadata(data).map_or(0, |data| data.uid());
    if stat.uid() == 0 && above != 0 {
        let why = format!(
            "{} belongs to root in another user's directory",
            folder.display()
        );
        return Ok(Found::Unknown(why));
    }
    ask(stat.uid(), stat.gid(), look(folder.to_owned()))
}

fn ask(uid: u32, gid: u32, look: Look) -> anyhow::Result<Found> {
    // Who isn't root has nothing to give up.
    if !privilege::is_root() {
        return Ok(look.answer());
    }
    let question = serde_json::to_vec(&Question { uid, gid, look }).context("ask what to read")?;
    let start = || -> std::io::Result<Option<std::process::Output>> {
        let mut child = Command::new("/proc/self/exe")
            .args(["internal", ROLE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // Closed at once: that ends the question. One that is not taken ends in an answer that isn't one.
        if let Some(mut stdin) = child.stdin.take() {
            drop(stdin.write_all(&question));
        }
        let in_time = ends_in_time(&child);
        if !matches!(in_time, Ok(true)) {
            child.kill()?;
            // Only looked at: one that hangs in the kernel ends when that lets it go, perhaps never.
            child.try_wait()?;
            return in_time.map(|_| None);
        }
        child.wait_with_output().map(Some)
    };
    let output = start().context("start a process that reads for the server's user")?;
    let Some(output) = output else {
        bail!(
            "read as uid {uid}: no answer within {} s; is there a pipe in place of a file in the data directory, or a disk that \
             does not answer?",
            PATIENCE.tv_sec
        );
    };
    if !output.status.success() {
        bail!(
            "read as uid {uid}: the process for it ended with {}; what it said is above",
            output.status
        );
    }
    serde_json::from_slice(&output.stdout).context("read what is told about the data directory")
}

/// Whether it does within [`PATIENCE`].
fn ends_in_time(child: &Child) -> std::io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut ended, Some(&PATIENCE)))? > 0)
}

/// The process that was asked. It has one thread, as giving up root demands.
pub(crate) fn main() -> ExitCode {
    let answer = || -> anyhow::Result<String> {
        let question: Question =
            serde_json::from_reader(std::io::stdin()).context("read the question")?;
        let shown = format!("uid {}", question.uid);
        let user = ServerUser {
            uid: question.uid,
            gid: question.gid,
            shown,
        };
        privilege::drop_to(&user).with_context(|| format!("become {}", user.shown))?;
        serde_json::to_string(&question.look.answer()).context("write the answer")
    };
    match answer() {
        Ok(answer) => {
            line(&answer);
            ExitCode::SUCCESS
        }
        Err(error) => {
            note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Look {
    pub(super) fn answer(&self) -> Found {
        match self {
            Self::State(folder) => match Settings::in_directory(folder) {
                Ok(None) => Found::Nothing,
                Ok(Some(settings)) => Found::MadeFor(settings),
                Err(error @ (StoreError::Newer { .. } | StoreError::Corrupt { .. })) => {
                    Found::Wrong(vec![error.to_string()])
                }
                Err(error) => Found::Unknown(error.to_string()),
            },
            Self::Keys(folder) => {
                let read = Authority::is_kept(folder)
                    .and_then(|_| Cabinet::new(folder).all(Machine::time()));
                match read {
                    Ok(_) => Found::Nothing,
                    Err(TlsError::Io { .. }) => Found::Unknown(folder.display().to_string()),
                    Err(error) => Found::Wrong(vec![error.to_string()]),
                }
            }
            Self::Certificates(file) => match given::check(file) {
                Ok(()) => Found::Nothing,
                Err(problems) if problems.denied => Found::Denied(problems.what),
                Err(problems) => Found::Wrong(problems.what),
            },
            Self::AcmeAuthority(file) => match acme_authority(file) {
                Ok(()) => Found::Nothing,
                Err(error) => {
                    let what = vec![format!("{}: {error}", file.display())];
                    match error.kind() {
                        ErrorKind::PermissionDenied => Found::Denied(what),
                        _ => Found::Wrong(what),
                    }
                }
            },
        }
    }
}

/// As it is read whenever the authority is asked.
fn acme_authority(file: &Path) -> std::io::Result<()> {
    let text = std::fs::read(file)?;
    let of_no_use = |_| {
        std::io::Error::new(
            ErrorKind::InvalidData,
            "does not begin with a certificate in PEM form (-----BEGIN CERTIFICATE-----)",
        )
    };
    let certificate = CertificateDer::from_pem_slice(&text).map_err(of_no_use)?;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(certificate)
        .map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A database made for `example.org`.
    fn made(data: &Path) -> Settings {
        let settings = Settings {
            project: "demo".parse().unwrap(),
            region: "r".parse().unwrap(),
            domain: "example.org".to_owned(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let store = utsuwa_store::Store::open(&data.join("state")).unwrap();
        let written = store.freeze_settings(settings.clone());
        runtime.block_on(written).unwrap()
    }

    #[test]
    fn a_directory_without_a_database_is_made_for_nothing() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(made_for(data.path()).unwrap(), Found::Nothing);
    }

    #[test]
    fn a_link_in_the_place_of_a_folder_is_not_followed() {
        let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(other.path(), data.path().join("state")).unwrap();
        let found = made_for(data.path()).unwrap();
        assert!(
            matches!(&found, Found::Unknown(why) if why.contains("link")),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_wrong_is_told_apart_from_what_is_unknown() {
        let data = tempfile::tempdir().unwrap();
        let settings = made(data.path());
        let state = Look::State(data.path().join("state"));
        assert_eq!(state.answer(), Found::MadeFor(settings));
        let file = data.path().join("state/state.sqlite");
        std::fs::write(&file, "no database at all, whoever reads it").unwrap();
        assert!(matches!(state.answer(), Found::Wrong(_)));
        let keys = data.path().join("keys");
        Authority::load_or_make(&keys, "localhost").unwrap();
        assert_eq!(Look::Keys(keys.clone()).answer(), Found::Nothing);
        std::fs::write(keys.join("services-ca.pem"), "nonsense").unwrap();
        assert!(matches!(Look::Keys(keys).answer(), Found::Wrong(_)));
        let none = Look::Certificates(data.path().join("none"));
        assert!(matches!(none.answer(), Found::Wrong(_)));
    }
}
