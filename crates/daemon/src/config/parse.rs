//! From the options' texts to checked values. Every problem is kept and told with its option and source.

use std::path::{Path, PathBuf};
use std::time::Duration;

use utsuwa_model::domain::is_host_name;
use utsuwa_model::host_dir::HostDir;
use utsuwa_model::quantity::MemoryBytes;

use super::edge;
use super::https;
use super::registries::{self, Registries};
use super::{Config, ConfigError, Layers, Listen, Problem, Source};

/// Collects problems: all are told at once.
pub(super) struct Checker<'a> {
    pub(super) layers: &'a Layers,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    pub(super) fn wrong(&mut self, name: &str, why: &str) {
        let text = self.layers.list(name).join(",");
        self.problems.push(match self.layers.source(name) {
            // As what can't be read of a file is told, so that an editor finds both.
            Source::File(path, line) => (
                Some(*line),
                format!("{}, line {line}: {name} = {text:?}: {why}", path.display()),
            ),
            source => (None, format!("{name} = {text:?} ({source}): {why}")),
        });
    }

    pub(super) fn parse<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(self.layers.text(name)) {
            Ok(value) => Some(value),
            Err(why) => {
                self.wrong(name, &why);
                None
            }
        }
    }
}

pub(super) fn check(layers: &Layers) -> Result<Config, ConfigError> {
    let mut checker = Checker {
        layers,
        problems: layers.problems.clone(),
    };
    match checker.config() {
        Some(config) if checker.problems.is_empty() => Ok(config),
        _ => Err(ConfigError(in_order(checker.problems))),
    }
}

/// As whoever mends them goes through the file; what was said elsewhere comes after it, in the order of the options.
fn in_order(mut problems: Vec<Problem>) -> Vec<String> {
    problems.sort_by_key(|(line, _)| line.unwrap_or(usize::MAX));
    problems.into_iter().map(|(_, why)| why).collect()
}

impl Checker<'_> {
    /// Every option is looked at before the first that has no value ends it.
    fn config(&mut self) -> Option<Config> {
        let layers = self.layers;
        let data_dir = self.parse("data-dir", absolute);
        let (listen_api, listen_http) = self.addresses();
        let listen_https =
            self.secure_address(&[(&listen_api, "listen-api"), (&listen_http, "listen-http")]);
        let acme = https::acme(self);
        let certificates_file = https::certificates_file(self);
        let public_address = self.parse("public-address", https::public_address);
        let https_redirect = self.https_redirect(&listen_https);
        let domain = self.parse("domain", domain);
        let project = self.parse("project", name);
        let region = self.parse("region", name);
        let idle_timeout = self.parse("idle-timeout", time);
        let drain_timeout = self.parse("drain-timeout", time);
        let log_budget = self.parse("log-budget", bytes);
        let disk_reserve = self.parse("disk-reserve", bytes);
        let memory_reserve = self.parse("memory-reserve", bytes);
        let ingress = edge::edge(self);
        let image_rewrites = self.image_rewrites();
        self.insecure_registries();
        self.allow_egress();
        let host_dirs = self.host_dirs();
        let log_format = self.parse("log-format", log_format);
        let log_level = self.parse("log-level", log_level);
        let registries = self.registries();
        let docker_config = layers.text("docker-config");
        Some(Config {
            data_dir: data_dir?,
            listen_api: listen_api?,
            listen_http: listen_http?,
            listen_https: listen_https?,
            https_by_default: *layers.source("listen-https") == super::Source::Default,
            https_redirect: https_redirect?,
            acme,
            certificates_file,
            public_address: public_address?,
            domain: domain?,
            project: project?,
            region: region?,
            idle_timeout: idle_timeout?,
            drain_timeout: drain_timeout?,
            allow_egress: layers.list("allow-egress").to_vec(),
            host_dirs,
            insecure_registries: layers.list("insecure-registries").to_vec(),
            image_rewrites,
            docker_config: (!docker_config.is_empty()).then(|| PathBuf::from(docker_config)),
            registries,
            log_budget: log_budget?,
            disk_reserve: disk_reserve?,
            memory_reserve: memory_reserve?,
            ingress,
            user: layers.text("user").to_owned(),
            log_format: log_format?,
            log_level: log_level?,
        })
    }

    fn addresses(&mut self) -> (Option<Listen>, Option<Listen>) {
        let api = self.parse("listen-api", listen);
        if let Some(api) = &api
            && !api.is_loopback()
        {
            self.wrong(
                "listen-api",
                "must be a loopback address: the API has no identity check yet; use localhost:PORT",
            );
        }
        let http = self.parse("listen-http", listen);
        if let (Some(api), Some(http)) = (&api, &http)
            && api.port == http.port
            && api.port != 0
        {
            self.wrong("listen-http", "has the same port as listen-api");
        }
        (api, http)
    }

    /// `Some(None)`: HTTPS is switched off.
    fn secure_address(&mut self, others: &[(&Option<Listen>, &str)]) -> Option<Option<Listen>> {
        let https = self.parse("listen-https", |text| match text {
            "" => Ok(None),
            text => listen(text).map(Some),
        });
        if let Some(Some(https)) = &https {
            for (other, name) in others {
                let port = other.as_ref().map_or(0, |other| other.port);
                if port == https.port && port != 0 {
                    self.wrong("listen-https", &format!("has the same port as {name}"));
                }
            }
        }
        https
    }

    fn https_redirect(&mut self, listen_https: &Option<Option<Listen>>) -> Option<bool> {
        let redirect = self.parse("https-redirect", boolean);
        if redirect == Some(true) && *listen_https == Some(None) {
            self.wrong(
                "https-redirect",
                "there is nowhere to send requests to while listen-https is empty",
            );
        }
        redirect
    }

    fn image_rewrites(&mut self) -> Vec<(String, String)> {
        let mut rules = Vec::new();
        for rule in self.layers.list("image-rewrites") {
            match rule.split_once('=') {
                Some((from, to)) if !from.is_empty() && !to.is_empty() && !to.contains('=') => {
                    rules.push((from.to_owned(), to.to_owned()));
                }
                _ => self.wrong("image-rewrites", "each rule is FROM=TO"),
            }
        }
        rules
    }

    fn insecure_registries(&mut self) {
        for registry in self.layers.list("insecure-registries") {
            if registry.contains('/') {
                let why = format!(
                    "{registry:?} can't match: name the registry as image references do, HOST or HOST:PORT"
                );
                self.wrong("insecure-registries", &why);
            }
        }
    }

    fn allow_egress(&mut self) {
        for rule in self.layers.list("allow-egress") {
            if let Err(e) = rule.parse::<utsuwa_runtime::network::EgressRule>() {
                self.wrong("allow-egress", &e.to_string());
            }
        }
    }

    fn host_dirs(&mut self) -> Vec<HostDir> {
        let mut rules = Vec::new();
        for rule in self.layers.list("allow-host-dir") {
            match rule.parse::<HostDir>() {
                Ok(rule) => rules.push(rule),
                Err(e) => self.wrong("allow-host-dir", &e.to_string()),
            }
        }
        rules
    }

    fn registries(&mut self) -> Registries {
        let file = self.layers.text("registries-file");
        if file.is_empty() {
            return Registries::default();
        }
        registries::read(Path::new(file)).unwrap_or_else(|problems| {
            for problem in &problems {
                self.wrong("registries-file", problem);
            }
            Registries::default()
        })
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("must be an absolute path".to_owned())
    }
}

/// A project or a region.
fn name<T: std::str::FromStr<Err = utsuwa_model::name::NameError>>(
    text: &str,
) -> Result<T, String> {
    text.parse().map_err(|e: T::Err| e.rule.to_owned())
}

fn log_format(text: &str) -> Result<String, String> {
    if ["auto", "text", "json"].contains(&text) {
        Ok(text.to_owned())
    } else {
        Err("must be text, json or auto".to_owned())
    }
}

fn listen(text: &str) -> Result<Listen, String> {
    let why = || "must be HOST:PORT, for example localhost:8080, 0.0.0.0:80 or [::]:80".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(why)?;
    let port: u16 = port
        .parse()
        .map_err(|_| "the port must be 0 to 65535".to_owned())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let listen = Listen {
        host: host.to_owned(),
        port,
    };
    if listen.addresses().is_empty() {
        return Err("the host must be localhost or an IP address".to_owned());
    }
    Ok(listen)
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
}

pub(super) fn domain(text: &str) -> Result<String, String> {
    if text.len() <= 180 && is_host_name(text) {
        Ok(text.to_owned())
    } else {
        Err("must be a DNS name in lower case, for example localhost or run.example.com".to_owned())
    }
}

/// `30s`, `15m` or `1h`. A number alone is refused: whoever wrote it may have meant minutes.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let why = "must be a time with its unit, such as 30s, 15m or 1h";
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(why.to_owned());
    }
    duration(text).map_err(|_| why.to_owned())
}

/// `30s`, `15m`, `1h`, or plain seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let why = "must be a time such as 30s, 15m or 1h";
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let number: u64 = number.parse().map_err(|_| why.to_owned())?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(why.to_owned()),
    };
    number
        .checked_mul(factor)
        .map(Duration::from_secs)
        .ok_or_else(|| why.to_owned())
}

/// A level, or levels by module: `info,utsuwa_ingress=debug`. A word that is no level would be taken for a module, all of it.
fn log_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |rule: &str| {
        let level = rule
            .rsplit_once('=')
            .map_or(rule, |(_, level)| level)
            .trim();
        LEVELS.contains(&level.to_ascii_lowercase().as_str())
    };
    match text.split(',').find(|rule| !is_level(rule)) {
        None => Ok(text.to_owned()),
        Some(rule) => Err(format!(
            "{rule:?} names no level: must be error, warn, info or debug, or levels by module such as info,utsuwa_ingress=debug"
        )),
    }
}

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    text.parse::<MemoryBytes>()
        .map(|m| m.0)
        .map_err(|e| e.to_string())
}
