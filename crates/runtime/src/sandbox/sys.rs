//! The system calls no safe wrapper in our dependencies covers.
//!
//! Owns: every `unsafe` block of the sandbox code. Doesn't: decide anything.
#![expect(
    unsafe_code,
    reason = "clone3, mount_setattr, close_range, seccomp, sched_setattr and raw descriptors have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::thread::Uid;

use super::walls::Wall;

const USER_NAMESPACE: u64 = libc::CLONE_NEWUSER as u64;
/// What each container has of its own. Not time, and cgroup comes later.
pub(crate) const OWN_NAMESPACES: u64 =
    (libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;
/// What the containers of an instance share is made with the first.
const OTHER_NAMESPACES: u64 = OWN_NAMESPACES | libc::CLONE_NEWNET as u64;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes the process of a sandbox, whose user namespace belongs to `owner` of the host.
///
/// What the kernel limits per user (watchers of files, waiting signals, message queues, locked memory) it counts for the user
/// inside and again for the namespace's owner outside. Were that root, for all sandboxes, then one of them could take what
/// all others and the host's own root have together.
///
/// # Errors
/// What `clone3` says, or taking the owner's id.
pub(crate) fn clone_sandbox(owner: u32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    if !Wall::UserNamespace.stands() {
        return clone_process(OTHER_NAMESPACES, true, cgroup);
    }
    let held = rustix::thread::capabilities(None)?;
    let take = |effective: Uid| {
        rustix::thread::set_thread_res_uid(Uid::ROOT, effective, Uid::ROOT)?;
        // Leaving uid 0 clears the effective set; the permitted one stays as long as another id is 0.
        rustix::thread::set_capabilities(None, held)
    };
    let cloned = take(Uid::from_raw(owner))
        .map_err(io::Error::from)
        .and_then(|()| clone_process(OTHER_NAMESPACES | USER_NAMESPACE, true, cgroup));
    // Also when half of it was taken. The child can't go back: its new namespace knows no uid yet.
    if !matches!(cloned, Ok(Cloned::Child)) && take(Uid::ROOT).is_err() {
        // As somebody else nothing here would work; the keeper starts another.
        leave(1)
    }
    cloned
}

/// Which side of a clone we are on.
#[derive(Debug)]
pub(crate) enum Cloned {
    Child,
    Parent { pid: u32, pidfd: OwnedFd },
}

/// `clone3` without shared memory: like `fork`, with namespaces.
///
/// With `sibling` the child belongs to our parent (`CLONE_PARENT`), which then reaps it and gets our own exit signal.
///
/// # Errors
/// What `clone3` says. `E2BIG` or `EINVAL` where `cgroup` is given and the kernel can't (5.7 can).
pub(crate) fn clone_process(
    namespaces: u64,
    sibling: bool,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    if sibling {
        arguments.flags |= libc::CLONE_PARENT as u64;
    } else {
        arguments.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup =
            u64::try_from(cgroup.as_raw_fd()).expect("a borrowed descriptor is not negative");
    }
    // SAFETY: no CLONE_VM: the child gets copies of everything. The process is single-threaded (role contract of the
    // spawner), so the child finds no lock held by a thread that doesn't exist there. `arguments` outlives the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: CLONE_PIDFD stored a descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent {
                pid: u32::try_from(pid).expect("a process id is positive"),
                pidfd,
            })
        }
    }
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes (`MOUNT_ATTR_*`) of the mount behind `mount`, idmapped to `userns` if given.
///
/// # Errors
/// What `mount_setattr` says; `EINVAL` where the file system can't be idmapped, `ENOSYS` before 5.12.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let attributes = MountAttributes {
        set: if userns.is_some() {
            set | libc::MOUNT_ATTR_IDMAP
        } else {
            set
        },
        clear: 0,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| {
            u64::try_from(fd.as_raw_fd()).expect("a borrowed descriptor is not negative")
        }),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant and `attributes` has the layout and size of struct mount_attr.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Duplicates `descriptor` to number `target` (without close-on-exec), closing what was there.
pub(crate) fn place(descriptor: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: only numbers; the caller knows that nothing in this process owns `target`.
    let result = unsafe { libc::dup2(descriptor.as_raw_fd(), target) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes ownership of descriptor `number`.
///
/// # Errors
/// `EBADF` when it isn't open.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open; the caller knows that nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` on, whoever thinks to own it. For a child that is about to become something else.
///
/// # Errors
/// What `close_range` says.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).unwrap_or(3);
    // SAFETY: the caller is a fresh child that leaves (exec or exit) without dropping the closed descriptors' owners.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Marks every descriptor from `first` on as close-on-exec.
///
/// # Errors
/// What `close_range` says.
pub(crate) fn cloexec_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).unwrap_or(3);
    // SAFETY: only flags change.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Asks the kernel to write `length` bytes of another process's memory from `start` on to swap. Its addresses, not ours: nothing
/// here is read or written.
///
/// # Errors
/// What `process_madvise` says; the pages are then where they were.
pub(crate) fn page_out(process: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<()> {
    let range = libc::iovec {
        iov_base: start as *mut libc::c_void,
        iov_len: usize::try_from(length).unwrap_or(usize::MAX),
    };
    // SAFETY: the kernel reads one iovec of ours, which outlives the call, and takes its address for one of the other process,
    // whose memory keeps its contents.
    let result = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            &raw const range,
            1_usize,
            libc::MADV_PAGEOUT,
            0_u32,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Every signal to its default action, none blocked.
///
/// By system call: the C library keeps 32 and 33 to itself and would leave them as they were inherited.
pub(crate) fn reset_signals() {
    // struct sigaction of the kernel, all zero: SIG_DFL, no flags, empty mask. Four words are its largest layout.
    let default = [0u64; 4];
    let none = 0u64;
    for signal in 1..=64 {
        // SAFETY: `default` is readable for the size of the kernel's struct; signals that can't be changed are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    // SAFETY: an empty set of eight bytes, as the size says.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            size_of::<u64>(),
        );
    }
}

/// The kernel's `struct sched_attr` in its first version, which all kernels take.
#[repr(C)]
#[derive(Debug, Default)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Of the ordinary policies: the slice, from 0.1 to 100 ms (kernel 6.12); 0: the kernel's own.
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

const KEEP_POLICY: u64 = 0x08;

/// How long this thread, and what it will make, wants a processor at a time. Policy and nice value stay as they are.
///
/// # Errors
/// What `sched_setattr` says. Kernels that know no slices of one's own succeed and do nothing.
pub(crate) fn set_slice(nanoseconds: u64) -> io::Result<()> {
    let attributes = SchedulingAttributes {
        size: u32::try_from(size_of::<SchedulingAttributes>()).unwrap_or_default(),
        flags: KEEP_POLICY,
        nice: rustix::process::getpriority_process(None)?,
        runtime_ns: nanoseconds,
        ..SchedulingAttributes::default()
    };
    // SAFETY: the kernel reads as many bytes as `size` says, which are all initialised and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The slice of this thread; 0 where the kernel doesn't tell one.
///
/// # Errors
/// What `sched_getattr` says.
#[cfg(test)]
pub(crate) fn slice() -> io::Result<u64> {
    let size = u32::try_from(size_of::<SchedulingAttributes>()).unwrap_or_default();
    let mut attributes = SchedulingAttributes::default();
    // SAFETY: the kernel writes at most `size` bytes, which is what there is.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result == 0 {
        Ok(attributes.runtime_ns)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// This thread touches files as `uid` and `gid` from now on, without the capabilities that let root pass by their modes.
#[expect(unsafe_code, reason = "no safe wrapper")]
pub(crate) fn become_for_files(uid: u32, gid: u32) {
    // SAFETY: both take numbers and touch no memory; they change the calling thread only.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// Leaves at once, without running what was registered for exit: for children that must not do the parent's cleaning up.
pub(crate) fn leave(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Installs a seccomp filter on this (only) thread. `no_new_privs` must be set.
///
/// # Errors
/// `EINVAL` for a malformed program, `EACCES` without `no_new_privs`.
pub(crate) fn install_seccomp(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // seccompiler's sock_filter is repr(C) with the kernel's layout; so is libc's.
    let filter = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `filter` points to `length` initialised instructions that outlive the call; the kernel copies them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `execveat` of an open file with the given arguments; returns only on failure.
pub(crate) fn exec_descriptor(
    file: impl AsFd,
    arguments: &[std::ffi::CString],
    environment: &[std::ffi::CString],
) -> io::Error {
    let pointers = |strings: &[std::ffi::CString]| {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: both vectors are NULL-terminated arrays of NUL-terminated strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}
