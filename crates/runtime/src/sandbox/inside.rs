//! What happens in the sandbox's own process, from its birth in the pool to the program's first instruction.
//!
//! Owns: the two halves of becoming an instance. *Waiting room* ([`run`], before anybody needs it): everything that doesn't
//! depend on the service, the slow things above all. *Launch*: identity, root, files, privileges, exec.
//! Doesn't: decide anything; it does what [`Launch`] says and reports errors as values.
//!
//! Invariants
//! 1. Nothing that the image contains is looked at before the process has the instance's own ids and root; from then on
//!    links in the image can lead nowhere but into the image.
//! 2. Mount targets in the image are opened without following any link.
//! 3. No descriptor but 0, 1 and 2 (and a zygote's: a parked one closes its two before anything of the
//!    app runs, one that learns keeps one) survives exec, no signal is blocked or ignored, no privilege is left beyond [`KEPT`].
//! 4. After the waiting room, launching makes no `umount`: unmounting waits for the kernel's RCU.
//!
//! Failure: sent as [`FromSandbox::Failed`], then the process ends.

mod arguments;
mod gvisor;
mod host_dirs;
mod messages;
mod tree;
mod volumes;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};
use utsuwa_model::instance::Kernel;

use super::process::POOLED_NAME;
use super::walls::Wall;
use super::{files, program, seccomp, sys, user, zygote};
use crate::precedence;
use crate::spawner::SpawnError;
use crate::spawner::protocol::Channel;

use arguments::{environment, strings};
pub(crate) use messages::{FromSandbox, Launch, ToSandbox};

/// What root in an instance may do, over its own files, ids and ports only: change owners and modes (package managers, apps
/// that prepare their directories), switch to another user (nginx, postgres), bind low ports, signal its processes, give up
/// privileges and put capabilities on files. Not among them: raw sockets, device nodes, chroot, tracing, anything SYS.
pub(crate) const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETFCAP);

/// What `runsc` needs besides, over the namespaces of its instance: to mount, to chroot and to trace its own parts, to read what its
/// file server serves, and to take the addresses of `eth0`.
const NEEDED_BY_RUNSC: CapabilitySet = CapabilitySet::DAC_READ_SEARCH
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_ADMIN);

/// Open files per container (Cloud Run's limit).
pub(crate) const OPEN_FILES: u64 = 25_000;
const SELF: i32 = 3;

/// What a sandbox's process knows from its maker.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) stage: PathBuf,
    /// v1 controllers to show under `/sys/fs/cgroup`; `None`: the v2 tree.
    pub(crate) v1_controllers: Option<Vec<String>>,
    pub(crate) filter: seccomp::Program,
    pub(crate) filter_for_gvisor: seccomp::Program,
}

/// The life of the process until exec. `control` is its end of the pair whose other end goes to the keeper.
pub(crate) fn run(control: &Channel, plan: &Plan) -> ! {
    if let Err(error) = live(control, plan) {
        let _ = control.send(&FromSandbox::Failed(error), &[]);
    }
    sys::leave(1)
}

fn live(control: &Channel, plan: &Plan) -> Result<(), SpawnError> {
    // Only the control socket stays, under a known number.
    sys::place(control.as_fd(), SELF).map_err(|e| SpawnError::sys("dup2", e, "control socket"))?;
    sys::close_from(SELF + 1)
        .map_err(|e| SpawnError::sys("close_range", e, "descriptors of the maker"))?;
    sys::cloexec_from(SELF).map_err(|e| SpawnError::sys("close_range", e, "control socket"))?;
    let own = sys::adopt(SELF).map_err(|e| SpawnError::sys("fcntl", e, "control socket"))?;
    let control = Channel::from(own);
    let result = wait_and_launch(&control, plan);
    if let Err(error) = result {
        let _ = control.send(&FromSandbox::Failed(error), &[]);
    }
    sys::leave(1)
}

fn wait_and_launch(control: &Channel, plan: &Plan) -> Result<(), SpawnError> {
    let lost = |what: &str| SpawnError::SandboxGone {
        detail: format!("its control socket closed while it waited for {what}"),
    };
    sys::reset_signals();
    // In a session of its own, too.
    precedence::goes_with_others();
    rustix::thread::set_name(POOLED_NAME).map_err(|e| SpawnError::sys("prctl", e, "name"))?;
    let received = control
        .receive::<ToSandbox>()
        .map_err(|e| SpawnError::sys("recvmsg", e, "control socket"))?;
    let Some((ToSandbox::Attached, _)) = received else {
        return Err(lost("its cgroup"));
    };
    let prepared = waiting_room(plan)?;
    control
        .send(&FromSandbox::Staged, &[])
        .map_err(|e| SpawnError::sys("sendmsg", e, "control socket"))?;

    let received = control
        .receive::<ToSandbox>()
        .map_err(|e| SpawnError::sys("recvmsg", e, "control socket"))?;
    let Some((ToSandbox::Launch(launch), mut descriptors)) = received else {
        return Err(lost("an instance"));
    };
    if launch.kernel == Kernel::Gvisor {
        return gvisor::launch(control, plan, &launch, descriptors, &prepared);
    }
    if Wall::Capabilities.stands() {
        give_up_gaining(NEEDED_BY_RUNSC);
    }
    let say = launch.zygote.as_ref().and_then(|_| descriptors.pop());
    let begun = Instant::now();
    let shared = descriptors.split_off(descriptors.len().min(4));
    let [root, shm, stdout, stderr]: [OwnedFd; 4] = descriptors
        .try_into()
        .map_err(|_| lost("all of its descriptors"))?;
    become_mapped_root(launch.one_id)?;
    tree::enter(&root, &shm, &prepared, launch.one_id)?;
    let unsealed = volumes::mount(&root, &prepared.hidden, &launch.volumes, shared)?;
    // From here on paths of the image are followed: no descriptor may lead out of its root (CVE-2024-21626).
    drop((prepared, root, shm));
    files::write_all(&launch.containers)?;
    if !launch.host_dirs.is_empty() {
        let received = control.receive::<ToSandbox>();
        let received = received.map_err(|e| SpawnError::sys("recvmsg", e, "control socket"))?;
        let Some((ToSandbox::HostDirs, trees)) = received else {
            return Err(lost("directories of the host"));
        };
        host_dirs::mount(&launch.host_dirs, trees)?;
    }
    let mounts = begun.elapsed();
    let identity = user::look_up(&launch.user)?;
    let arguments = strings("args", &launch.args)?;
    if arguments.is_empty() {
        return Err(no_program());
    }
    let (mut environment, path) = environment(&launch.env, &identity.home)?;
    let cwd = if launch.cwd.is_empty() {
        "/"
    } else {
        launch.cwd.as_str()
    };
    make_working_directory(cwd)?;
    unsealed.seal()?;
    sys::place(stdout.as_fd(), 1).map_err(|e| SpawnError::sys("dup2", e, "standard output"))?;
    sys::place(stderr.as_fd(), 2).map_err(|e| SpawnError::sys("dup2", e, "standard error"))?;
    if let Some(processes) = launch.processes {
        limit(rustix::process::Resource::Nproc, u64::from(processes))?;
    }
    become_user(&identity, launch.one_id)?;
    enter_working_directory(cwd, identity.uid)?;
    let luggage = match (&launch.zygote, say) {
        (Some(wanted), Some(say)) => {
            zygote::pack(wanted, say, &launch.args, &mut environment, &path)?
        }
        _ => None,
    };
    sys::cloexec_from(3).map_err(|e| SpawnError::sys("close_range", e, "before exec"))?;
    if let Some(luggage) = &luggage {
        luggage
            .place()
            .map_err(|e| SpawnError::sys("dup2", e, "descriptors of a zygote"))?;
    }
    if Wall::Seccomp.stands() {
        sys::install_seccomp(&plan.filter)
            .map_err(|e| SpawnError::sys("seccomp", e, "install the filter"))?;
    }
    control
        .send(
            &FromSandbox::Executing {
                mounts,
                volumes: launch.volumes.len() + launch.host_dirs.len(),
                kernel: Kernel::Host,
                zygote: launch.zygote.is_some(),
            },
            &[],
        )
        .map_err(|e| SpawnError::sys("sendmsg", e, "control socket"))?;
    Err(program::execute(
        &arguments,
        &environment,
        &path,
        identity.uid,
    ))
}

/// As the user who needs it. Links are followed, but none of /proc that stand for a descriptor or another process.
fn enter_working_directory(path: &str, uid: u32) -> Result<(), SpawnError> {
    rustix::fs::openat2(
        rustix::fs::CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
    .and_then(rustix::process::fchdir)
    .map_err(|e| SpawnError::Invalid {
        field: "workingDir".to_owned(),
        why: format!("enter {path:?} as uid {uid}: {}", std::io::Error::from(e)),
    })
}

fn no_program() -> SpawnError {
    SpawnError::Invalid {
        field: "command".to_owned(),
        why: "the image has no ENTRYPOINT or CMD and the service names no program: name one with --command".to_owned(),
    }
}

/// Everything that can be done before the service is known.
fn waiting_room(plan: &Plan) -> Result<tree::Prepared, SpawnError> {
    // Until exec this is a copy of a privileged process's memory.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| SpawnError::sys("prctl", e, "dumpable"))?;
    // Without a user namespace of its own it may see the host's hierarchies; with one it needs its own to mount any.
    if Wall::Cgroup.stands() || Wall::UserNamespace.stands() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
            .map_err(|e| SpawnError::sys("unshare", e, "cgroup namespace"))?;
    }
    rustix::system::sethostname(b"localhost")
        .map_err(|e| SpawnError::sys("sethostname", e, "localhost"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if Wall::Cgroup.stands() {
        limit(rustix::process::Resource::Nofile, OPEN_FILES)?;
        limit(rustix::process::Resource::Core, 0)?;
    }
    if Wall::Capabilities.stands() {
        // Some fifty calls of nearly a microsecond each: only what `runsc` may need waits until it is known that it isn't.
        give_up_gaining(!(KEPT | NEEDED_BY_RUNSC));
        rustix::thread::clear_ambient_capability_set()
            .map_err(|e| SpawnError::sys("prctl", e, "ambient capabilities"))?;
        rustix::thread::set_no_new_privs(true)
            .map_err(|e| SpawnError::sys("prctl", e, "no_new_privs"))?;
    }
    tree::build(plan)
}

/// None of `capabilities` can come back, by whatever program.
fn give_up_gaining(capabilities: CapabilitySet) {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // Numbers above the kernel's last capability are refused: nothing to drop there.
        if capabilities.contains(capability) {
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
}

fn limit(resource: rustix::process::Resource, wanted: u64) -> Result<(), SpawnError> {
    let hard = rustix::process::getrlimit(resource)
        .maximum
        .unwrap_or(u64::MAX);
    let value = Some(wanted.min(hard));
    rustix::process::setrlimit(
        resource,
        rustix::process::Rlimit {
            current: value,
            maximum: value,
        },
    )
    .map_err(|e| SpawnError::sys("setrlimit", e, format!("{resource:?}")))
}

/// The maker mapped ids since the waiting room: take the first.
fn become_mapped_root(one_id: bool) -> Result<(), SpawnError> {
    let context = "take the instance's own root";
    // With one id only, the kernel lets nobody set groups.
    if !one_id {
        rustix::thread::set_thread_groups(&[])
            .map_err(|e| SpawnError::sys("setgroups", e, context))?;
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(|e| SpawnError::sys("setresgid", e, context))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(|e| SpawnError::sys("setresuid", e, context))
}

fn make_working_directory(cwd: &str) -> Result<(), SpawnError> {
    let invalid = |why: String| SpawnError::Invalid {
        field: "workingDir".to_owned(),
        why,
    };
    if !cwd.starts_with('/') {
        return Err(invalid(format!("{cwd:?} is not absolute: begin it with /")));
    }
    match std::fs::create_dir_all(cwd) {
        Ok(()) => Ok(()),
        Err(error) => Err(invalid(format!("{cwd:?}: {error}"))),
    }
}

/// Gives up every privilege the program shall not have; order matters: groups and ids while they may still be set.
fn become_user(identity: &user::Identity, one_id: bool) -> Result<(), SpawnError> {
    if !one_id {
        take_ids(identity)?;
    }
    if !Wall::Capabilities.stands() {
        return inherit_everything();
    }
    let held = if identity.uid == 0 {
        KEPT
    } else {
        CapabilitySet::empty()
    };
    let sets = CapabilitySets {
        effective: held,
        permitted: held,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
        .map_err(|e| SpawnError::sys("capset", e, format!("become uid {}", identity.uid)))
}

fn take_ids(identity: &user::Identity) -> Result<(), SpawnError> {
    let context = || format!("become uid {} gid {}", identity.uid, identity.gid);
    let groups: Vec<Gid> = identity
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_groups(&groups)
        .map_err(|e| SpawnError::sys("setgroups", e, context()))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(|e| SpawnError::sys("setresgid", e, context()))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .map_err(|e| SpawnError::sys("setresuid", e, context()))
}

/// Instead of giving up: what CVE-2022-29162 was about.
fn inherit_everything() -> Result<(), SpawnError> {
    let context = "inherit capabilities";
    let mut sets =
        rustix::thread::capabilities(None).map_err(|e| SpawnError::sys("capget", e, context))?;
    sets.inheritable = sets.permitted;
    rustix::thread::set_capabilities(None, sets).map_err(|e| SpawnError::sys("capset", e, context))
}
