//! `utsuwa trust`: has this machine trust the local authority of the served domain, or not any more.
//!
//! Owns: the places where Linux distributions keep authorities, and the databases of Chromium and Firefox. The authority itself
//! is the server's ([`utsuwa_ingress::tls`]); it may sign for the served domain alone, so trusting it concerns no other site.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use utsuwa_ingress::tls::CERTIFICATE_FILE;

use crate::client::Failure;
use crate::output::{line, note};

#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// Undo it.
    #[arg(long)]
    remove: bool,
    /// Print the certificate (PEM) and change nothing.
    #[arg(long, conflicts_with = "remove")]
    print: bool,
    /// Data directory of the server; default: the configured one.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// A place where a distribution keeps authorities: the folder, the file's ending, and what makes them known.
struct Store {
    folder: &'static str,
    command: &'static [&'static str],
}

/// In this order: the first folder that is there is the machine's.
const STORES: [Store; 3] = [
    // Debian, Ubuntu, Alpine
    Store {
        folder: "/usr/local/share/ca-certificates",
        command: &["update-ca-certificates"],
    },
    // Fedora, RHEL
    Store {
        folder: "/etc/pki/ca-trust/source/anchors",
        command: &["update-ca-trust", "extract"],
    },
    // Arch
    Store {
        folder: "/etc/ca-certificates/trust-source/anchors",
        command: &["update-ca-trust"],
    },
];

pub(crate) fn run(args: &TrustArgs) -> Result<(), Failure> {
    let data = match &args.data_dir {
        Some(data) => data.clone(),
        None => super::configured_data_dir(None)?,
    };
    let path = data.join("keys").join(CERTIFICATE_FILE);
    let pem = std::fs::read_to_string(&path).map_err(|error| {
        let failure = Failure::failed(format!("read {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                failure.hint("only root and the server's user may: sudo utsuwa trust")
            }
            _ => failure.hint("the authority is made at the first `utsuwa up`; --data-dir names another server's directory"),
        }
    })?;
    if args.print {
        line(pem.trim_end());
        return Ok(());
    }
    let name = name(&data);
    let mut done = system(&name, &pem, args.remove)?;
    done += databases(&name, &path, args.remove)?;
    if done == 0 {
        note("nothing was changed: it was as asked for already");
    }
    if !args.remove {
        note(
            "programs that bring authorities of their own (Java, Python's requests, Node) must be told: utsuwa trust --print",
        );
    }
    Ok(())
}

/// What it is called in a store: two servers of one machine have one each.
fn name(data: &Path) -> String {
    let id = std::fs::read_to_string(data.join("id")).unwrap_or_default();
    let id: String = id
        .trim()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(16)
        .collect();
    format!("utsuwa-{id}")
}

/// The machine's own store: what curl, wget and most programs look into.
fn system(name: &str, pem: &str, remove: bool) -> Result<usize, Failure> {
    let Some(store) = STORES.iter().find(|s| Path::new(s.folder).is_dir()) else {
        note(
            "this machine has no store of authorities that is known here (Debian's, Fedora's or Arch's): it was left out",
        );
        return Ok(0);
    };
    let file = Path::new(store.folder).join(format!("{name}.crt"));
    let there = std::fs::read_to_string(&file).ok();
    let changed = |result: std::io::Result<()>, what: &str| {
        result.map_err(|error| {
            Failure::failed(format!("{what} {}: {error}", file.display()))
                .hint("the store is root's: sudo utsuwa trust")
        })
    };
    match (remove, there) {
        (true, None) => return Ok(0),
        (false, Some(same)) if same == pem => return Ok(0),
        (true, Some(_)) => changed(std::fs::remove_file(&file), "remove")?,
        (false, _) => changed(std::fs::write(&file, pem), "write")?,
    }
    let (program, arguments) = (store.command[0], &store.command[1..]);
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            Failure::failed(format!("run {program}: {error}"))
                .hint("install the package ca-certificates and repeat the command")
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::failed(format!("{program} failed: {said}")));
    }
    let verb = if remove { "removed" } else { "installed" };
    line(&format!("{verb} {} ({program})", file.display()));
    Ok(1)
}

/// Chromium's database of this user, and Firefox's of each profile.
fn databases(name: &str, pem: &Path, remove: bool) -> Result<usize, Failure> {
    let Some(home) = crate::environment::variable("HOME").map(PathBuf::from) else {
        return Ok(0);
    };
    let found = nss(&home);
    if found.is_empty() {
        return Ok(0);
    }
    let certutil = |database: &Path, arguments: &[&str]| {
        Command::new("certutil")
            .arg("-d")
            .arg(format!("sql:{}", database.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    let mut done = 0;
    for database in found {
        let there = match certutil(&database, &["-L", "-n", name]) {
            Ok(status) => status.success(),
            Err(_) => {
                note(&format!(
                    "hint: {} was left out: its browser is told by certutil (package libnss3-tools)",
                    database.display()
                ));
                continue;
            }
        };
        if there != remove {
            continue;
        }
        let file = pem.to_string_lossy();
        let arguments: &[&str] = if remove {
            &["-D", "-n", name]
        } else {
            &["-A", "-n", name, "-t", "C,,", "-i", &file]
        };
        let ok = certutil(&database, arguments).is_ok_and(|status| status.success());
        if !ok {
            return Err(Failure::failed(format!(
                "certutil could not change {}",
                database.display()
            )));
        }
        done += 1;
        let verb = if remove {
            "removed from"
        } else {
            "installed in"
        };
        line(&format!("{verb} {}", database.display()));
    }
    Ok(done)
}

/// The folders below `home` that hold such a database.
fn nss(home: &Path) -> Vec<PathBuf> {
    let is_database = |folder: &PathBuf| folder.join("cert9.db").is_file();
    let mut found = vec![home.join(".pki/nssdb")];
    for profiles in [
        ".mozilla/firefox",
        "snap/firefox/common/.mozilla/firefox",
        ".var/app/org.mozilla.firefox/.mozilla/firefox",
    ] {
        let entries = std::fs::read_dir(home.join(profiles));
        found.extend(entries.into_iter().flatten().flatten().map(|e| e.path()));
    }
    found.retain(is_database);
    found
}

/// Whether this machine's own store has the authority of the server in `data`, for `utsuwa doctor`.
pub(super) fn is_trusted(data: &Path) -> Option<bool> {
    let pem = std::fs::read_to_string(data.join("keys").join(CERTIFICATE_FILE)).ok()?;
    let store = STORES.iter().find(|s| Path::new(s.folder).is_dir())?;
    let file = Path::new(store.folder).join(format!("{}.crt", name(data)));
    Some(std::fs::read_to_string(file).is_ok_and(|there| there == pem))
}
