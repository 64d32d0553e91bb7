//! Project, region and domain: given at a data directory's first start, the same ever after (decision 13).
//!
//! Owns: joining what is given now with what was given then. Deliberately not here: writing it down (`utsuwa-store`).

use utsuwa_store::Settings;

use super::{Config, Layers, Source};

/// What a start asks for. What isn't given is what it was at the first start, not the built-in default.
pub(crate) fn wanted(layers: &Layers, config: &Config, frozen: Option<Settings>) -> Settings {
    let given = |name: &str| *layers.source(name) != Source::Default;
    let mut wanted = Settings {
        project: config.project.clone(),
        region: config.region.clone(),
        domain: config.domain.clone(),
    };
    if let Some(frozen) = frozen {
        if !given("project") {
            wanted.project = frozen.project;
        }
        if !given("region") {
            wanted.region = frozen.region;
        }
        if !given("domain") {
            wanted.domain = frozen.domain;
        }
    }
    wanted
}

/// Every option that asks for something else than the data directory was made for.
pub(crate) fn differing(layers: &Layers, config: &Config, frozen: &Settings) -> Vec<String> {
    let wanted = wanted(layers, config, Some(frozen.clone()));
    [
        ("project", wanted.project.as_str(), frozen.project.as_str()),
        ("region", wanted.region.as_str(), frozen.region.as_str()),
        ("domain", wanted.domain.as_str(), frozen.domain.as_str()),
    ]
    .into_iter()
    .filter(|(_, wanted, frozen)| wanted != frozen)
    .map(|(name, wanted, frozen)| {
        format!(
            "{name} = {wanted:?} ({}): the data directory {} is made for {frozen:?} since its first start, which never changes: leave the \
             option away or use another --data-dir",
            layers.source(name),
            config.data_dir.display()
        )
    })
    .collect()
}
