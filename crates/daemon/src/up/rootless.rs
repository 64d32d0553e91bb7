//! `utsuwa up` of an ordinary user: into their own namespaces, and what is weaker there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use utsuwa_model::host_dir::HostDir;
use utsuwa_runtime::keeper;
use utsuwa_runtime::network::EgressRule;
use utsuwa_runtime::rootless::{self, Place, RootlessError, World};

use super::Refusal;
use crate::config::{Config, Layers, Source};

/// Where the server over `data` is, whose id is made if it has none yet.
///
/// # Errors
/// The directory can't be read or written.
pub(crate) fn place(data: &Path) -> anyhow::Result<Place> {
    let id = keeper::data_id(data)
        .with_context(|| format!("identify the data directory {}", data.display()))?;
    Ok(Place::of(data, &id)?)
}

/// Makes the user's namespaces, or enters those in which their keeper lives.
pub(super) fn enter(config: &Config) -> anyhow::Result<World> {
    let data = &config.data_dir;
    std::fs::create_dir_all(data).map_err(|error| {
        Refusal::new(
            format!("make the data directory {}: {error}", data.display()),
            "name one of yours with --data-dir, or start the server as root: sudo utsuwa up",
        )
    })?;
    place(data)?.enter().map_err(|error| match error {
        RootlessError::Refused { ref what, ref hint } => Refusal::new(
            format!("this machine can't run instances for an ordinary user: {what}"),
            hint.clone(),
        ),
        other => other.into(),
    })
}

/// The host's own addresses end in the namespace that stands for the host, where nothing listens.
///
/// # Errors
/// A rule that names one of them exactly; one that names a whole network doesn't open the host, for root neither.
pub(super) fn can_be_opened(rules: &[EgressRule]) -> anyhow::Result<()> {
    let own = rootless::host_addresses().context("list the addresses of this host")?;
    for rule in rules {
        if let EgressRule::Network {
            network, prefix, ..
        } = rule
            && *prefix == if network.is_ipv4() { 32 } else { 128 }
            && own.contains(network)
        {
            return Err(Refusal::new(
                format!(
                    "--allow-egress {rule}: {network} is this host's own address, which can't be opened without root"
                ),
                "name a port of this host as host:PORT; instances reach it as host.utsuwa.internal:PORT",
            ));
        }
    }
    Ok(())
}

/// Showing a directory to another user's ids takes an idmapped mount, which is root's to make.
///
/// # Errors
/// There is a rule.
pub(super) fn opens_no_directory(rules: &[HostDir]) -> anyhow::Result<()> {
    let Some(rule) = rules.first() else {
        return Ok(());
    };
    Err(Refusal::new(
        format!(
            "--allow-host-dir {}: a directory of the host can't be opened to services without root",
            rule.path
        ),
        "leave it out, or start the server as root: sudo utsuwa up",
    ))
}

/// Root's server and a user's never share a directory: each would find what it can't read, and root would take all of it.
///
/// # Errors
/// The directory was made by somebody else's server.
pub(crate) fn is_of_this_user(data: &Path) -> anyhow::Result<()> {
    let id = data.join("id");
    let owner = std::fs::symlink_metadata(&id)
        .with_context(|| format!("look at {}", id.display()))?
        .uid();
    // In a user's own namespace root is the user.
    if owner == 0 {
        return Ok(());
    }
    let data = data.display();
    Err(Refusal::new(
        format!("the data directory {data} is that of another user's server (uid {owner})"),
        "do it as that user; or name another directory with --data-dir",
    ))
}

/// The server's user is not the operator's to choose here.
pub(super) fn check_user(layers: &Layers) -> anyhow::Result<()> {
    if matches!(layers.source("user"), Source::Default) {
        return Ok(());
    }
    Err(Refusal::new(
        "--user names whom the server becomes, which only root can decide",
        "leave it out: the server becomes one of your subordinate ids, if you have any",
    ))
}

/// Each as one line of the server's log.
pub(super) fn say_what_is_weaker(world: &World) {
    if let Some(program) = world.egress() {
        tracing::info!(
            program,
            "instances reach the internet through a program of yours"
        );
    }
    for weaker in world.weaker() {
        tracing::warn!("without root: {weaker}");
    }
}
