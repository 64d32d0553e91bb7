//! A machine whose kernel lacks what instances need: `utsuwa up` names it and what would help, and makes nothing; `utsuwa doctor` names it,
//! too. What is missing is hidden from the program alone, in a mount namespace of its own or by a filter of its system calls.
//!
//! What can be done without (idmapped mounts, `CLONE_INTO_CGROUP`, exit statuses by pidfd) is really missing on the kernel of
//! `make test-v2`, which runs what this one runs.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{KernelObjects, can_run, free_port, skip};
use crate::skip::here;

/// System calls; their numbers are the same on every architecture.
const FSOPEN: u32 = 430;
const PIDFD_OPEN: u32 = 434;
const ENODEV: u32 = 19;
const ENOSYS: u32 = 38;

/// Executes a program to which one system call fails. Arguments: number, error, program, its arguments.
const WITHOUT_CALL: &str = r#"
import ctypes, os, sys
number, error = int(sys.argv[1]), int(sys.argv[2])
class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Filter))]
code = (Filter * 4)((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7fff0000))
program = Program(4, code)
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(program), 0, 0) != 0:
    sys.exit("prctl: %s" % os.strerror(ctypes.get_errno()))
os.execv(sys.argv[3], sys.argv[3:])
"#;

/// One lack.
struct Lack {
    /// As `doctor` has it.
    name: &'static str,
    /// Lines of a shell that hide it; `$0` is a directory for files.
    hide: &'static str,
    /// System call and error.
    call: Option<(u32, u32)>,
    says: &'static str,
}

const ALL: [Lack; 8] = [
    Lack {
        name: "cgroup controllers",
        hide: "umount --recursive --lazy /sys/fs/cgroup",
        call: None,
        says: "no cgroup controller cpu, memory, pids: instances could not be limited",
    },
    Lack {
        name: "user namespaces",
        hide: "echo 0 >\"$0\"/file; mount --bind \"$0\"/file /proc/sys/user/max_user_namespaces",
        call: None,
        says: "user namespaces are switched off; sysctl -w user.max_user_namespaces=15000",
    },
    Lack {
        name: "overlay",
        hide: "grep -v overlay /proc/filesystems >\"$0\"/file; mount --bind \"$0\"/file /proc/filesystems",
        call: Some((FSOPEN, ENODEV)),
        says: "the kernel has no overlay file system (CONFIG_OVERLAY_FS); modprobe overlay",
    },
    Lack {
        name: "tmpfs",
        hide: "grep -v tmpfs /proc/filesystems >\"$0\"/file; mount --bind \"$0\"/file /proc/filesystems",
        call: Some((FSOPEN, ENODEV)),
        says: "the kernel has no tmpfs file system (CONFIG_TMPFS); modprobe tmpfs",
    },
    Lack {
        name: "mount calls",
        hide: "",
        call: Some((FSOPEN, ENOSYS)),
        says: "fsopen is not there or not allowed",
    },
    Lack {
        name: "pidfd",
        hide: "",
        call: Some((PIDFD_OPEN, ENOSYS)),
        says: "pidfd_open: Function not implemented",
    },
    Lack {
        name: "seccomp",
        hide: "echo allow >\"$0\"/file; mount --bind \"$0\"/file /proc/sys/kernel/seccomp/actions_avail",
        call: None,
        says: "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)",
    },
    Lack {
        name: "proc and sys",
        hide: "mount --bind /dev/null /proc/version",
        call: None,
        says: "/proc/version is covered, as inside a container",
    },
];

/// `utsuwa ARGS` where it is lacking.
fn run(lack: &Lack, dir: &Path, args: &[&str]) -> Output {
    let script = format!("set -e\n{}\nexec \"$@\"", lack.hide);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(dir)
        // One that starts all the same shall not stay.
        .args(["timeout", "20"]);
    if let Some((number, error)) = lack.call {
        command
            .args(["python3", "-c", WITHOUT_CALL])
            .args([number.to_string(), error.to_string()]);
    }
    command
        .arg(env!("CARGO_BIN_EXE_utsuwa"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn what_the_kernel_lacks_is_named_and_nothing_is_made() {
    if !can_run(here!()) {
        return;
    }
    if Command::new("python3").arg("--version").output().is_err() {
        return skip(here!(), "python3 is not installed");
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = dir.path().join("data");
    let data_dir = data.display().to_string();
    let address = || format!("127.0.0.1:{}", free_port());
    let (api, http, https) = (address(), address(), address());
    let before = KernelObjects::count();
    for lack in &ALL {
        let name = lack.name;
        let up = ["up", "--data-dir", &data_dir, "--listen-api", &api];
        let up = [&up[..], &["--listen-http", &http, "--listen-https", &https]].concat();
        let refused = run(lack, dir.path(), &up);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{name}: {refused:?}");
        let line = format!("this machine can't run instances: {name}: {}", lack.says);
        assert!(said.contains(&line), "{name}: {said}");
        assert!(said.contains("hint: `utsuwa doctor`"), "{name}: {said}");
        assert!(!data.exists(), "{name}: nothing is made");

        let api = format!("http://{api}");
        let doctor = run(
            lack,
            dir.path(),
            &["doctor", "--data-dir", &data_dir, "--api", &api],
        );
        let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert_eq!(doctor.status.code(), Some(1), "{name}: {doctor:?}");
        let row = told
            .lines()
            .find(|row| row.starts_with("bad") && row.contains(name));
        assert!(
            row.is_some_and(|row| row.contains(lack.says)),
            "{name}: {told}"
        );
    }
    before.assert_same();
}
