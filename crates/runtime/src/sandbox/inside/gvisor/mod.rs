//! The launch of an instance whose programs run on gVisor's kernel.
//!
//! Owns: the same process in the same sandbox as for every other instance (namespaces, cgroup, network, waiting room), with
//! `runsc` executed in the program's place and our own first process ([`init`]) above it.
//! Doesn't: choose (the service's execution environment does), or describe the container (`sandbox::gvisor`).
//!
//! Invariants
//! 1. Whatever `runsc` makes (its state, its kernel, its file server, the processes that stand for those inside) lives in the
//!    instance's own namespaces: when the first process ends, all of it does, and nothing is left to clean up.
//! 2. Its privileges are over the instance's own namespaces and ids only, and what it may ask of the host's kernel is listed
//!    (`seccomp::compile_for_gvisor`).
//! 3. The image is looked at with its own root and nothing else in it: no /proc, hence no link that leads to a descriptor.
//!
//! Failure: as for every start until `runsc` is executed; what it says afterwards is on the instance's standard error, and
//! its status (128) is the instance's.

mod init;

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::thread::{Gid, Uid};
use utsuwa_model::instance::Kernel;

use super::{FromSandbox, Launch, Plan, tree, volumes};
use super::{become_mapped_root, enter_working_directory, environment, make_working_directory};
use super::{no_program, strings};
use crate::sandbox::gvisor::{self, Contained};
use crate::sandbox::walls::Wall;
use crate::sandbox::{files, program, sys, user};
use crate::spawner::SpawnError;
use crate::spawner::protocol::Channel;

/// Bundle, state and log of `runsc`: some 50 KiB, and arguments and environment of up to 2 MiB twice.
const STATE_BYTES: &str = "16m";

/// Returns only when something failed.
pub(super) fn launch(
    control: &Channel,
    plan: &Plan,
    launch: &Launch,
    descriptors: Vec<OwnedFd>,
    prepared: &tree::Prepared,
) -> Result<(), SpawnError> {
    let begun = Instant::now();
    let lost = |_| SpawnError::SandboxGone {
        detail: "it was not given all of its descriptors".to_owned(),
    };
    // /dev/shm is gVisor's own.
    let [root, _, stdout, stderr, runsc]: [OwnedFd; 5] = descriptors.try_into().map_err(lost)?;
    become_mapped_root(false)?;
    tree::attach(&root, CWD, gvisor::IMAGE)?;
    let no = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [("size", Some(STATE_BYTES)), ("mode", Some("700"))];
    let state = tree::mount_with("tmpfs", &options, no)?;
    tree::attach(&state, CWD, gvisor::STATE)?;
    let proc = tree::mount_with("proc", &[], no)?;
    tree::attach(&proc, CWD, gvisor::WHOLE_PROC)?;
    if std::fs::metadata(gvisor::TELLS_THE_HOST).is_ok() {
        let cover = tree::clone_tree(CWD, gvisor::EMPTY)?;
        tree::attach(&cover, CWD, gvisor::TELLS_THE_HOST)?;
    }
    let bundle = in_the_image(&root, || look_at_image(&root, launch, prepared))?;
    let mounts = begun.elapsed();
    let text = serde_json::to_vec(&bundle).unwrap_or_default();
    std::fs::write(gvisor::BUNDLE, text)
        .map_err(|e| SpawnError::sys("write", e, gvisor::BUNDLE))?;
    sys::cloexec_from(3).map_err(|e| SpawnError::sys("close_range", e, "before exec"))?;
    if Wall::Seccomp.stands() {
        sys::install_seccomp(&plan.filter_for_gvisor)
            .map_err(|e| SpawnError::sys("seccomp", e, "install the filter"))?;
    }
    let first = init::Init::start(runsc, [stdout, stderr], control)?;
    control
        .send(
            &FromSandbox::Executing {
                mounts,
                volumes: launch.volumes.len(),
                kernel: Kernel::Gvisor,
                zygote: false,
            },
            &[],
        )
        .map_err(|e| SpawnError::sys("sendmsg", e, "control socket"))?;
    first.live()
}

/// Does `work` with the image as root directory, and comes back.
fn in_the_image<T>(
    root: &OwnedFd,
    work: impl FnOnce() -> Result<T, SpawnError>,
) -> Result<T, SpawnError> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let stage = rustix::fs::open("/", how, Mode::empty())
        .map_err(|e| SpawnError::sys("open", e, "stage"))?;
    let go = |there: &OwnedFd, name: &str| {
        rustix::process::fchdir(there).map_err(|e| SpawnError::sys("fchdir", e, name))?;
        rustix::process::chroot(".").map_err(|e| SpawnError::sys("chroot", e, name))
    };
    go(root, "the image's root")?;
    let result = work();
    go(&stage, "stage")?;
    result
}

/// What every instance finds in its root, and what of the image decides how the program is run.
fn look_at_image(
    root: &OwnedFd,
    launch: &Launch,
    prepared: &tree::Prepared,
) -> Result<serde_json::Value, SpawnError> {
    for name in ["proc", "sys", "dev"] {
        tree::mount_point(root.as_fd(), name)?;
    }
    let unsealed = volumes::mount(root, &prepared.hidden, &launch.volumes, Vec::new())?;
    files::write_all(&[])?;
    let identity = user::look_up(&launch.user)?;
    let arguments = strings("args", &launch.args)?;
    if arguments.is_empty() {
        return Err(no_program());
    }
    let (variables, path) = environment(&launch.env, &identity.home)?;
    let cwd = match launch.cwd.as_str() {
        "" => "/",
        cwd => cwd,
    };
    make_working_directory(cwd)?;
    unsealed.seal()?;
    as_user(&identity, || {
        enter_working_directory(cwd, identity.uid)?;
        program::look(&arguments, &path, identity.uid)
    })?;
    let env = variables
        .into_iter()
        .map(CString::into_string)
        .collect::<Result<_, _>>()
        .map_err(|error| SpawnError::Invalid {
            field: "env".to_owned(),
            why: error.to_string(),
        })?;
    Ok(gvisor::bundle(&Contained {
        args: &launch.args,
        env,
        cwd,
        identity: &identity,
        own_tmp: has_own_tmp(),
    }))
}

/// Whether something is mounted at /tmp, which is a directory of the image and no link.
fn has_own_tmp() -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &str| std::fs::symlink_metadata(path).map(|m| (m.is_dir(), m.dev()));
    matches!((device("/"), device("/tmp")), (Ok((_, root)), Ok((true, tmp))) if root != tmp)
}

/// Does `work` with the rights that the program will have, and comes back.
fn as_user<T>(
    identity: &user::Identity,
    work: impl FnOnce() -> Result<T, SpawnError>,
) -> Result<T, SpawnError> {
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    let become_ids = |groups: &[Gid], gid: Gid, uid: Uid| {
        // Coming back, the user first: only root may change the others.
        let take_uid = || rustix::thread::set_thread_res_uid(Uid::ROOT, uid, Uid::ROOT);
        let take_gids = || {
            rustix::thread::set_thread_groups(groups)
                .and_then(|()| rustix::thread::set_thread_res_gid(Gid::ROOT, gid, Gid::ROOT))
        };
        if uid == Uid::ROOT {
            take_uid().and_then(|()| take_gids())
        } else {
            take_gids().and_then(|()| take_uid())
        }
        .map_err(|e| SpawnError::sys("setresuid", e, format!("look as uid {}", identity.uid)))
    };
    let (gid, uid) = (Gid::from_raw(identity.gid), Uid::from_raw(identity.uid));
    become_ids(&groups, gid, uid)?;
    let result = work();
    become_ids(&[], Gid::ROOT, Uid::ROOT)?;
    result
}
