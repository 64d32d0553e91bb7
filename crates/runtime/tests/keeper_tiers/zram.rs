//! Swap in compressed memory for the time of a test, where the kernel has a free zram device.

use std::fs;
use std::process::Command;

const DEVICE: &str = "/dev/zram0";
const CONTROLS: &str = "/sys/block/zram0";

/// Goes with this value, and so does the swap.
#[derive(Debug)]
pub(crate) struct Zram;

impl Zram {
    /// `None`: there is no such device here, or somebody uses it.
    pub(crate) fn new() -> Option<Self> {
        if fs::read_to_string(format!("{CONTROLS}/disksize"))
            .ok()?
            .trim()
            != "0"
        {
            return None;
        }
        fs::write(format!("{CONTROLS}/disksize"), "256M").ok()?;
        let made = Self;
        (run("mkswap") && run("swapon")).then_some(made)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let on = fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.contains(DEVICE));
        assert!(!on || run("swapoff"), "{DEVICE} stays swap");
        fs::write(format!("{CONTROLS}/reset"), "1").unwrap();
    }
}

fn run(program: &str) -> bool {
    let output = Command::new(program).arg(DEVICE).output();
    output.is_ok_and(|output| output.status.success())
}
