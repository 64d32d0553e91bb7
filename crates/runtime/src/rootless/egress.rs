//! The way from the holder's network to the host's: a program that makes an ordinary user's connections of an instance's packets.
//!
//! Owns: which program ([`Program`]), starting it, and ending it with the server. Doesn't: judge what may pass: the gateway's rules
//! do, before a packet comes here.
//!
//! Neither program is allowed to lead to the host's loopback. What it sends comes from the host itself, so the holder has all of
//! the host's addresses for its own, and the rule against the host holds as it does for root.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process::Known;

/// A program that can do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// IPv4 and IPv6, at the host's own addresses; faster.
    Pasta,
    /// IPv4 only.
    Slirp4netns,
}

/// It is ready in some 50 ms; a busy machine may take longer.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
const TUN: &str = "/dev/net/tun";
const DEVICE: &str = "utsuwa-host";

impl Program {
    /// The better one that is installed.
    #[must_use]
    pub fn installed() -> Option<Self> {
        [Self::Pasta, Self::Slirp4netns]
            .into_iter()
            .find(|program| program.path().is_some())
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    fn path(self) -> Option<PathBuf> {
        ["/usr/bin", "/bin", "/usr/local/bin"]
            .iter()
            .map(|folder| Path::new(folder).join(self.name()))
            .find(|path| path.exists())
    }

    fn arguments(self, holder: u32) -> Vec<String> {
        let words = match self {
            // No port of the host leads in (-t, -u) and none of the host's loopback out (-T, -U), nor by the gateway's address.
            Self::Pasta => {
                format!(
                    "--foreground --quiet --config-net --no-map-gw -t none -u none -T none -U none --mtu 1500 --ns-ifname {DEVICE} {holder}"
                )
            }
            Self::Slirp4netns => format!(
                "--configure --disable-host-loopback --disable-dns --mtu=1500 {holder} {DEVICE}"
            ),
        };
        words.split(' ').map(str::to_owned).collect()
    }
}

fn note_file(run: &Path) -> PathBuf {
    run.join("egress.pid")
}

/// The program that serves this holder now.
pub(super) fn noted(run: &Path) -> Option<Known> {
    Known::noted(&note_file(run))
}

/// Starts the program for the network of `holder`, unless it runs. `Ok(None)`: none is installed.
///
/// # Errors
/// What it said when it ended, or that it is not ready in time.
pub(super) fn ensure(run: &Path, holder: u32) -> Result<Option<String>, String> {
    if let Some(running) = noted(run) {
        return Ok(Some(running.what));
    }
    let Some((program, path)) =
        Program::installed().and_then(|program| Some((program, program.path()?)))
    else {
        return Ok(None);
    };
    may_make_devices()?;
    let log = run.join("egress.log");
    let failed = |error: io::Error| format!("start {}: {error}", path.display());
    let output = File::create(&log).map_err(failed)?;
    let errors = output.try_clone().map_err(failed)?;
    let mut child = Command::new(&path)
        .args(program.arguments(holder))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        // Ctrl-C on the server's terminal is not for it: instances go on.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    wait_until_ready(&mut child, holder).map_err(|why| {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let said = said
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.contains("syslog"))
            .collect::<Vec<_>>()
            .join("; ");
        let _ = child.kill();
        let _ = child.wait();
        format!("{} {why}: {said}", program.name())
    })?;
    if let Some(known) = Known::of(child.id(), program.name()) {
        known.note(&note_file(run)).map_err(failed)?;
    }
    Ok(Some(program.name().to_owned()))
}

/// Ready is when the holder's network has a way out.
fn wait_until_ready(child: &mut Child, holder: u32) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if has_default_route(holder) {
            return Ok(());
        }
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Err(format!("ended ({status})")),
            Err(error) => return Err(error.to_string()),
        }
        if Instant::now() > deadline {
            return Err(format!("made no way out within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(LOOK);
    }
}

/// Destination and mask are the second and the eighth word of a line.
fn has_default_route(holder: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{holder}/net/route")).unwrap_or_default();
    text.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"00000000") && words.get(7) == Some(&"00000000")
    })
}

/// Both programs make a network device from this file, which distributions let everybody do.
pub(super) fn may_make_devices() -> Result<(), String> {
    match File::options().read(true).write(true).open(TUN) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("open {TUN}: {error}; sudo chmod 666 {TUN}")),
    }
}
