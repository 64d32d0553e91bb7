//! `utsuwa up` of an ordinary user: into their own namespaces, and what is weaker there.

use std::path::Path;

use anyhow::Context;
use utsuwa_runtime::keeper;
use utsuwa_runtime::rootless::{Place, RootlessError, World};

use super::Refusal;
use crate::config::Config;

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
