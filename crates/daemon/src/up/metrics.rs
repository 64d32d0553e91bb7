//! What the server's own process says of itself, in Prometheus' text format. The data path's part comes from the ingress.

use std::fmt::Write;
use std::fs;

/// Kernel ticks per second in `/proc`, the same on every machine that Linux runs on here.
const TICKS: u64 = 100;

/// Adds the process's metrics, and how many entries the request log has `lost`. What `/proc` doesn't tell is left out.
pub(super) fn of_server(out: &mut String, lost: u64) {
    line(
        out,
        ("utsuwa_log_entries_lost_total", "counter"),
        "Entries of request logs that came faster than they could be written.",
        lost,
    );
    let build = format!("utsuwa_build_info{{version=\"{}\"}} 1", crate::VERSION);
    // Writing into memory does not fail.
    let _ = writeln!(
        out,
        "# HELP utsuwa_build_info The build that runs.\n# TYPE utsuwa_build_info gauge\n{build}"
    );
    if let Some(ticks) = cpu_ticks() {
        #[expect(clippy::cast_precision_loss, reason = "a time with two decimals")]
        let seconds = ticks as f64 / TICKS as f64;
        line(
            out,
            ("process_cpu_seconds_total", "counter"),
            "User and system time of the server.",
            seconds,
        );
    }
    if let Some(kib) = resident_kib() {
        line(
            out,
            ("process_resident_memory_bytes", "gauge"),
            "Resident memory of the server.",
            kib * 1024,
        );
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        line(
            out,
            ("process_open_fds", "gauge"),
            "Open files of the server.",
            open.count(),
        );
    }
}

fn line(out: &mut String, (name, kind): (&str, &str), help: &str, value: impl std::fmt::Display) {
    let _ = writeln!(
        out,
        "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
    );
}

/// User and system time.
fn cpu_ticks() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold anything: state is the third field, utime the fourteenth.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).take(2);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn resident_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}
