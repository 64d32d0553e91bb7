//! The system calls an instance may make.
//!
//! Owns: the list, and a compiler from it to a small decision tree. Doesn't: install it (`inside` does, last before exec).
//!
//! The kernel runs a new filter once for each call number when it is installed (to cache the plain answers), so the length
//! of the way through the filter is paid about 470 times at every start. A tree over ranges takes 10 comparisons where a
//! list takes 300; that is why we don't use a generic compiler.
//!
//! Invariants
//! 1. What is not listed is refused with `EPERM`; what is newer than the list, `clone3` and `io_setup`, with `ENOSYS`, so that libraries
//!    fall back. (`clone3` hides its flags in memory where a filter can't look.)
//! 2. Calls of a foreign architecture end the process.
//! 3. No call can make a namespace, mount, load code into the kernel, or reach its keyrings.

use std::ops::RangeInclusive;

use seccompiler::sock_filter;

/// A filter ready for the kernel.
pub(crate) type Program = Vec<sock_filter>;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in struct seccomp_data; arguments are 64 bits wide, their low halves first (both architectures).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + index * 8
}

#[cfg(target_arch = "x86_64")]
const OUR_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OUR_ARCHITECTURE: u32 = 0xc000_00b7;

/// The newest call this list has an opinion on (`file_setattr`, Linux 6.17).
const NEWEST_KNOWN: u32 = 469;
/// Namespace flags of `clone` and `unshare`; `CLONE_NEWTIME` (0x80) only exists for the latter.
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;

const EPERM: u32 = libc::EPERM.unsigned_abs();
const ENOSYS: u32 = libc::ENOSYS.unsigned_abs();
const EAFNOSUPPORT: u32 = libc::EAFNOSUPPORT.unsigned_abs();
const EPROTONOSUPPORT: u32 = libc::EPROTONOSUPPORT.unsigned_abs();

macro_rules! calls {
    ($($name:ident)*) => { [$(libc::$name),*] };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Errno(u32),
    /// Without these bits in the argument.
    WithoutBits {
        argument: u32,
        bits: u32,
    },
    /// Only these execution domains: Linux, 32-bit uname, no randomisation (debuggers), and asking.
    Personality,
    /// Unix, IPv4, IPv6, and of netlink only routes and kernel events: what programs use to look at addresses.
    Socket,
}

/// The filter for programs in instances.
pub(crate) fn compile() -> Program {
    compile_ranges(&ranges(verdicts()))
}

/// For `runsc`, which makes namespaces and mounts for its own parts and traces them. What it runs sees gVisor's calls only, and
/// its parts have narrower filters of their own beneath this one.
pub(crate) fn compile_for_gvisor() -> Program {
    let mut verdicts = verdicts();
    let more = calls![SYS_clone SYS_clone3 SYS_unshare SYS_setns SYS_socket SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_sethostname];
    for number in more {
        set(&mut verdicts, number, Verdict::Allow);
    }
    compile_ranges(&ranges(verdicts))
}

fn compile_ranges(ranges: &[(RangeInclusive<u32>, Verdict)]) -> Program {
    let mut code = Assembler::default();
    code.load(ARCHITECTURE);
    code.skip_one_if_equal(OUR_ARCHITECTURE);
    code.answer(KILL_PROCESS);
    code.load(NUMBER);
    code.tree(ranges);
    code.finish()
}

fn set(verdicts: &mut [Verdict], number: i64, verdict: Verdict) {
    let slot = usize::try_from(number)
        .ok()
        .and_then(|number| verdicts.get_mut(number));
    *slot.expect("every listed call is below NEWEST_KNOWN") = verdict;
}

/// Verdicts of all numbers that we know.
fn verdicts() -> Vec<Verdict> {
    let mut verdicts = vec![Verdict::Errno(EPERM); NEWEST_KNOWN as usize + 1];
    let mut set = |number, verdict| set(&mut verdicts, number, verdict);
    for number in allowed() {
        set(number, Verdict::Allow);
    }
    set(libc::SYS_clone3, Verdict::Errno(ENOSYS));
    // One limit (fs.aio-max-nr) for all users of the machine: one instance could take it from everybody. Programs fall back,
    // as on kernels built without it.
    set(libc::SYS_io_setup, Verdict::Errno(ENOSYS));
    set(
        libc::SYS_clone,
        Verdict::WithoutBits {
            argument: 0,
            bits: NAMESPACE_FLAGS,
        },
    );
    set(
        libc::SYS_unshare,
        Verdict::WithoutBits {
            argument: 0,
            bits: NAMESPACE_FLAGS | 0x80,
        },
    );
    set(libc::SYS_personality, Verdict::Personality);
    set(libc::SYS_socket, Verdict::Socket);
    verdicts
}

/// The same for all numbers, as adjoining ranges, in order.
fn ranges(verdicts: Vec<Verdict>) -> Vec<(RangeInclusive<u32>, Verdict)> {
    let mut ranges: Vec<(RangeInclusive<u32>, Verdict)> = Vec::new();
    for (number, verdict) in (0u32..).zip(verdicts) {
        match ranges.last_mut() {
            Some((range, last)) if *last == verdict => *range = *range.start()..=number,
            _ => ranges.push((number..=number, verdict)),
        }
    }
    // Includes the x32 calls (bit 30) and whatever is negative.
    ranges.push((NEWEST_KNOWN + 1..=u32::MAX, Verdict::Errno(ENOSYS)));
    ranges
}

#[derive(Default)]
struct Assembler {
    code: Program,
}

impl Assembler {
    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.code.push(sock_filter { code, jt, jf, k });
    }

    fn load(&mut self, offset: u32) {
        self.push(LOAD, offset, 0, 0);
    }

    fn answer(&mut self, action: u32) {
        self.push(RETURN, action, 0, 0);
    }

    fn skip_one_if_equal(&mut self, value: u32) {
        self.push(EQUAL, value, 1, 0);
    }

    /// Code that answers for every number in `ranges`; the number is in the accumulator.
    fn tree(&mut self, ranges: &[(RangeInclusive<u32>, Verdict)]) {
        match ranges {
            [] => self.answer(ERRNO | EPERM),
            [(_, verdict)] => self.leaf(*verdict),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let mut below = Self::default();
                below.tree(low);
                let start = *high[0].0.start();
                match u8::try_from(below.code.len()) {
                    Ok(length) => self.push(AT_LEAST, start, length, 0),
                    // Too far for a conditional jump: over an unconditional one.
                    Err(_) => {
                        self.push(AT_LEAST, start, 0, 1);
                        let length = u32::try_from(below.code.len())
                            .expect("a filter has at most 4096 instructions");
                        self.push(0x05, length, 0, 0);
                    }
                }
                self.code.append(&mut below.code);
                self.tree(high);
            }
        }
    }

    fn leaf(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Allow => self.answer(ALLOW),
            Verdict::Errno(errno) => self.answer(ERRNO | errno),
            Verdict::WithoutBits {
                argument: index,
                bits,
            } => {
                self.load(argument(index));
                self.push(ANY_BIT, bits, 0, 1);
                self.answer(ERRNO | EPERM);
                self.answer(ALLOW);
            }
            Verdict::Personality => {
                self.load(argument(0));
                self.one_of(
                    &[0, 0x8, 0x4_0000, 0x2_0000, 0x2_0008, 0xffff_ffff],
                    ERRNO | EPERM,
                );
            }
            Verdict::Socket => {
                self.load(argument(0));
                // Netlink goes on to its protocol; everything else is decided by the family.
                self.push(EQUAL, libc::AF_NETLINK.unsigned_abs(), 5, 0);
                self.one_of(
                    &[
                        libc::AF_UNIX.unsigned_abs(),
                        libc::AF_INET.unsigned_abs(),
                        libc::AF_INET6.unsigned_abs(),
                    ],
                    ERRNO | EAFNOSUPPORT,
                );
                self.load(argument(2));
                self.one_of(
                    &[
                        libc::NETLINK_ROUTE.unsigned_abs(),
                        libc::NETLINK_KOBJECT_UEVENT.unsigned_abs(),
                    ],
                    ERRNO | EPROTONOSUPPORT,
                );
            }
        }
    }

    /// Allows when the accumulator is one of `values`; `values.len() + 2` instructions.
    fn one_of(&mut self, values: &[u32], otherwise: u32) {
        for (index, value) in values.iter().enumerate() {
            let to_allow = u8::try_from(values.len() - index).expect("a handful of values");
            self.push(EQUAL, *value, to_allow, 0);
        }
        self.answer(otherwise);
        self.answer(ALLOW);
    }

    fn finish(self) -> Program {
        self.code
    }
}

/// Numbers that `libc` doesn't name on every target we build for; the same on both architectures.
const RECENT: [i64; 16] = [
    444, 445, 446, // landlock_create_ruleset, landlock_add_rule, landlock_restrict_self
    447, // memfd_secret
    448, // process_mrelease
    449, // futex_waitv
    451, // cachestat
    452, // fchmodat2
    453, // map_shadow_stack
    454, 455, 456, // futex_wake, futex_wait, futex_requeue
    462, // mseal
    463, 464, 465, // setxattrat, getxattrat, listxattrat
];

fn allowed() -> Vec<i64> {
    let mut all = Vec::new();
    // Files.
    all.extend(calls![SYS_read SYS_write SYS_close SYS_fstat SYS_lseek SYS_pread64 SYS_pwrite64 SYS_readv SYS_writev SYS_preadv
        SYS_pwritev SYS_preadv2 SYS_pwritev2 SYS_openat SYS_openat2 SYS_faccessat SYS_faccessat2 SYS_fchmod SYS_fchmodat
        SYS_fchown SYS_fchownat SYS_fchdir SYS_chdir SYS_getcwd SYS_dup SYS_dup3 SYS_fcntl SYS_flock SYS_fsync
        SYS_fdatasync SYS_sync SYS_syncfs SYS_sync_file_range SYS_truncate SYS_ftruncate SYS_fallocate SYS_fadvise64
        SYS_readahead SYS_getdents64 SYS_linkat SYS_unlinkat SYS_symlinkat SYS_readlinkat SYS_renameat SYS_renameat2
        SYS_mkdirat SYS_mknodat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_utimensat SYS_umask SYS_setxattr
        SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr
        SYS_removexattr SYS_lremovexattr SYS_fremovexattr SYS_copy_file_range SYS_sendfile SYS_splice SYS_tee SYS_vmsplice
        SYS_ioctl SYS_close_range SYS_name_to_handle_at SYS_memfd_create SYS_inotify_init1 SYS_inotify_add_watch
        SYS_inotify_rm_watch]);
    // Waiting and passing on.
    all.extend(calls![SYS_pipe2 SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2
        SYS_eventfd2 SYS_signalfd4 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_futex SYS_nanosleep
        SYS_clock_nanosleep SYS_restart_syscall SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive
        SYS_mq_notify SYS_mq_getsetattr SYS_msgget SYS_msgctl SYS_msgsnd SYS_msgrcv SYS_semget SYS_semctl SYS_semop
        SYS_semtimedop SYS_shmget SYS_shmctl SYS_shmat SYS_shmdt]);
    // Sockets (making one is decided by family).
    all.extend(calls![SYS_socketpair SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername
        SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_setsockopt SYS_getsockopt
        SYS_shutdown]);
    // Memory.
    all.extend(calls![SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_msync SYS_mincore SYS_madvise SYS_mlock
        SYS_mlock2 SYS_munlock SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
        SYS_remap_file_pages SYS_process_madvise SYS_get_mempolicy]);
    // Processes, threads, signals.
    all.extend(calls![SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_kill SYS_tkill SYS_tgkill
        SYS_getpid SYS_getppid SYS_gettid SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_set_tid_address
        SYS_set_robust_list SYS_get_robust_list SYS_rseq SYS_prctl SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev
        SYS_kcmp SYS_pidfd_open SYS_pidfd_send_signal SYS_pidfd_getfd SYS_rt_sigaction SYS_rt_sigprocmask
        SYS_rt_sigpending SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait
        SYS_sigaltstack SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam
        SYS_sched_setparam SYS_sched_getscheduler SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr
        SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_getpriority SYS_setpriority
        SYS_ioprio_get SYS_ioprio_set SYS_getcpu SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage SYS_times]);
    // Identity.
    all.extend(calls![SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_setuid SYS_setgid SYS_setreuid SYS_setregid
        SYS_setresuid SYS_getresuid SYS_setresgid SYS_getresgid SYS_setfsuid SYS_setfsgid SYS_getgroups SYS_setgroups
        SYS_capget SYS_capset SYS_seccomp]);
    // Clocks, system facts, randomness.
    all.extend(calls![SYS_clock_gettime SYS_clock_getres SYS_gettimeofday SYS_adjtimex SYS_getitimer SYS_setitimer
        SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_uname SYS_sysinfo
        SYS_getrandom]);
    all.extend(RECENT);
    #[cfg(target_arch = "x86_64")]
    all.extend(calls![SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_chmod SYS_chown SYS_lchown SYS_dup2 SYS_pipe SYS_poll
        SYS_select SYS_getdents SYS_link SYS_unlink SYS_symlink SYS_readlink SYS_rename SYS_mkdir SYS_rmdir SYS_mknod
        SYS_utime SYS_utimes SYS_futimesat SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd SYS_inotify_init
        SYS_fork SYS_vfork SYS_getpgrp SYS_pause SYS_alarm SYS_time SYS_arch_prctl SYS_set_thread_area
        SYS_get_thread_area]);
    all
}

#[cfg(test)]
mod tests;
