//! The file of the option `registries-file`: how the operator's registries are opened, one table for each.
//!
//! ```toml
//! ["registry.example.com:5000"]
//! username = "deploy"
//! password-file = "/etc/utsuwa/registry-password"   # or password = "…"
//! ca-file = "/etc/utsuwa/registry-ca.pem"
//! ```
//!
//! Invariants: 1. No secret stands in an error, and none is shown by `config show`, which has the file's path only. 2. A file
//! with a secret that everybody may read is refused.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use utsuwa_runtime::image::Credential;

use super::file::line_of;

/// What the file says, with all files it names read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Registries {
    /// By registry, or registry and the beginning of a repository.
    pub credentials: BTreeMap<String, Credential>,
    /// PEM texts by registry.
    pub authorities: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

/// Reads the file and those it names. As root: the server's user has no right to them.
pub(super) fn read(path: &Path) -> Result<Registries, Vec<String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| vec![format!("{}: read it: {error}", path.display())])?;
    // Never an error's whole text: it shows the line, which may hold a password.
    let at_line =
        |at: usize, why: &str| format!("{}, line {}: {why}", path.display(), line_of(&text, at));
    let (document, broken) = toml::de::DeTable::parse_recoverable(&text);
    let mut problems: Vec<String> = broken
        .iter()
        .map(|error| at_line(error.span().map_or(0, |span| span.start), error.message()))
        .collect();
    let mut tables = BTreeMap::new();
    for (name, value) in document.into_inner() {
        let (at, name) = (name.span().start, name.into_inner().into_owned());
        match Table::deserialize(toml::de::ValueDeserializer::from(value)) {
            Ok(table) => {
                tables.insert(name, table);
            }
            Err(error) => {
                let at = error.span().map_or(at, |span| span.start);
                problems.push(at_line(at, error.message()));
            }
        }
    }
    let mut registries = Registries::default();
    for (name, table) in tables {
        let at = |why: String| format!("{}: [{name:?}]: {why}", path.display());
        if let Err(why) = name_is_good(&name, table.ca_file.is_some()) {
            problems.push(at(why));
        }
        match credential(&table, path) {
            Ok(Some(credential)) => {
                registries.credentials.insert(name.clone(), credential);
            }
            Ok(None) => {}
            Err(why) => problems.push(at(why)),
        }
        match table.ca_file.as_deref().map(authority).transpose() {
            Ok(Some(pem)) => {
                registries.authorities.insert(name.clone(), pem);
            }
            Ok(None) => {}
            Err(why) => problems.push(at(why)),
        }
    }
    if problems.is_empty() {
        Ok(registries)
    } else {
        Err(problems)
    }
}

fn name_is_good(name: &str, of_authority: bool) -> Result<(), String> {
    if name.is_empty() || name.contains("://") || name.contains(char::is_whitespace) {
        return Err(
            "must be HOST or HOST:PORT, for a part of a registry HOST/REPOSITORY, without https://"
                .to_owned(),
        );
    }
    if of_authority && name.contains('/') {
        return Err(
            "ca-file is for a whole registry: give it a table named HOST or HOST:PORT".to_owned(),
        );
    }
    Ok(())
}

fn credential(table: &Table, file: &Path) -> Result<Option<Credential>, String> {
    let password = match (&table.password, &table.password_file) {
        (Some(_), Some(_)) => {
            return Err("password and password-file are both given; keep one".to_owned());
        }
        (Some(password), None) => {
            keep_secret(file)?;
            Some(password.clone())
        }
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("password-file {}: {error}", path.display()))?;
            keep_secret(path)?;
            // Editors and `echo` end a file with a line feed.
            Some(text.trim_end_matches(['\n', '\r']).to_owned())
        }
        (None, None) => None,
    };
    match (&table.username, password) {
        (Some(username), Some(password)) => Ok(Some(Credential::Password {
            username: username.clone(),
            password,
        })),
        (None, None) if table.ca_file.is_some() => Ok(None),
        (None, None) => Err("names neither a username nor a ca-file".to_owned()),
        (Some(_), None) => Err("has a username but neither password nor password-file".to_owned()),
        (None, Some(_)) => Err("has a password but no username".to_owned()),
    }
}

fn keep_secret(path: &Path) -> Result<(), String> {
    let mode = std::fs::metadata(path)
        .map_err(|error| format!("{}: {error}", path.display()))?
        .mode();
    if mode & 0o004 != 0 {
        return Err(format!(
            "{} holds a password and everybody may read it: chmod 600 {}",
            path.display(),
            path.display()
        ));
    }
    Ok(())
}

fn authority(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("ca-file {}: {error}", path.display()))?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        Ok(text)
    } else {
        Err(format!(
            "ca-file {}: holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)",
            path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// The text as a file of mode `mode`, in a folder that holds a password and a certificate.
    fn from(text: &str, mode: u32) -> Result<Registries, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        write("password", "hunter2\n", 0o600);
        write("open", "hunter2\n", 0o644);
        write("ca.pem", "-----BEGIN CERTIFICATE-----\n", 0o644);
        let text = text.replace("DIR", &folder.path().display().to_string());
        read(&write("registries.toml", &text, mode))
    }

    #[test]
    fn a_table_opens_a_registry() {
        let registries = from(
            "[\"r.test:5000\"]\nusername = 'me'\npassword-file = 'DIR/password'\nca-file = 'DIR/ca.pem'\n\
             [\"r.test:5000/team\"]\nusername = 'team'\npassword = 'x'\n[other]\nca-file = 'DIR/ca.pem'",
            0o600,
        )
        .unwrap();
        let of = |username: &str, password: &str| Credential::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        };
        assert_eq!(registries.credentials["r.test:5000"], of("me", "hunter2"));
        assert_eq!(registries.credentials["r.test:5000/team"], of("team", "x"));
        let authorities: Vec<&String> = registries.authorities.keys().collect();
        assert_eq!(authorities, ["other", "r.test:5000"]);
        assert!(!format!("{registries:?}").contains("hunter2"));
    }

    #[test]
    fn all_tables_are_looked_at() {
        let said = from(
            "[r]\npasword = 'hunter2'\n[q]\nusername = 'me'\n[\"https://p\"]\nca-file = 'DIR/ca.pem'",
            0o600,
        )
        .unwrap_err();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("line 2") && said[0].contains("pasword"));
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        for (text, mode, part) in [
            ("[r]\nusername = 'me'\npassword = hunter2", 0o600, "line 3"),
            ("[r]\npasword = 'hunter2'", 0o600, "pasword"),
            ("[r]\nusername = 'me'", 0o600, "neither password nor"),
            ("[r]\npassword = 'hunter2'", 0o600, "no username"),
            ("[r]\n", 0o600, "neither a username nor a ca-file"),
            (
                "[r]\nusername = 'me'\npassword = 'hunter2'",
                0o644,
                "chmod 600",
            ),
            (
                "[r]\nusername = 'me'\npassword-file = 'DIR/open'",
                0o644,
                "chmod 600",
            ),
            (
                "[r]\nusername = 'me'\npassword-file = 'DIR/none'",
                0o600,
                "DIR/none",
            ),
            (
                "[r]\nusername='me'\npassword='hunter2'\npassword-file='DIR/password'",
                0o600,
                "keep one",
            ),
            ("[r]\nca-file = 'DIR/password'", 0o600, "no certificate"),
            (
                "[\"https://r\"]\nca-file = 'DIR/ca.pem'",
                0o600,
                "without https://",
            ),
            (
                "[\"r/team\"]\nca-file = 'DIR/ca.pem'",
                0o600,
                "whole registry",
            ),
        ] {
            let said = from(text, mode).unwrap_err().join("\n");
            let part = part.trim_start_matches("DIR");
            assert!(said.contains(part), "{text}: {said}");
            assert!(said.contains("registries.toml"), "names the file: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
