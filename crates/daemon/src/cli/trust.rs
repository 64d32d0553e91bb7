//! `utsuwa trust`: has this machine trust the local authority of the served domain, or not any more.
//!
//! Owns: the places where Linux distributions keep authorities, and the databases of Chromium and Firefox. The authority itself
//! is the server's ([`utsuwa_ingress::tls`]); it may sign for the served domain alone, so trusting it concerns no other site.
//! Root runs this over a folder of the server's user: nothing is followed there, and nothing else than such an authority is
//! printed or installed.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use utsuwa_ingress::tls::CERTIFICATE_FILE;

use super::ClientArgs;
use super::words::shell_quote;
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
    /// Data directory of the server; default: the configured one, which must be the running server's.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The only domain that the authority may sign for; default: the configured one.
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
}

/// How the names of all begin in a store.
const PREFIX: &str = "utsuwa-";
/// Many times what it has.
const LARGEST: u64 = 64 << 10;
const NOT_ITS_OWN: &str = "nothing was changed. No server of this kind makes such an authority: somebody else may have put it there, so find out who; \
     with services-ca.pem and services-ca-key.pem removed the next `utsuwa up` makes another one";

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

impl Store {
    fn file(&self, name: &str) -> PathBuf {
        Path::new(self.folder).join(format!("{name}.crt"))
    }

    /// The files of servers of this kind in it.
    fn ours(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder).into_iter().flatten();
        let names = files
            .flatten()
            .map(|file| file.file_name().to_string_lossy().into_owned());
        let mut ours: Vec<String> = names
            .filter(|name| name.starts_with(PREFIX) && name.ends_with(".crt"))
            .collect();
        ours.sort();
        ours
    }
}

/// This machine's store, if it has a known one.
fn store() -> Option<&'static Store> {
    STORES.iter().find(|store| Path::new(store.folder).is_dir())
}

pub(crate) fn run(args: &TrustArgs, client: &ClientArgs) -> Result<(), Failure> {
    let data = match named(args) {
        Some(data) => data,
        None => {
            let running = super::doctor::running_data_dir(client);
            chosen(super::configured(None)?.data_dir, running, &again(args))?
        }
    };
    if args.remove {
        let name = name(&data)?;
        return told(&name, system(&name, None)? + databases(&name, None)?, false);
    }
    let domain = match &args.domain {
        Some(domain) => domain.clone(),
        None => super::configured(None)?.domain,
    };
    let pem = authority(&data, &domain, &again(args))?;
    if args.print {
        line(pem.trim_end());
        return Ok(());
    }
    let name = name(&data)?;
    let done = system(&name, Some(&pem))? + databases(&name, Some(&pem))?;
    told(&name, done, true)?;
    note(
        "programs that bring authorities of their own (Java, Python's requests, Node) must be told: utsuwa trust --print",
    );
    Ok(())
}

/// The directory that was named, by flag or by variable: that is meant, whatever runs.
fn named(args: &TrustArgs) -> Option<PathBuf> {
    let variable = || crate::environment::variables(std::iter::once("data-dir"));
    let variable = || variable().into_values().next().map(PathBuf::from);
    args.data_dir.clone().or_else(variable)
}

/// The configured directory, unless the server that answers has another, which `utsuwa doctor` speaks of. That one isn't taken without
/// being named: while no server runs, anybody may answer in its place, and root would install what they like.
fn chosen(configured: PathBuf, running: Option<PathBuf>, again: &str) -> Result<PathBuf, Failure> {
    let same = |one: &Path, other: &Path| {
        one == other
            || one
                .canonicalize()
                .is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
    };
    let Some(running) = running.filter(|running| !same(running, &configured)) else {
        return Ok(configured);
    };
    let quoted = |dir: &Path| shell_quote(&dir.display().to_string());
    Err(Failure::usage(format!(
        "nothing was changed: the server that answers has its data in {}, and the configuration here names {}",
        running.display(),
        configured.display()
    ))
    .hint(format!(
        "say which is meant: {again} --data-dir {} or {again} --data-dir {}",
        quoted(&running),
        quoted(&configured)
    )))
}

/// What is to be typed once more, without the domain.
fn again(args: &TrustArgs) -> String {
    let mut command = "utsuwa trust".to_owned();
    if args.print {
        command.push_str(" --print");
    }
    if args.remove {
        command.push_str(" --remove");
    }
    if let Some(data) = &args.data_dir {
        let data = shell_quote(&data.display().to_string());
        command.push_str(&format!(" --data-dir {data}"));
    }
    command
}

/// Says so when nothing was to be done, and what was looked for: it may be another server's.
fn told(name: &str, done: usize, wanted: bool) -> Result<(), Failure> {
    if done > 0 {
        return Ok(());
    }
    let file = store().map_or_else(
        || format!("this machine's store of {name}"),
        |store| store.file(name).display().to_string(),
    );
    if wanted {
        note(&format!(
            "nothing was changed: {file} and each browser's database that was looked at have it already"
        ));
        return Ok(());
    }
    note(&format!(
        "nothing was changed: there is no {file}, and no browser's database that was looked at has {name}"
    ));
    let others = store().map(Store::ours).unwrap_or_default();
    if !others.is_empty() {
        note(&format!(
            "hint: the store has {} of other servers; --data-dir names the directory of the one that is meant",
            others.join(", ")
        ));
    }
    Ok(())
}

/// The authority of the server in `data` (PEM), which signs below `domain` alone. Its folder is the server's own, and strangers
/// speak to the server: what lies there is believed only as far as it was looked at. `again` is the command, for hints.
fn authority(data: &Path, domain: &str, again: &str) -> Result<String, Failure> {
    let path = data.join(file()).display().to_string();
    let pem = read(data, &file()).map_err(|error| {
        let failure = Failure::failed(format!("read {path}: {error}"));
        match error.kind() {
            ErrorKind::PermissionDenied => failure.hint(format!(
                "only root and the server's user may: sudo {again}"
            )),
            ErrorKind::NotFound => failure.hint("the authority is made at the first `utsuwa up`; --data-dir names another server's directory"),
            _ => failure.hint(NOT_ITS_OWN),
        }
    })?;
    let found = utsuwa_ingress::tls::domain_of(&pem)
        .map_err(|why| Failure::failed(format!("{path}: {why}")).hint(NOT_ITS_OWN))?;
    if found == domain {
        return Ok(pem);
    }
    Err(Failure::failed(format!(
        "{path}: it signs for {found:?}, not for {domain:?}"
    ))
    .hint(format!(
        "if that is the domain that you have this server serve: {again} --domain {}",
        shell_quote(&found)
    )))
}

/// The authority's certificate below the data directory.
fn file() -> PathBuf {
    Path::new("keys").join(CERTIFICATE_FILE)
}

/// What lies at `file` below `data`, which is one file and no link to another.
fn read(data: &Path, file: &Path) -> std::io::Result<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(data, flags, Mode::empty())?;
    // A pipe there would be waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file =
        rustix::fs::openat2(&folder, file, flags, Mode::empty(), resolve).map_err(|error| {
            match error {
                Errno::LOOP | Errno::XDEV => {
                    std::io::Error::other("there is a link on the way to it")
                }
                error => error.into(),
            }
        })?;
    let file = std::fs::File::from(file);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// What it is called in a store: two servers of one machine have one each.
fn name(data: &Path) -> Result<String, Failure> {
    let path = data.join("id").display().to_string();
    let id = read(data, Path::new("id")).map_err(|error| {
        let failure = Failure::failed(format!(
            "read {path}, after which the authority is named where it is installed: {error}"
        ));
        match error.kind() {
            ErrorKind::PermissionDenied => failure.hint("repeat the command with sudo"),
            _ => failure.hint(no_such_server()),
        }
    })?;
    let id: String = id
        .trim()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(16)
        .collect();
    if id.is_empty() {
        return Err(Failure::failed(format!(
            "{path}, after which the authority is named where it is installed, holds no id"
        ))
        .hint(no_such_server()));
    }
    Ok(format!("{PREFIX}{id}"))
}

/// What to do where a data directory is another one or gone.
fn no_such_server() -> String {
    let mut hint = "--data-dir DIR names the server's data directory".to_owned();
    if let Some(store) = store().filter(|store| !store.ours().is_empty()) {
        hint.push_str(&format!(
            "; once that is gone, its authority is removed by hand: {} in {}, then run {}",
            store.ours().join(" or "),
            store.folder,
            store.command.join(" ")
        ));
    }
    hint
}

/// The machine's own store: what curl, wget and most programs look into. `None`: without the authority.
fn system(name: &str, pem: Option<&str>) -> Result<usize, Failure> {
    let Some(store) = store() else {
        note(
            "this machine has no store of authorities that is known here (Debian's, Fedora's or Arch's): it was left out",
        );
        return Ok(0);
    };
    let file = store.file(name);
    let there = std::fs::read_to_string(&file).ok();
    let changed = |result: std::io::Result<()>, what: &str| {
        result.map_err(|error| {
            Failure::failed(format!("{what} {}: {error}", file.display()))
                .hint("the store is root's: repeat the command with sudo")
        })
    };
    match (pem, there) {
        (None, None) => return Ok(0),
        (Some(pem), Some(same)) if same == pem => return Ok(0),
        (None, Some(_)) => changed(std::fs::remove_file(&file), "remove")?,
        (Some(pem), _) => changed(std::fs::write(&file, pem), "write")?,
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
    let verb = pem.map_or("removed", |_| "installed");
    line(&format!("{verb} {} ({program})", file.display()));
    Ok(1)
}

/// Chromium's database of this user, and Firefox's of each profile. `None`: without the authority.
fn databases(name: &str, pem: Option<&str>) -> Result<usize, Failure> {
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
    // What was looked at, and not whatever lies in the server's folder by now.
    let file = pem.map(copy).transpose()?;
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
        if there == file.is_some() {
            continue;
        }
        let arguments: Vec<&str> = match &file {
            None => vec!["-D", "-n", name],
            Some(file) => {
                let path = file.path().to_str().unwrap_or_default();
                vec!["-A", "-n", name, "-t", "C,,", "-i", path]
            }
        };
        let ok = certutil(&database, &arguments).is_ok_and(|status| status.success());
        if !ok {
            return Err(Failure::failed(format!(
                "certutil could not change {}",
                database.display()
            )));
        }
        done += 1;
        let verb = file.as_ref().map_or("removed from", |_| "installed in");
        line(&format!("{verb} {}", database.display()));
    }
    Ok(done)
}

fn copy(pem: &str) -> Result<tempfile::NamedTempFile, Failure> {
    let written = tempfile::NamedTempFile::new()
        .and_then(|mut file| file.write_all(pem.as_bytes()).map(|()| file));
    written.map_err(|error| {
        Failure::failed(format!("write the certificate for certutil: {error}"))
            .hint("TMPDIR names another folder for it")
    })
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
    let pem = read(data, &file()).ok()?;
    let file = store()?.file(&name(data).ok()?);
    Some(std::fs::read_to_string(file).is_ok_and(|there| there == pem))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use utsuwa_ingress::tls::Authority;

    use super::*;

    const AGAIN: &str = "utsuwa trust --data-dir '/my data'";

    /// A data directory with the authority of `example.org`.
    fn data() -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        Authority::load_or_make(&data.path().join("keys"), "example.org").unwrap();
        data
    }

    #[test]
    fn the_authority_of_the_served_domain_alone_is_taken() {
        let data = data();
        let pem = authority(data.path(), "example.org", AGAIN).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
        let other = authority(data.path(), "localhost", AGAIN).unwrap_err();
        let said = other.to_string();
        assert!(
            said.contains("example.org") && said.contains("localhost"),
            "{said}"
        );
        let hint = other.hint.unwrap();
        assert!(
            hint.ends_with("utsuwa trust --data-dir '/my data' --domain example.org"),
            "{hint}"
        );
        std::fs::write(data.path().join(file()), "root:$6$secret:19000::::::\n").unwrap();
        let said = authority(data.path(), "example.org", AGAIN)
            .unwrap_err()
            .to_string();
        assert!(!said.contains("secret"), "{said}");
    }

    /// Or another authority would be installed than the one that was looked at. Both name the running server's.
    #[test]
    fn doctor_and_trust_mean_the_same_directory() {
        let (one, other) = (data(), data());
        let dir = |data: &tempfile::TempDir| data.path().to_owned();
        let running = Some(dir(&other));
        let looked_at = super::super::doctor::looked_at(None, running.clone());
        let refused = chosen(dir(&one), running, "utsuwa trust").unwrap_err();
        assert_eq!(refused.status, 2);
        let named = format!("utsuwa trust --data-dir {}", looked_at.display());
        let hint = refused.hint.unwrap();
        assert!(hint.contains(&named), "{named} in {hint}");
        assert!(hint.contains(&one.path().display().to_string()), "{hint}");

        // Where there is nothing to choose, it is the one.
        let link = one.path().join("link");
        symlink(other.path(), &link).unwrap();
        for (configured, running) in [
            (dir(&one), None),
            (dir(&one), Some(dir(&one))),
            (link, Some(dir(&other))),
        ] {
            let chosen = chosen(configured.clone(), running, "utsuwa trust").unwrap();
            assert_eq!(chosen, configured);
        }
    }

    /// Or another authority would be looked for than the one that is installed.
    #[test]
    fn without_an_id_nothing_is_looked_for() {
        let data = data();
        let refused = |data: &Path| {
            let failure = name(data).unwrap_err();
            let path = data.join("id").display().to_string();
            assert!(failure.message.contains(&path), "{failure}");
            assert!(failure.hint.unwrap().contains("--data-dir"));
        };
        refused(&data.path().join("gone"));
        refused(data.path());
        for empty in ["", " \n", "--\n"] {
            std::fs::write(data.path().join("id"), empty).unwrap();
            refused(data.path());
        }
        std::fs::write(data.path().join("id"), "4a5b-6c7d\n").unwrap();
        assert_eq!(name(data.path()).unwrap(), "utsuwa-4a5b6c7d");
    }

    /// Of the file, and of the folder.
    #[test]
    fn links_are_refused() {
        let (one, other) = (data(), data());
        let path = one.path().join(file());
        std::fs::remove_file(&path).unwrap();
        symlink(other.path().join(file()), &path).unwrap();
        let refused = |data: &Path| {
            let said = authority(data, "example.org", AGAIN)
                .unwrap_err()
                .to_string();
            assert!(said.contains("link"), "{said}");
        };
        refused(one.path());
        std::fs::remove_dir_all(one.path().join("keys")).unwrap();
        symlink(other.path().join("keys"), one.path().join("keys")).unwrap();
        refused(one.path());
        // Where the data directory lies is the operator's choice.
        let link = one.path().join("link");
        symlink(other.path(), &link).unwrap();
        authority(&link, "example.org", AGAIN).unwrap();
    }
}
