//! Starting the first part of a program before anybody needs it: its runtime, and the modules that it imports.
//!
//! Owns: which programs can do that ([`program`]), the bootstrap that does it inside the instance (`boot.py`), and how both get
//! to each other. Deliberately not here: when instances are parked, and what they import.
//!
//! The bootstrap is no file of the image's: it lies in an archive in memory, whose descriptor the program's Python finds in its
//! `PYTHONPATH` and closes before anything else runs.
//!
//! Invariants:
//! 1. Nothing of the app runs before [`go_on`]: a program that isn't certain to wait is not parked.
//! 2. No instance comes from another one: a parked one goes on itself, once.

mod archive;
mod program;

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Signal, pidfd_send_signal};
use utsuwa_model::instance::Zygote;

use super::sys;
use crate::spawner::SpawnError;

/// Beyond those that shells use for themselves.
const SAY: i32 = 100;
const ARCHIVE: i32 = 101;
const BOOT: &str = include_str!("zygote/boot.py");
/// The most that is learnt of one instance: names of thousands of modules. Whose memory it is, the kernel counts.
const LEARNT_BYTES: u64 = 256 << 10;
/// Before a reason: nothing can be learnt.
const REFUSED: char = '!';
const FIELD: &str = "zygote";

/// How the instance and who started it hear of each other.
#[derive(Debug)]
pub(crate) enum Ear {
    /// Filled by the instance while it runs.
    Learning(OwnedFd),
    /// Says one thing, when it waits or why it doesn't.
    Parking(OwnedFd),
}

impl Ear {
    /// An ear, and the descriptor for the instance.
    pub(crate) fn make(zygote: &Zygote) -> Result<(Self, OwnedFd), SpawnError> {
        let failed = |call, e: rustix::io::Errno| SpawnError::sys(call, e, "listen to a zygote");
        match zygote {
            Zygote::Learn => {
                let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
                let memory = rustix::fs::memfd_create(c"utsuwa-learnt", flags)
                    .map_err(|e| failed("memfd_create", e))?;
                // Its size stays, so that what the instance may write has an end.
                rustix::fs::ftruncate(&memory, LEARNT_BYTES).map_err(|e| failed("ftruncate", e))?;
                let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
                rustix::fs::fcntl_add_seals(&memory, seals).map_err(|e| failed("fcntl", e))?;
                let copy =
                    rustix::io::fcntl_dupfd_cloexec(&memory, 0).map_err(|e| failed("dup", e))?;
                Ok((Self::Learning(memory), copy))
            }
            Zygote::Park { .. } => {
                let flags = rustix::pipe::PipeFlags::CLOEXEC;
                let (ear, mouth) =
                    rustix::pipe::pipe_with(flags).map_err(|e| failed("pipe2", e))?;
                Ok((Self::Parking(ear), mouth))
            }
        }
    }

    pub(crate) fn parking(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Parking(ear) => Some(ear.as_fd()),
            Self::Learning(_) => None,
        }
    }

    /// What a parking instance has said; to be called when there is something. Its words are a stranger's: nothing is read into
    /// them but that it waits.
    pub(crate) fn listen(&self) -> Result<(), SpawnError> {
        let Self::Parking(ear) = self else {
            return Ok(());
        };
        let mut said = [0u8; 1024];
        let length = rustix::io::read(ear, &mut said)
            .map_err(|e| SpawnError::sys("read", e, "what a zygote says"))?;
        match said.first().filter(|_| length > 0) {
            Some(b'P') => Ok(()),
            Some(b'R') => Err(refused(plain(&said[1..length]))),
            _ => Err(refused(
                "its program ended or ran another one before it could wait".to_owned(),
            )),
        }
    }
}

fn refused(why: String) -> SpawnError {
    SpawnError::Invalid {
        field: FIELD.to_owned(),
        why,
    }
}

/// Without what could deceive a terminal.
fn plain(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(300)
        .collect()
}

/// What was learnt so far; `Err`: why nothing will be.
///
/// # Errors
/// In the user's words.
pub(crate) fn learnt(memory: &OwnedFd) -> Result<Vec<String>, String> {
    let file = File::from(memory.try_clone().map_err(|error| error.to_string())?);
    let length = usize::try_from(LEARNT_BYTES).unwrap_or(usize::MAX);
    let (mut text, mut read) = (vec![0u8; length], 0);
    while read < length {
        match file.read_at(&mut text[read..], read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) => return Err(error.to_string()),
        }
    }
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(read);
    let text = String::from_utf8_lossy(&text[..end]);
    match text.strip_prefix(REFUSED) {
        Some(why) => Err(plain(why.as_bytes())),
        None => Ok(text.lines().map(str::to_owned).collect()),
    }
}

/// Lets a parked process go on. One that isn't parked, and expects nothing of the kind, doesn't notice: it is the first process
/// of its namespace.
pub(crate) fn go_on(process: BorrowedFd<'_>) -> std::io::Result<()> {
    Ok(pidfd_send_signal(process, Signal::USR1)?)
}

/// In the sandbox: descriptors that the program shall inherit, under their numbers.
#[derive(Debug)]
pub(super) struct Luggage {
    say: OwnedFd,
    archive: OwnedFd,
}

impl Luggage {
    /// After everything else was marked to be closed.
    pub(super) fn place(&self) -> std::io::Result<()> {
        sys::place(self.say.as_fd(), SAY)?;
        sys::place(self.archive.as_fd(), ARCHIVE)
    }
}

/// In the sandbox, as the instance's user: makes the program's Python find the bootstrap. `None`: the program starts as always,
/// and who wanted to learn is told why it can't be.
pub(super) fn pack(
    zygote: &Zygote,
    say: OwnedFd,
    arguments: &[String],
    environment: &mut Vec<CString>,
    path: &str,
) -> Result<Option<Luggage>, SpawnError> {
    if let Err(why) = program::check(arguments, path, environment) {
        if matches!(zygote, Zygote::Park { .. }) {
            return Err(refused(why));
        }
        let told = File::from(say).write_all(format!("{REFUSED}{why}").as_bytes());
        return told
            .map(|()| None)
            .map_err(|e| SpawnError::sys("write", e, "why nothing is learnt"));
    }
    let text = boot(zygote);
    let memory = rustix::fs::memfd_create(c"utsuwa-zygote", MemfdFlags::CLOEXEC)
        .map_err(|e| SpawnError::sys("memfd_create", e, "bootstrap of a zygote"))?;
    let mut file = File::from(memory);
    file.write_all(&archive::of("sitecustomize.py", text.as_bytes()))
        .map_err(|e| SpawnError::sys("write", e, "bootstrap of a zygote"))?;
    let luggage = Luggage {
        say,
        archive: file.into(),
    };
    add_to_path(environment)?;
    Ok(Some(luggage))
}

/// The bootstrap's text with what it is told.
fn boot(zygote: &Zygote) -> String {
    let (park, modules) = match zygote {
        Zygote::Learn => ("False", String::new()),
        Zygote::Park { modules } => ("True", modules.join(" ")),
    };
    // A literal that nothing can end early.
    let letters = |letter: &char| letter.is_alphanumeric() || matches!(letter, '_' | '.' | ' ');
    let modules: String = modules.chars().filter(letters).collect();
    format!("PARK = {park}\nSAY = {SAY}\nARCHIVE = {ARCHIVE}\nMODULES = \"{modules}\"\n{BOOT}")
}

/// First in PYTHONPATH; the bootstrap takes itself out again.
fn add_to_path(environment: &mut Vec<CString>) -> Result<(), SpawnError> {
    const NAME: &[u8] = b"PYTHONPATH=";
    let mut entry = [NAME, format!("/proc/self/fd/{ARCHIVE}").as_bytes()].concat();
    let given = environment
        .iter()
        .position(|entry| entry.as_bytes().starts_with(NAME));
    if let Some(position) = given {
        entry.push(b':');
        entry.extend(&environment.remove(position).as_bytes()[NAME.len()..]);
    }
    let entry = CString::new(entry)
        .map_err(|_| refused("PYTHONPATH contains a NUL character".to_owned()))?;
    environment.push(entry);
    Ok(())
}
