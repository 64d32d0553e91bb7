//! What the probe finds must be what this kernel has: a fallback taken where none is needed costs every start.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../../tests/skip.rs"]
mod skip;

use utsuwa_runtime::sandbox::probe::{CgroupMode, probe};

/// `6.1.0-56-amd64` → (6, 1).
fn version(kernel: &str) -> (u32, u32) {
    let mut numbers = kernel
        .split(|sign: char| !sign.is_ascii_digit())
        .map(|digits| digits.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn nothing_is_missed_that_the_kernel_offers() {
    let features = probe();
    for (name, feature) in features.all() {
        eprintln!(
            "{name}: {}",
            feature
                .as_ref()
                .err()
                .map_or_else(|| "yes".to_owned(), ToString::to_string)
        );
    }
    if !rustix::process::geteuid().is_root() {
        skip::skip(
            skip::here!(),
            "without root the kernel doesn't show all it offers",
        );
        return;
    }
    assert_eq!(features.lacking(), []);
    let kernel = version(&features.kernel);
    // Overlay over idmapped layers came with 5.19, the exit status of a foreign process with 6.15.
    if kernel >= (5, 19) {
        features.idmapped_overlay.as_ref().unwrap();
        features
            .idmapped_overlay_on(tempfile::tempdir().unwrap().path())
            .unwrap();
    }
    assert_eq!(
        features.exit_by_pidfd.is_ok(),
        kernel >= (6, 15),
        "{:?}",
        features.exit_by_pidfd
    );
    assert_eq!(
        features.clone_into_cgroup.is_ok(),
        features.cgroup == CgroupMode::V2
    );
    if let Ok(controllers) = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        let unified = ["cpu", "memory", "pids"]
            .iter()
            .all(|name| controllers.split_whitespace().any(|word| word == *name));
        assert_eq!(unified, features.cgroup == CgroupMode::V2, "{controllers}");
    }
}
