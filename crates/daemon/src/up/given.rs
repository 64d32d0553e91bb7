//! Certificates of the operator's own: the file of the option `certificates-file`, with a table for each host or pattern.
//!
//! ```toml
//! ["*.example.com"]
//! certificate-file = "/etc/utsuwa/example.pem"   # the host's own first, then those that signed it
//! key-file = "/etc/utsuwa/example-key.pem"
//! ```
//!
//! Invariants: 1. All of it is in force, or what was before. 2. A change concerns the next handshake; no connection sees it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use utsuwa_ingress::tls::{Given, Pattern, Tls};
use utsuwa_model::Timestamp;

use super::environment::Machine;
use super::named;

/// How often the files are looked at: who renews them need not tell.
const LOOK: Duration = Duration::from_secs(5);
/// So long before the end of a certificate its operator is warned, once a day.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);
const WARN_AGAIN: Duration = Duration::from_secs(24 * 3600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    certificate_file: PathBuf,
    key_file: PathBuf,
}

/// What the files were when they were read: another one means another content.
type Print = Vec<(PathBuf, Option<(u64, u64, i64, i64)>)>;

/// The files, and what is in force of them.
pub(super) struct OwnCertificates {
    path: PathBuf,
    tls: Arc<Tls>,
    seen: Print,
    ends: Vec<(Pattern, Timestamp)>,
    warned: Option<Timestamp>,
}

impl OwnCertificates {
    /// Reads them for the first time.
    pub(super) fn open(path: &Path, tls: Arc<Tls>) -> anyhow::Result<Self> {
        let mut own = Self {
            path: path.to_owned(),
            tls,
            seen: Print::new(),
            ends: Vec::new(),
            warned: None,
        };
        own.take_over(read).map_err(|problems| problems.refusal())?;
        Ok(own)
    }

    /// Follows changes until `stop`, and SIGHUP.
    pub(super) async fn follow(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("watch SIGHUP")?;
        loop {
            self.warn();
            let asked = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            if !asked && self.print() == self.seen {
                continue;
            }
            match self.take_over(read) {
                Ok(()) => tracing::info!(
                    path = %self.path.display(),
                    hosts = self.ends.len(),
                    "certificates were read again; open connections go on"
                ),
                Err(problems) => tracing::warn!(
                    path = %self.path.display(),
                    problems = problems.what.join("; "),
                    "the certificates can't be used; those that were in force stay so"
                ),
            }
        }
    }

    fn take_over(
        &mut self,
        read: impl FnOnce(&Path) -> Result<Vec<Given>, Problems>,
    ) -> Result<(), Problems> {
        // Before reading, and not after it: a change that comes meanwhile is seen at the next look.
        self.seen = self.print();
        let given = read(&self.path)?;
        self.ends = given
            .iter()
            .map(|given| (given.pattern.clone(), given.validity.until))
            .collect();
        self.warned = None;
        self.tls.give(given);
        Ok(())
    }

    /// Those that end soon.
    fn warn(&mut self) {
        let now = Machine::time();
        if self.warned.is_some_and(|at| now.since(at) < WARN_AGAIN) {
            return;
        }
        self.warned = Some(now);
        for (pattern, until) in &self.ends {
            let left = until.since(now);
            if left < WARN_BEFORE {
                tracing::warn!(
                    hosts = %pattern,
                    days_left = left.as_secs() / (24 * 3600),
                    "a certificate of certificates-file ends soon: put a newer one in its place, no restart is needed"
                );
            }
        }
    }

    fn print(&self) -> Print {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let named = tables(&text).unwrap_or_default();
        let files = named
            .into_values()
            .flat_map(|table| [table.certificate_file, table.key_file]);
        std::iter::once(self.path.clone())
            .chain(files)
            .map(|path| {
                let found = std::fs::metadata(&path).ok();
                let print = found.map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
                (path, print)
            })
            .collect()
    }
}

fn tables(text: &str) -> Result<BTreeMap<String, Table>, toml::de::Error> {
    toml::from_str(text)
}

/// What keeps a server from starting.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub what: Vec<String>,
    /// One of them is that who reads may not.
    pub denied: bool,
}

impl Problems {
    fn of_reading(what: String, error: &io::Error) -> Self {
        Self {
            what: vec![format!("{what}: {error}")],
            denied: error.kind() == io::ErrorKind::PermissionDenied,
        }
    }

    fn refusal(&self) -> anyhow::Error {
        named::refused("certificates-file", &self.what.join("\n"), self.denied).into()
    }
}

impl From<String> for Problems {
    fn from(why: String) -> Self {
        Self {
            what: vec![why],
            denied: false,
        }
    }
}

/// Whether all that the file at `path` names could be in force.
pub(super) fn check(path: &Path) -> Result<(), Problems> {
    read(path).map(drop)
}

/// All certificates that the file names, each checked.
fn read(path: &Path) -> Result<Vec<Given>, Problems> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Problems::of_reading(format!("{shown}: read it"), &error))?;
    let tables = tables(&text).map_err(|error| format!("{shown}: {error}"))?;
    let now = Machine::time();
    let (mut given, mut problems) = (Vec::new(), Problems::default());
    for (name, table) in tables {
        match one(&name, &table, now) {
            Ok(one) => given.push(one),
            Err(of_one) => {
                let told = |why: &String| format!("{shown}: [{name:?}]: {why}");
                problems.what.extend(of_one.what.iter().map(told));
                problems.denied |= of_one.denied;
            }
        }
    }
    if problems.what.is_empty() {
        Ok(given)
    } else {
        Err(problems)
    }
}

fn one(name: &str, table: &Table, now: Timestamp) -> Result<Given, Problems> {
    let pattern: Pattern = name.parse().map_err(|error| format!("{error}"))?;
    let file = |key: &str, path: &Path| {
        let what = || format!("{key} {}", path.display());
        std::fs::read(path).map_err(|error| Problems::of_reading(what(), &error))
    };
    let chain = file("certificate-file", &table.certificate_file)?;
    let key = file("key-file", &table.key_file)?;
    Ok(Given::new(pattern, &chain, &key, now).map_err(|error| error.to_string())?)
}

#[cfg(test)]
mod tests {
    use utsuwa_ingress::tls::Authority;

    use super::*;

    /// Renewed between the reading and the end of it.
    #[test]
    fn files_that_are_replaced_while_they_are_read_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(folder.path(), "localhost").unwrap();
        let tls = Tls::new(authority, Arc::new(Machine::begin()), None).unwrap();
        let at = |name: &str| folder.path().join(name);
        let path = at("certificates.toml");
        let table = format!(
            "[\"a.example\"]\ncertificate-file = {:?}\nkey-file = {:?}\n",
            at("cert.pem"),
            at("key.pem")
        );
        std::fs::write(&path, table).unwrap();
        std::fs::write(at("cert.pem"), "first").unwrap();
        std::fs::write(at("key.pem"), "first").unwrap();
        let mut own = OwnCertificates {
            path,
            tls: Arc::new(tls),
            seen: Print::new(),
            ends: Vec::new(),
            warned: None,
        };
        let renew = || {
            std::fs::write(at("new"), "second").unwrap();
            std::fs::rename(at("new"), at("cert.pem")).unwrap();
        };
        own.take_over(|_| {
            renew();
            Ok(Vec::new())
        })
        .unwrap();
        assert_ne!(own.print(), own.seen, "the next look finds another one");
        own.take_over(|_| Ok(Vec::new())).unwrap();
        assert_eq!(own.print(), own.seen);
    }
}
