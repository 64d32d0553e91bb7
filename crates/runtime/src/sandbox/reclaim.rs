//! Giving back the memory of a frozen sandbox: its pages go to swap, and come back one by one when it is called.
//!
//! Owns: whether this host's swap may hold them, and writing them out. Doesn't: choose whose, or freeze.
//!
//! Invariants:
//! 1. Pages of instances go to zram or to an encrypted device only: what a service holds in memory never lies readable on a
//!    disk. One unfit swap among several refuses all, since the kernel chooses.
//! 2. It ends soon after the sandbox was thawed: who is called needs its pages.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use super::cgroup::SandboxCgroup;
use super::sys;
use crate::spawner::SpawnError;

/// Written out between two looks at whether it is still frozen: some milliseconds' work.
const STRIDE_BYTES: u64 = 4 << 20;
/// Mappings of the kernel's own, which it refuses to write out.
const KERNELS: [&str; 4] = ["[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]"];

/// Why memory of gVisor's is kept: its pages are those of one file in memory that several processes share, and would stay.
pub(crate) const GVISOR: &str =
    "gVisor keeps the memory of its programs where it can't be written out";

/// The swap that takes memory of the idle, in words.
///
/// # Errors
/// Why it is kept instead, and what to do about it.
pub fn swap() -> Result<String, String> {
    let table = fs::read_to_string("/proc/swaps").unwrap_or_default();
    judge(&table, Path::new("/sys/block"))
}

fn judge(table: &str, blocks: &Path) -> Result<String, String> {
    let devices: Vec<&str> = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    if devices.is_empty() {
        return Err("this host has no swap; with one in compressed memory the idle would need less: \
             modprobe zram && zramctl /dev/zram0 --size 4G && mkswap /dev/zram0 && swapon /dev/zram0"
            .to_owned());
    }
    let fit = |device: &str| {
        let name = device.strip_prefix("/dev/").unwrap_or(device);
        let attribute = |path: &str| fs::read_to_string(blocks.join(name).join(path));
        if name.starts_with("zram") {
            // Without the option to write to a disk the file is missing.
            attribute("backing_dev").map_or(true, |disk| disk.trim() == "none")
        } else {
            attribute("dm/uuid").is_ok_and(|uuid| uuid.starts_with("CRYPT-"))
        }
    };
    match devices.iter().find(|device| !fit(device)) {
        None => Ok(devices.join(", ")),
        Some(unfit) => Err(format!(
            "the swap at {unfit} is neither in compressed memory (zram) nor encrypted: what instances hold in memory would \
             lie readable on a disk"
        )),
    }
}

/// Writes the memory of everything in `cgroup` out, unless it is thawed meanwhile.
///
/// # Errors
/// When its processes can't be listed. A process that ends meanwhile, or a page that can't go, is no error.
pub(crate) fn page_out(cgroup: &SandboxCgroup) -> Result<(), SpawnError> {
    for pid in cgroup.processes()? {
        let Some(pidfd) = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .and_then(|pid| {
                rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
            })
        else {
            continue;
        };
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        for (start, end) in strides(&maps) {
            if !cgroup.is_frozen() {
                return Ok(());
            }
            // What is locked or shared with another process stays: the kernel leaves those alone.
            let _ = sys::page_out(pidfd.as_fd(), start, end - start);
        }
    }
    Ok(())
}

/// The mappings of `/proc/PID/maps` in pieces of [`STRIDE_BYTES`] at most.
fn strides(maps: &str) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let Some((start, end)) = words.next().and_then(|range| {
            let (start, end) = range.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(start)?, number(end)?))
        }) else {
            continue;
        };
        if words.last().is_some_and(|name| KERNELS.contains(&name)) {
            continue;
        }
        let mut from = start;
        while from < end {
            let to = end.min(from + STRIDE_BYTES);
            all.push((from, to));
            from = to;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

    #[test]
    fn only_swap_that_nobody_can_read_takes_memory() {
        let directory = tempfile::tempdir().unwrap();
        let blocks = directory.path();
        let put = |path: &str, text: &str| {
            let path = blocks.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("zram1/backing_dev", "none\n");
        put("zram2/backing_dev", "/dev/sda3\n");
        put("dm-0/dm/uuid", "CRYPT-PLAIN-swap\n");
        put("dm-1/dm/uuid", "LVM-abc\n");
        let on = |devices: &[&str]| {
            let lines = devices.iter().map(|d| format!("{d} partition 8 0 -2\n"));
            judge(&format!("{HEAD}{}", lines.collect::<String>()), blocks)
        };
        assert!(on(&[]).unwrap_err().contains("no swap"));
        assert_eq!(
            on(&["/dev/zram0", "/dev/zram1", "/dev/dm-0"]).unwrap(),
            "/dev/zram0, /dev/zram1, /dev/dm-0"
        );
        for unfit in ["/dev/zram2", "/dev/dm-1", "/dev/sda2", "/swapfile"] {
            let why = on(&["/dev/zram0", unfit]).unwrap_err();
            assert!(why.contains(unfit), "{why}");
        }
    }

    #[test]
    fn large_mappings_come_in_pieces_and_the_kernels_not_at_all() {
        let maps = "\
            00400000-00401000 r-xp 00000000 00:2a 12 /hello\n\
            7f0000000000-7f0000900000 rw-p 00000000 00:00 0 \n\
            7ffe00000000-7ffe00004000 r--p 00000000 00:00 0 [vvar]\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n";
        let sizes: Vec<u64> = strides(maps).iter().map(|(from, to)| to - from).collect();
        assert_eq!(sizes, [0x1000, 4 << 20, 4 << 20, 1 << 20]);
    }
}
