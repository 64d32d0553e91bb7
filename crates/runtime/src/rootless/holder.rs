//! The process that holds a user's server together: its user, mount and network namespaces live as long as it.
//!
//! Owns: making them, the ways to the server's directories in the mount namespace, and the addresses of the host in the network
//! namespace, so that they are nobody's on the internet. Doesn't: map ids beyond the user's own (whoever starts it does), start or
//! watch anything, or end by itself.
//!
//! Speaks with whoever starts it by lines: it says `made`, is told `mapped` or `alone`, and says `ready` or what went wrong.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::FlockOperation;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::place;
use crate::network::own_addresses;
use crate::sandbox::process::write_file;
use crate::sandbox::sys;

pub(super) const MADE: &str = "made";
pub(super) const MAPPED: &str = "mapped";
pub(super) const ALONE: &str = "alone";
pub(super) const READY: &str = "ready";

/// What it is told as its one argument.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Holding {
    /// Directories that the server must be able to reach.
    pub(super) ways: Vec<PathBuf>,
    /// Addresses of the host: closed to instances.
    pub(super) addresses: Vec<IpAddr>,
}

/// `utsuwa internal holder HOLDING`: to be called before the process has a second thread.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let holding = arguments.next().as_deref().map(serde_json::from_str);
    let Some(Ok(holding)) = holding else {
        return ExitCode::from(64);
    };
    match hold(&holding) {
        Ok(never) => match never {},
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn hold(holding: &Holding) -> io::Result<std::convert::Infallible> {
    let at = |step: &'static str| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{step}: {error}"))
    };
    sys::cloexec_from(3)?;
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    let _ = rustix::thread::set_name(c"utsuwa-holder");
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(io::Error::from)
        .map_err(at("make a user namespace"))?;
    say(MADE);
    let mut told = String::new();
    io::stdin().lock().read_line(&mut told)?;
    match told.trim() {
        MAPPED => rustix::thread::set_thread_groups(&[])?,
        ALONE => {
            write_file("/proc/self/setgroups", "deny").map_err(at("keep groups"))?;
            write_file("/proc/self/uid_map", &format!("0 {uid} 1")).map_err(at("map the user"))?;
            write_file("/proc/self/gid_map", &format!("0 {gid} 1")).map_err(at("map the group"))?;
        }
        // Whoever started it is gone.
        _ => sys::leave(1),
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .map_err(at("make a mount and a network namespace"))?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    place::open_ways(&holding.ways)?;
    // What clears /tmp of old files leaves directories alone that somebody has locked.
    let base = holding.ways.last().map(File::open).transpose()?;
    let kept = base
        .as_ref()
        .map(|base| rustix::fs::flock(base, FlockOperation::NonBlockingLockShared));
    kept.transpose()
        .map_err(io::Error::from)
        .map_err(at("lock the runtime directory"))?;
    own_addresses(&holding.addresses).map_err(|error| io::Error::other(error.to_string()))?;
    say(READY);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    loop {
        // Any signal that doesn't end it is none of its business.
        rustix::event::pause();
    }
}
