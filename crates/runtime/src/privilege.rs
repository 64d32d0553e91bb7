//! Giving up root for good, once the keeper runs.
//!
//! Invariants: 1. After [`drop_to`] answered `Ok`, the process has no capability and can't get one back. 2. It is called
//! while the process has one thread.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, User, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::rootless::{Ids, SERVER_ID, may_set_groups};

/// Whom the server runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUser {
    pub uid: u32,
    pub gid: u32,
    /// What to call it in messages: the name, or the number where there is no such user.
    pub shown: String,
}

/// First uid tried where the wanted user does not exist: far from people, system users and the ranges of instances.
const FIRST_FREE_UID: u32 = 64_500;

/// Finds the user called `name`, or a uid that nobody has.
///
/// # Errors
/// The user database can't be read, the name is root, or no uid is free.
pub fn find_user(name: &str) -> io::Result<ServerUser> {
    if let Some(user) = User::from_name(name)? {
        if user.uid.is_root() {
            return Err(io::Error::other(format!(
                "user {name:?} is root: the server must not run as root; name another with --user"
            )));
        }
        return Ok(ServerUser {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            shown: name.to_owned(),
        });
    }
    for uid in FIRST_FREE_UID..FIRST_FREE_UID + 100 {
        if User::from_uid(Uid::from_raw(uid))?.is_none() {
            return Ok(ServerUser {
                uid,
                gid: uid,
                shown: format!("uid {uid}"),
            });
        }
    }
    Err(io::Error::other(format!(
        "there is no user {name:?} and no free uid from {FIRST_FREE_UID} on; make one: useradd --system {name}"
    )))
}

/// Who the server of an ordinary user is: an id that was given to them for nothing else, or where there is none, themselves
/// without any privilege.
#[must_use]
pub fn server_of_user() -> ServerUser {
    if Ids::here().count() == 1 {
        return ServerUser {
            uid: 0,
            gid: 0,
            shown: "yourself".to_owned(),
        };
    }
    ServerUser {
        uid: SERVER_ID,
        gid: SERVER_ID,
        shown: "a subordinate id of yours".to_owned(),
    }
}

/// Whether this process is root: of the host, or of the user namespace of an ordinary user's server.
#[must_use]
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Raises the number of open files to the hard limit and answers it.
///
/// # Errors
/// The kernel refuses.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Becomes `user` for good: no supplementary groups, no way back, no new privileges by executing something.
///
/// # Errors
/// The kernel refuses; then nothing may be assumed and the process should end.
pub fn drop_to(user: &ServerUser) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    if may_set_groups() {
        setgroups(&[gid])?;
    }
    setresgid(gid, gid, gid)?;
    // From root to another uid in all three places the kernel clears every capability set.
    setresuid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    if uid.is_root() {
        return give_up_capabilities();
    }
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(io::Error::other(
            "root could be taken back after it was given up",
        ));
    }
    Ok(())
}

/// For a user without another id: root of their namespace in name only. Executing something gives nothing back, by
/// `no_new_privs`.
fn give_up_capabilities() -> io::Result<()> {
    for bit in 0..64 {
        // Numbers above the kernel's last capability are refused: nothing to drop there.
        let _ = rustix::thread::remove_capability_from_bounding_set(
            CapabilitySet::from_bits_retain(1 << bit),
        );
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)?;
    Ok(())
}
