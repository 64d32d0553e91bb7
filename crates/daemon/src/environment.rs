//! The only room that reads the process's environment variables (banned elsewhere by `clippy.toml`).

use std::collections::BTreeMap;

/// The variables of the named options that are set.
#[expect(
    clippy::disallowed_methods,
    reason = "this module is the one place that reads the environment"
)]
pub(crate) fn variables(options: impl Iterator<Item = &'static str>) -> BTreeMap<String, String> {
    options
        .map(crate::config::variable)
        .filter_map(|name| std::env::var(&name).ok().map(|value| (name, value)))
        .collect()
}

/// One variable that isn't an option of ours: `HOME`, `SUDO_USER`, …
#[expect(
    clippy::disallowed_methods,
    reason = "this module is the one place that reads the environment"
)]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
