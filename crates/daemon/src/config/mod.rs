//! The server's configuration: built-in defaults < one TOML file < environment (`UTSUWA_`) < flags.
//!
//! Owns: reading the sources and checking everything before any socket opens, all problems at once.
//! Deliberately not: a process-wide current configuration; each part of the server gets its own values.
//!
//! Invariants: 1. A [`Config`] that exists is valid. 2. Every value knows where it came from ([`Layers::source`]).

mod edge;
mod file;
pub(crate) mod frozen;
mod https;
mod options;
mod parse;
mod registries;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use utsuwa_ingress::IngressSettings;
use utsuwa_ingress::tls::acme::AcmeSettings;
use utsuwa_model::domain::PublicAddress;
use utsuwa_model::host_dir::HostDir;
use utsuwa_model::{ProjectId, Region};

pub(crate) use options::{OPTIONS, OptionDoc, variable};
pub(crate) use parse::duration;
pub(crate) use registries::Registries;

/// Where a value came from, for `config show` and error texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Default,
    /// Path and line.
    File(PathBuf, usize),
    Variable(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "file {}, line {line}", path.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// All options as text, each with its source; not yet checked.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    values: BTreeMap<&'static str, (Vec<String>, Source)>,
    /// What is wrong with the file, apart from the values above.
    problems: Vec<Problem>,
}

/// What is wrong, in a sentence, and in which line of the file.
type Problem = (Option<usize>, String);

/// What is wrong with the configuration: every problem, each naming its option and source.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem{}:\n{}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.join("\n"))]
pub(crate) struct ConfigError(pub Vec<String>);

/// An address to listen on. `localhost` means 127.0.0.1 and ::1 (decision 12).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    pub host: String,
    pub port: u16,
}

impl Listen {
    /// The addresses to bind, both loopbacks for `localhost`.
    pub(crate) fn addresses(&self) -> Vec<std::net::SocketAddr> {
        use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
        match self.host.as_str() {
            "localhost" => vec![
                SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port),
                SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), self.port),
            ],
            host => host
                .parse()
                .map(|ip| SocketAddr::new(ip, self.port))
                .into_iter()
                .collect(),
        }
    }

    /// Whether nothing outside this machine can reach it.
    pub(crate) fn is_loopback(&self) -> bool {
        self.addresses().iter().all(|a| a.ip().is_loopback())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub data_dir: PathBuf,
    pub listen_api: Listen,
    pub listen_http: Listen,
    /// `None`: no HTTPS.
    pub listen_https: Option<Listen>,
    /// Nobody asked for that address.
    pub https_by_default: bool,
    /// The certificate authority that is asked for certificates of domains.
    pub acme: Option<AcmeSettings>,
    /// Certificates of the operator's own.
    pub certificates_file: Option<PathBuf>,
    /// As configured; empty: found out.
    pub public_address: PublicAddress,
    /// Plain HTTP from outside is sent to HTTPS.
    pub https_redirect: bool,
    pub domain: String,
    pub project: ProjectId,
    pub region: Region,
    pub idle_timeout: Duration,
    pub drain_timeout: Duration,
    pub allow_egress: Vec<String>,
    pub host_dirs: Vec<HostDir>,
    pub insecure_registries: Vec<String>,
    pub image_rewrites: Vec<(String, String)>,
    pub docker_config: Option<PathBuf>,
    pub registries: Registries,
    pub log_budget: u64,
    pub disk_reserve: u64,
    pub memory_reserve: u64,
    /// What the operator said of the data path; the rest is the default.
    pub ingress: IngressSettings,
    pub user: String,
    pub log_format: String,
    pub log_level: String,
}

/// What the environment and the command line say. Read in `main` and nowhere else.
#[derive(Debug, Default, Clone)]
pub(crate) struct Given {
    pub file: Option<PathBuf>,
    pub variables: BTreeMap<String, String>,
    /// Defaults that depend on who asks, by option.
    pub defaults: BTreeMap<&'static str, String>,
    /// Option name → values, as given by flags.
    pub flags: BTreeMap<&'static str, Vec<String>>,
}

impl Layers {
    /// Reads all sources.
    ///
    /// # Errors
    /// The file can't be read. What else is wrong with it is told by [`Self::check`], together with all other problems.
    pub(crate) fn read(given: &Given) -> Result<Self, ConfigError> {
        let mut values: BTreeMap<&'static str, (Vec<String>, Source)> = OPTIONS
            .iter()
            .map(|o| {
                let default = given.defaults.get(o.name).map_or(o.default, String::as_str);
                (o.name, (file::split_list(o, default), Source::Default))
            })
            .collect();
        let mut problems = Vec::new();
        if let Some(path) = &given.file {
            let (options, wrong) = file::read(path)?;
            problems = wrong;
            for (option, value, line) in options {
                values.insert(option.name, (value, Source::File(path.clone(), line)));
            }
        }
        for option in OPTIONS {
            let name = variable(option.name);
            if let Some(value) = given.variables.get(&name) {
                values.insert(
                    option.name,
                    (file::split_list(option, value), Source::Variable(name)),
                );
            }
            if let Some(value) = given.flags.get(option.name) {
                values.insert(
                    option.name,
                    (value.clone(), Source::Flag(options::flag(option.name))),
                );
            }
        }
        Ok(Self { values, problems })
    }

    /// Option, value and source, in the order of the reference page.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static OptionDoc, &[String], &Source)> {
        OPTIONS.iter().filter_map(|o| {
            self.values
                .get(o.name)
                .map(|(value, source)| (o, value.as_slice(), source))
        })
    }

    /// The same for people and programs.
    pub(crate) fn rows(&self) -> Vec<serde_json::Value> {
        self.iter()
            .map(|(option, value, source)| {
                serde_json::json!({
                    "option": option.name,
                    "value": value.join(","),
                    "source": source.to_string(),
                    "variable": variable(option.name),
                    "default": option.default,
                    "since": option.since,
                    "meaning": option.doc,
                })
            })
            .collect()
    }

    /// The value of `name` as one string.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.values
            .get(name)
            .and_then(|(v, _)| v.first())
            .map_or("", String::as_str)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// All problems at once.
    pub(crate) fn check(&self) -> Result<Config, ConfigError> {
        parse::check(self)
    }

    fn list(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], |(v, _)| v.as_slice())
    }

    pub(crate) fn source(&self, name: &str) -> &Source {
        self.values.get(name).map_or(&Source::Default, |(_, s)| s)
    }
}

/// The default place of the configuration file; it need not exist.
pub(crate) fn default_file() -> PathBuf {
    user_folder("XDG_CONFIG_HOME", ".config")
        .unwrap_or_else(|| PathBuf::from("/etc"))
        .join("utsuwa/config.toml")
}

/// What an ordinary user's server uses where nothing is said: root's directories are closed to it.
pub(crate) fn defaults() -> BTreeMap<&'static str, String> {
    user_folder("XDG_DATA_HOME", ".local/share")
        .map(|folder| ("data-dir", folder.join("utsuwa").display().to_string()))
        .into_iter()
        .collect()
}

/// A folder of the user who runs this; none for root.
fn user_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    if utsuwa_runtime::privilege::is_root() {
        return None;
    }
    let named = crate::environment::variable(variable).map(PathBuf::from);
    let home =
        || crate::environment::variable("HOME").map(|home| Path::new(&home).join(below_home));
    named.filter(|path| path.is_absolute()).or_else(home)
}

#[cfg(test)]
mod tests;
