//! The command line: what can be typed, and which room does it. Every command is one file of the same name.

mod admin;
mod config;
mod deploy;
mod doctor;
mod domains;
mod down;
mod env;
mod gcloud_flags;
mod images;
mod logs;
mod numbers;
mod overtaken;
mod progress;
mod quickstart;
mod revisions;
mod rewrites;
mod services;
mod suggest;
mod trust;
mod unit;
mod wait;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub(crate) use down::command as down_command;
pub(crate) use suggest::nearest;

use crate::client::{Api, Failure};
use crate::config::{Config, Given, Layers, OPTIONS};
use crate::output::{Format, line, note, outcome, written};

/// Cloud Run that you own: give it a container image, get an address; instances start when requests come.
#[derive(Debug, Parser)]
#[command(name = "utsuwa", version = crate::VERSION, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: Command,
}

/// How commands find the server.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// Address of the server's API.
    #[arg(
        long,
        global = true,
        env = "UTSUWA_API",
        default_value = crate::client::DEFAULT_API,
        value_name = "URL",
        help_heading = "Server"
    )]
    pub api: String,
    /// Project; default: the server's.
    #[arg(
        long,
        global = true,
        env = "UTSUWA_PROJECT",
        value_name = "PROJECT",
        help_heading = "Server"
    )]
    pub project: Option<String>,
    /// Region; default: the server's.
    #[arg(
        long,
        global = true,
        env = "UTSUWA_REGION",
        value_name = "REGION",
        help_heading = "Server"
    )]
    pub region: Option<String>,
    /// json, yaml, table or value(PATH).
    #[arg(
        long,
        global = true,
        default_value = "table",
        value_name = "FORMAT",
        help_heading = "Server"
    )]
    pub format: Format,
}

impl ClientArgs {
    /// Options of the server among these, as far as they were typed: what `variables` say has been read from there.
    fn typed(&self, variables: &BTreeMap<String, String>) -> Vec<(&'static str, String)> {
        let all = [("project", &self.project), ("region", &self.region)];
        let all = all
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)));
        all.filter(|(name, value)| variables.get(&crate::config::variable(name)) != Some(value))
            .collect()
    }

    pub(crate) async fn connect(&self) -> Result<Api, Failure> {
        Api::connect(&self.api, self.project.clone(), self.region.clone()).await
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server.
    Up(Box<UpArgs>),
    /// Stop the server, its instances and everything it made on this machine, except its data.
    Down(down::DownArgs),
    /// Deploy an image as a service, or change one.
    Deploy(Box<deploy::DeployArgs>),
    /// List, describe and delete services; change their traffic.
    #[command(subcommand)]
    Services(services::ServicesCommand),
    /// List, describe and delete revisions.
    #[command(subcommand)]
    Revisions(revisions::RevisionsCommand),
    /// Let custom domains lead to services.
    #[command(subcommand)]
    Domains(domains::DomainsCommand),
    /// Load and list images.
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// Show what a service's instances wrote.
    Logs(logs::LogsArgs),
    /// Print shell lines that make gcloud in this shell talk to this server.
    Env(env::EnvArgs),
    /// Have this machine trust the certificates of the served domain, or not any more.
    Trust(trust::TrustArgs),
    /// Say what this machine can and can't do, and the command that would fix it.
    Doctor(doctor::DoctorArgs),
    /// Deploy the built-in sample, call it cold and warm, and watch it go to sleep.
    Quickstart(quickstart::QuickstartArgs),
    /// Print a systemd unit for the server: for root's manager, or as an ordinary user for yours.
    Unit(Box<ServerArgs>),
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Show the server's loops: what each looked at last and why.
    Loops,
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
}

/// What `up` takes.
#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Take the place of the server that runs over this data directory: no connection is refused, and streams go on for drain-timeout.
    #[arg(long)]
    replace: bool,
}

/// The server's options; each is also a variable and a key of the configuration file.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServerArgs {
    /// Configuration file (TOML); /etc/utsuwa/config.toml is read when it exists, by a user ~/.config/utsuwa/config.toml.
    #[arg(long, value_name = "FILE", env = "UTSUWA_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where state, images, logs and keys are kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address of the API (loopback) [default: localhost:8787]
    #[arg(long, value_name = "HOST:PORT")]
    listen_api: Option<String>,
    /// Address services answer on [default: localhost:8080]
    #[arg(long, value_name = "HOST:PORT")]
    listen_http: Option<String>,
    /// Address services answer on over HTTPS; empty: none [default: localhost:8443]
    #[arg(long, value_name = "HOST:PORT")]
    listen_https: Option<String>,
    /// Send plain HTTP requests from outside to HTTPS.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    https_redirect: Option<String>,
    /// Certificates of your own: a TOML file with a table per host or pattern.
    #[arg(long, value_name = "FILE")]
    certificates_file: Option<String>,
    /// Ask this authority for certificates of domains: letsencrypt, or a directory's address. Agrees to its terms.
    #[arg(long, value_name = "URL")]
    acme_directory: Option<String>,
    /// Mail address that the authority may write to. Repeatable.
    #[arg(long, value_name = "MAIL")]
    acme_contact: Vec<String>,
    /// auto, http-01 or tls-alpn-01 [default: auto]
    #[arg(long, value_name = "KIND")]
    acme_challenge: Option<String>,
    /// The only authority that trusts acme-directory's own address (PEM).
    #[arg(long, value_name = "FILE")]
    acme_ca_file: Option<String>,
    /// Addresses or name that clients outside reach this server by.
    #[arg(long, value_name = "ADDRESS")]
    public_address: Option<String>,
    /// Services are reached as NAME.DOMAIN [default: localhost]
    #[arg(long)]
    domain: Option<String>,
    /// How long an instance without requests is kept [default: 15m]
    #[arg(long, value_name = "TIME")]
    idle_timeout: Option<String>,
    /// Open a closed destination: CIDR[:PORT], or host:PORT for a port of this machine. Repeatable.
    #[arg(long, value_name = "RULE")]
    allow_egress: Vec<String>,
    /// Let services mount a directory of this machine: PATH to read, PATH:rw to write. Repeatable.
    #[arg(long, value_name = "PATH")]
    allow_host_dir: Vec<String>,
    /// Registry (host or host:port) that may be spoken to over plain HTTP. Repeatable.
    #[arg(long, value_name = "REGISTRY")]
    insecure_registry: Vec<String>,
    /// FROM=TO rule for image references. Repeatable.
    #[arg(long, value_name = "FROM=TO")]
    image_rewrite: Vec<String>,
    /// User the server runs as [default: utsuwa]
    #[arg(long)]
    user: Option<String>,
    /// text, json or auto [default: auto]
    #[arg(long)]
    log_format: Option<String>,
    /// error, warn, info, debug or a filter [default: info]
    #[arg(long)]
    log_level: Option<String>,
}

impl ServerArgs {
    /// Flags, environment and file path together.
    pub(crate) fn given(&self, client: &ClientArgs) -> Given {
        let mut flags: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        let mut one = |name: &'static str, value: &Option<String>| {
            if let Some(value) = value {
                flags.insert(name, vec![value.clone()]);
            }
        };
        one("data-dir", &self.data_dir);
        one("listen-api", &self.listen_api);
        one("listen-http", &self.listen_http);
        one("listen-https", &self.listen_https);
        one("https-redirect", &self.https_redirect);
        one("certificates-file", &self.certificates_file);
        one("acme-directory", &self.acme_directory);
        one("acme-challenge", &self.acme_challenge);
        one("acme-ca-file", &self.acme_ca_file);
        one("public-address", &self.public_address);
        one("domain", &self.domain);
        one("idle-timeout", &self.idle_timeout);
        one("user", &self.user);
        one("log-format", &self.log_format);
        one("log-level", &self.log_level);
        for (name, values) in [
            ("acme-contact", &self.acme_contact),
            ("allow-egress", &self.allow_egress),
            ("allow-host-dir", &self.allow_host_dir),
            ("insecure-registries", &self.insecure_registry),
            ("image-rewrites", &self.image_rewrite),
        ] {
            if !values.is_empty() {
                flags.insert(name, values.clone());
            }
        }
        let variables = crate::environment::variables(OPTIONS.iter().map(|o| o.name));
        for (name, value) in client.typed(&variables) {
            flags.insert(name, vec![value]);
        }
        Given {
            file: configuration_file(self.config.clone()),
            variables,
            defaults: crate::config::defaults(),
            flags,
        }
    }
}

/// The configuration file: the named one, else the default one if it is there.
fn configuration_file(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| {
        let path = crate::config::default_file();
        path.exists().then_some(path)
    })
}

/// The data directory of a server that is started here without flags.
fn configured_data_dir(file: Option<PathBuf>) -> Result<PathBuf, Failure> {
    configured(file).map(|config| config.data_dir)
}

/// Data directory and domain of a server that is started here without flags; whatever else its variables say.
fn configured(file: Option<PathBuf>) -> Result<Config, Failure> {
    let given = Given {
        file: configuration_file(file),
        variables: crate::environment::variables(["data-dir", "domain"].into_iter()),
        defaults: crate::config::defaults(),
        ..Given::default()
    };
    let usage = |e: crate::config::ConfigError| Failure::usage(e.to_string());
    // With a file that is wrong elsewhere it is not known whose server is meant.
    let config = Layers::read(&given).and_then(|layers| layers.check());
    config.map_err(usage)
}

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let ours = gcloud_flags::refusal(&error)
                .or_else(|| suggest::misplaced(&error, &Cli::command(), std::env::args()));
            if let Some(failure) = ours {
                return told(&failure);
            }
            let error = suggest::with_plain_usage(error, Cli::command(), std::env::args());
            let printed = error.print();
            if error.use_stderr() {
                return ExitCode::from(2);
            }
            written(printed);
            return ended(Ok(()));
        }
    };
    let client = cli.client;
    let result = match cli.command {
        Command::Up(args) => return crate::up::main(&args.server.given(&client), args.replace),
        Command::Down(args) => down::run(&args, &client),
        Command::Doctor(args) => doctor::run(&args, &client),
        Command::Trust(args) => trust::run(&args, &client),
        Command::Unit(args) => unit::run(&args, &client),
        Command::Config(command) => block_on(config::run(&command, &client)),
        Command::Completions { shell } => {
            // Into memory first: there it can't fail, as it does at a reader that is gone.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "utsuwa", &mut script);
            line(String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
        Command::Deploy(args) => match deploy::swallowed(std::env::args()) {
            Some(failure) => Err(failure),
            None => block_on(deploy::run(&args, &client)),
        },
        Command::Services(command) => block_on(services::run(&command, &client)),
        Command::Revisions(command) => block_on(revisions::run(&command, &client)),
        Command::Domains(command) => block_on(domains::run(&command, &client)),
        Command::Images(command) => block_on(images::run(&command, &client)),
        Command::Logs(args) => block_on(logs::run(&args, &client)),
        Command::Env(args) => block_on(env::run(&args, &client)),
        Command::Quickstart(args) => block_on(quickstart::run(&args, &client)),
        Command::Loops => block_on(admin::loops(&client)),
    };
    ended(result)
}

/// The exit status of a command, said why.
fn ended(result: Result<(), Failure>) -> ExitCode {
    match result.and_then(|()| outcome()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => told(&failure),
    }
}

/// Says why a command failed; answers its exit status.
fn told(failure: &Failure) -> ExitCode {
    note(&format!("error: {failure}"));
    if let Some(hint) = &failure.hint {
        note(&format!("hint: {hint}"));
    }
    ExitCode::from(failure.status)
}

/// The last part of a resource name.
fn short(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Client commands need one thread.
fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("start the async runtime: {e}")))?
        .block_on(future)
}
