//! Knative's runtime contract, as its conformance tests check it (cloud-run-spec.md §5.2), one test a row and named by its number.
//!
//! Here: what the launcher makes. Rows about requests, variables and what a spec may ask for are in `tests/e2e/contract.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "tests"
)]

use std::collections::BTreeMap;

use utsuwa_model::quantity::{MemoryBytes, MilliCpu};

use super::busybox::possible;
use super::launcher_world::{End, World};

/// `NAME VALUE…` lines of a script's output.
fn said(output: &str) -> BTreeMap<&str, &str> {
    output
        .lines()
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect()
}

/// R1, TestMustHaveFiles.
#[test]
fn r01_files_that_must_be_there() {
    if !possible("r01_files_that_must_be_there") {
        return;
    }
    let mut world = World::new();
    let output = world.script(
        "for f in fd stdin stdout stderr; do echo /dev/$f $(readlink /dev/$f); done; \
         for f in full null ptmx random tty urandom zero; do echo /dev/$f $(stat -L -c '%F %a %t:%T' /dev/$f); done; \
         for f in /tmp /proc/self/fd; do echo $f $(stat -c '%F %A' $f); done; \
         for n in 0 1 2; do [ -e /proc/self/fd/$n ] && echo fd$n there; done; \
         head -c 4 /dev/zero | od -An -tx1 | tr -d ' ' | sed 's/^/zero /'; echo x > /dev/null && echo null written; \
         echo random $(head -c 8 /dev/urandom | wc -c); (echo x > /dev/full) 2>&1 | sed 's/^/full /'",
    );
    let said = said(&output);
    for (name, expected) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        // The kernel's own numbers, in hexadecimal: a device under a wrong name would be worse than none.
        ("/dev/full", "character special file 666 1:7"),
        ("/dev/null", "character special file 666 1:3"),
        ("/dev/ptmx", "character special file 666 5:2"),
        ("/dev/random", "character special file 666 1:8"),
        ("/dev/tty", "character special file 666 5:0"),
        ("/dev/urandom", "character special file 666 1:9"),
        ("/dev/zero", "character special file 666 1:5"),
        ("fd0", "there"),
        ("fd1", "there"),
        ("fd2", "there"),
        ("zero", "00000000"),
        ("null", "written"),
        ("random", "8"),
    ] {
        assert_eq!(
            said.get(name).copied(),
            Some(expected),
            "{name} in {output}"
        );
    }
    let of = |name: &str| said.get(name).copied().unwrap_or_default();
    // Everybody's, and sticky.
    assert_eq!(of("/tmp"), "directory drwxrwxrwt", "{output}");
    assert!(
        of("/proc/self/fd").starts_with("directory dr-x"),
        "{output}"
    );
    assert!(of("full").contains("No space left"), "{output}");
}

/// R2, TestShouldHaveFiles.
#[test]
fn r02_files_that_should_be_there_and_one_that_should_not() {
    if !possible("r02_files_that_should_be_there_and_one_that_should_not") {
        return;
    }
    let mut world = World::new();
    let output = world.script(
        "stat -c '%n %F %A' /etc/resolv.conf; for f in /dev/console /dev/mem /dev/kmsg; do [ -e $f ] || [ -L $f ] || echo $f absent; done",
    );
    let said = said(&output);
    assert_eq!(said["/etc/resolv.conf"], "regular file -rw-r--r--");
    for device in ["/dev/console", "/dev/mem", "/dev/kmsg"] {
        assert_eq!(said.get(device), Some(&"absent"), "{output}");
    }
}

/// R8, TestCmdArgs and TestWorkingDirService.
#[test]
fn r08_arguments_and_working_directory() {
    if !possible("r08_arguments_and_working_directory") {
        return;
    }
    let mut world = World::new();
    let mut spec = world.spec(&[
        "sh",
        "-c",
        "pwd; for a in \"$@\"; do echo \"[$a]\"; done",
        "name",
    ]);
    spec.process
        .args
        .extend(["two words", "", "--flag=x", "$HOME", "a\nb", "ü"].map(str::to_owned));
    spec.process.cwd = "/foo/bar/baz".to_owned();
    let (output, end, _) = world.run(spec);
    assert_eq!(
        output,
        "/foo/bar/baz\n[two words]\n[]\n[--flag=x]\n[$HOME]\n[a\nb]\n[ü]\n"
    );
    assert_eq!(end, End::Code(0));
}

/// R9, TestMustHaveCgroupConfigured and TestShouldHaveCgroupReadOnly, with v1 and v2.
#[test]
fn r09_limits_are_seen_and_can_not_be_changed() {
    if !possible("r09_limits_are_seen_and_can_not_be_changed") {
        return;
    }
    let mut world = World::new();
    let mut spec = world.spec(&[
        "sh",
        "-c",
        "cd /sys/fs/cgroup; if [ -e memory.max ]; then echo memory $(cat memory.max); echo cpu $(cat cpu.max); \
         else echo memory $(cat memory/memory.limit_in_bytes); \
         echo cpu $(cat cpu,cpuacct/cpu.cfs_quota_us cpu/cpu.cfs_quota_us 2>/dev/null | head -n 1) \
         $(cat cpu,cpuacct/cpu.cfs_period_us cpu/cpu.cfs_period_us 2>/dev/null | head -n 1); fi; \
         n=0; for f in $(find . -type f); do n=$((n+1)); (: >> $f) 2>/dev/null && echo WRITABLE $f; done; \
         [ $n -gt 5 ] && echo files enough; mkdir sub 2>/dev/null && echo WRITABLE here; \
         for d in $(find . -type d); do mkdir $d/sub 2>/dev/null && echo WRITABLE $d; done; echo end reached",
    ]);
    spec.limits.memory = MemoryBytes(96 << 20);
    spec.limits.cpu = MilliCpu(1500);
    let (output, _, _) = world.run(spec);
    assert!(!output.contains("WRITABLE"), "{output}");
    let said = said(&output);
    assert_eq!(said["memory"], (96u64 << 20).to_string(), "{output}");
    let (quota, period) = said["cpu"].split_once(' ').unwrap();
    let (quota, period): (u64, u64) = (quota.parse().unwrap(), period.parse().unwrap());
    assert_eq!(quota * 1000 / period, 1500, "{output}");
    assert_eq!((said["files"], said["end"]), ("enough", "reached"));
}

/// R10, TestShouldHaveSysctlReadOnly and TestShouldHaveStdinEOF.
#[test]
fn r10_sysctls_can_only_be_read_and_standard_input_is_at_its_end() {
    if !possible("r10_sysctls_can_only_be_read_and_standard_input_is_at_its_end") {
        return;
    }
    let mut world = World::new();
    let output = world.script(
        "echo stdin $(cat | wc -c); n=0; for f in $(find /proc/sys -type f); do n=$((n+1)); (: >> $f) 2>/dev/null && echo WRITABLE $f; done; \
         [ $n -gt 100 ] && echo sysctls enough; grep ' /proc/sys ' /proc/self/mountinfo | cut -d' ' -f6 | sed 's/^/options /'",
    );
    assert!(!output.contains("WRITABLE"), "{output}");
    let said = said(&output);
    assert_eq!(
        (said["stdin"], said["sysctls"]),
        ("0", "enough"),
        "{output}"
    );
    assert!(said["options"].starts_with("ro,"), "{output}");
}

/// R14, TestMustRunAsUser and TestShouldRunAsUserContainerDefault: the image's user, with its groups and its home, and of root's
/// rights nothing.
#[test]
fn r14_the_images_user() {
    if !possible("r14_the_images_user") {
        return;
    }
    let mut world = World::new();
    for (user, id) in [
        ("65534", "uid=65534 gid=0(root)"),
        ("33:34", "uid=33(www) gid=34(www)"),
        ("", "uid=0(root) gid=0(root)"),
    ] {
        let mut spec = world.spec(&[
            "sh",
            "-c",
            "id; grep -E '^(Cap(Eff|Amb)|NoNewPrivs)' /proc/self/status",
        ]);
        spec.process.user = user.to_owned();
        let (output, end, _) = world.run(spec);
        assert_eq!(end, End::Code(0), "{user:?}: {output}");
        assert!(output.starts_with(id), "{user:?}: {output}");
        let none = output.contains("CapEff:\t0000000000000000");
        assert_eq!(none, !user.is_empty(), "{user:?}: {output}");
        assert!(output.contains("NoNewPrivs:\t1"), "{output}");
    }
}

/// What a program may rely on at its start, as in every container: itself as process 1, no descriptor but three, no signal blocked
/// or ignored, and a SIGTERM that reaches its handler.
#[test]
fn descriptors_and_signals_at_the_start() {
    if !possible("descriptors_and_signals_at_the_start") {
        return;
    }
    let mut world = World::new();
    let output = world.script(
        "echo pid $$; for n in $(seq 0 63); do [ -e /proc/$$/fd/$n ] && echo open$n $(readlink /proc/$$/fd/$n); done; \
         grep -E '^Sig(Blk|Ign)' /proc/self/status | tr '\\t' ' '; trap 'echo told yes; exit 4' TERM; kill -TERM $$; echo told no",
    );
    let said = said(&output);
    assert_eq!((said["pid"], said["told"]), ("1", "yes"), "{output}");
    assert_eq!(said["SigBlk:"], "0000000000000000");
    assert_eq!(said["SigIgn:"], "0000000000000000");
    assert_eq!(said["open0"], "/dev/null");
    // The shell keeps one of its own for its script, high up; nobody's is below it.
    let open: Vec<&&str> = said
        .keys()
        .filter(|name| name.starts_with("open"))
        .collect();
    assert_eq!(open.len(), 3, "{output}");
}
