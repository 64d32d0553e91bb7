//! `utsuwa up`: from root with a configuration to an unprivileged server with a keeper beside it.
//!
//! Order (each step can refuse, and nothing before it needs undoing): configuration, privilege (an ordinary user's own
//! namespaces are entered here), what options name on this machine, ports, what the data directory holds (where no keeper waits for its server), directories, keeper, give up root, store, runtime, loops, ingress, API, `ready`.

pub(crate) mod ahead;
mod certificates;
mod connect;
mod descriptors;
mod door;
mod doors;
mod environment;
mod folders;
mod given;
mod images;
mod insight;
mod instance_logs;
mod internal;
mod journal;
mod kept;
mod leave;
mod leaving;
mod listeners;
mod metrics;
pub(crate) mod named;
mod ports;
mod prepare;
mod rootless;
mod secure;
mod server;
mod traffic;
mod unpacker;
#[cfg(test)]
mod whole;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use utsuwa_runtime::image::DockerConfig;

use crate::config::{Config, Given, Layers};
use crate::output::note;

use traffic::Traffic;

pub(crate) use leaving::leaving_servers;
pub(crate) use prepare::{pid_file, running_server};
pub(crate) use rootless::{is_of_this_user, place};

/// How long threads may take at the end. Those that read logs for callers look up every 200 ms; nothing durable waits for them.
const PATIENCE: Duration = Duration::from_millis(50);

/// Why a server doesn't start, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Refusal {
    message: String,
    hint: String,
}

impl Refusal {
    #[expect(
        clippy::new_ret_no_self,
        reason = "it travels with all other reasons for not starting"
    )]
    fn new(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        let (message, hint) = (message.into(), hint.into());
        Self { message, hint }.into()
    }
}

/// Runs the server until it is told to end; with `replace` after the one that runs has made place. Exit status: 0 ended in
/// order, 1 could not start or go on, 2 configuration.
pub(crate) fn main(given: &Given, replace: bool) -> ExitCode {
    let read = Layers::read(given).and_then(|layers| Ok((layers.check()?, layers)));
    let (config, layers) = match read {
        Ok(read) => read,
        Err(error) => {
            note(&format!("error: {error}"));
            note("hint: `utsuwa config show` lists every option, its value and where it came from");
            return ExitCode::from(2);
        }
    };
    match run(config, layers, replace) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {error:#}"));
            if let Some(refusal) = error.downcast_ref::<Refusal>() {
                note(&format!("hint: {}", refusal.hint));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config, layers: Layers, replace: bool) -> anyhow::Result<()> {
    // Read while the operator's home is in sight: the server sees none.
    let docker = prepare::docker_config(&config)?;
    let world = if utsuwa_runtime::privilege::is_root() {
        None
    } else {
        rootless::check_user(&layers)?;
        Some(rootless::enter(&config)?)
    };
    crate::logging::start(&config);
    // No reason to stay away: another program wrote the file, and services that are here need no registry.
    for problem in docker.iter().flat_map(DockerConfig::problems) {
        tracing::warn!(
            "registry credentials can't be used: {problem}; images are asked for without them"
        );
    }
    if let Some(left_out) = utsuwa_runtime::sandbox::walls::left_out() {
        tracing::error!(
            left_out,
            "this build has the feature missing-walls: its instances may confine nothing. It is for the hostile suite alone; \
             use an ordinary build for everything else"
        );
    }
    let prepared = prepare::prepare(config, &layers, docker, replace);
    let ground = match (prepared, world) {
        (Ok(ground), Some(world)) => {
            rootless::say_what_is_weaker(&world);
            ground
        }
        (Err(error), Some(world)) => {
            world.abandon();
            return Err(error);
        }
        (prepared, None) => prepared?,
    };
    utsuwa_runtime::privilege::drop_to(&ground.user)
        .with_context(|| format!("become {}", ground.user.shown))?;
    // All threads of the runtime have it from this one.
    utsuwa_runtime::precedence::is_prompt();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("utsuwa")
        .build()
        .context("start the async runtime")?;
    let traffic = Traffic::start()?;
    let result = runtime.block_on(server::run(ground, layers, traffic.handle()));
    traffic.end(PATIENCE);
    runtime.shutdown_timeout(PATIENCE);
    result
}
