//! What options name on this machine outside the data directory, looked at before anything is started.
//!
//! Owns: the checks that `up` and `config check` share, so that both say the same. Deliberately not here: what only a start can
//! know (ports that are taken, programs it needs), and the data directory itself (`ahead`).
//!
//! Invariants: 1. Nothing is made or changed. 2. Files that the server reads are read as its user.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, bail};
use utsuwa_model::host_dir::HostDir;
use utsuwa_runtime::privilege::{self, ServerUser};
use utsuwa_runtime::sandbox::host_dirs;

use super::Refusal;
use super::ahead::{self, Found, Look};
use crate::config::Config;

/// For the server's user, whose rights are not those of who wrote the file.
const READABLE: &str = "the server's user must be able to read these files (chgrp, chmod g+r)";

/// What a start would be refused for.
#[derive(Debug)]
pub(crate) struct Problem {
    pub message: String,
    /// What to do about it, where that isn't plain.
    pub hint: Option<&'static str>,
    /// Who looked may not look: the server's user, or root, perhaps may.
    pub denied: bool,
}

impl From<Problem> for anyhow::Error {
    fn from(problem: Problem) -> Self {
        match problem.hint {
            Some(hint) => Refusal::new(problem.message, hint),
            None => Self::msg(problem.message),
        }
    }
}

/// # Errors
/// The first of them.
pub(super) fn check(config: &Config, user: &ServerUser) -> anyhow::Result<()> {
    problems(config, user)?
        .into_iter()
        .next()
        .map_or(Ok(()), |problem| Err(problem.into()))
}

/// All that a start with `config` would be refused for by whoever asks.
///
/// # Errors
/// The server's user can't be found, or the registry credentials or another file not be looked at.
pub(crate) fn all(config: &Config) -> anyhow::Result<Vec<Problem>> {
    super::prepare::docker_config(config)?;
    let user = match privilege::is_root() {
        true => privilege::find_user(&config.user).context("find the server's user")?,
        false => privilege::server_of_user(),
    };
    problems(config, &user)
}

fn problems(config: &Config, user: &ServerUser) -> anyhow::Result<Vec<Problem>> {
    let rules = config.host_dirs.iter();
    let mut problems: Vec<Problem> = rules
        .filter_map(|rule| host_dir(rule, &config.data_dir).err())
        .collect();
    let authority = config.acme.as_ref().and_then(|acme| acme.root.clone());
    let files = [
        (
            "certificates-file",
            config.certificates_file.clone().map(Look::Certificates),
        ),
        ("acme-ca-file", authority.map(Look::AcmeAuthority)),
    ];
    for (option, look) in files {
        let Some(look) = look else { continue };
        match ahead::of_user(user, look).with_context(|| option)? {
            Found::Wrong(what) => problems.push(refused(option, &what.join("\n"), false)),
            Found::Denied(what) => problems.push(refused(option, &what.join("\n"), true)),
            Found::Unknown(why) => bail!("{option}: {why}"),
            Found::Nothing | Found::MadeFor(_) => {}
        }
    }
    Ok(problems)
}

/// What is wrong with the file of `option`.
pub(super) fn refused(option: &str, what: &str, denied: bool) -> Problem {
    Problem {
        message: format!("{option}: {what}"),
        hint: denied.then_some(READABLE),
        denied,
    }
}

/// What can be told at once, and not by the first service that wants it.
fn host_dir(rule: &HostDir, data_dir: &Path) -> Result<(), Problem> {
    let refuse = |why: &str, hint| {
        Err(Problem {
            message: format!("--allow-host-dir {rule}: {why}"),
            hint: Some(hint),
            denied: false,
        })
    };
    if let Ok(real) = std::fs::canonicalize(&rule.path)
        && real != Path::new(&rule.path)
    {
        return refuse(
            &format!("links lead from there to {}", real.display()),
            "name that directory itself, if it is what services may see",
        );
    }
    match host_dirs::owner(rule) {
        Err(error) => refuse(&error.to_string(), "make it, or leave the rule out").map_err(
            |problem: Problem| Problem {
                denied: error.kind() == ErrorKind::PermissionDenied,
                ..problem
            },
        ),
        Ok((0, _)) if rule.writable => refuse(
            "it belongs to root, and what a service writes there would too",
            "give it to a user for it (chown), or let services only read it (:ro)",
        ),
        Ok(_) if rule.overlaps(&data_dir.to_string_lossy()) => refuse(
            &format!("the data directory {} is there", data_dir.display()),
            "name a directory beside it",
        ),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use utsuwa_ingress::tls::Authority;

    use super::*;

    fn told(look: Look) -> Found {
        look.answer()
    }

    #[test]
    fn a_hint_about_rights_is_for_who_lacks_them() {
        let of = |denied| refused("certificates-file", "/c.toml: read it: why", denied);
        assert_eq!(of(true).hint, Some(READABLE));
        assert_eq!(of(false).hint, None);
        assert_eq!(
            of(false).message,
            "certificates-file: /c.toml: read it: why"
        );
    }

    #[test]
    fn the_file_of_an_authority_is_read_before_it_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let wrong = |path: PathBuf| match told(Look::AcmeAuthority(path)) {
            Found::Wrong(what) => what.join("\n"),
            other => panic!("{other:?}"),
        };
        let none = wrong(at("none.pem"));
        assert!(none.contains("none.pem: No such file"), "{none}");
        std::fs::write(at("text.pem"), "no certificate").unwrap();
        let text = wrong(at("text.pem"));
        assert!(text.contains("BEGIN CERTIFICATE"), "{text}");
        Authority::load_or_make(folder.path(), "localhost").unwrap();
        let own = at(utsuwa_ingress::tls::CERTIFICATE_FILE);
        assert_eq!(told(Look::AcmeAuthority(own)), Found::Nothing);
    }

    #[test]
    fn a_directory_that_is_not_there_can_not_be_shown() {
        let folder = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(folder.path()).unwrap();
        std::fs::set_permissions(&real, PermissionsExt::from_mode(0o755)).unwrap();
        let rule = |path: &Path| path.display().to_string().parse::<HostDir>().unwrap();
        let data = Path::new("/var/lib/elsewhere");
        assert!(host_dir(&rule(&real), data).is_ok());
        let problem = host_dir(&rule(&real.join("none")), data).unwrap_err();
        assert!(problem.message.contains("No such file"), "{problem:?}");
        assert!(!problem.denied);
    }
}
