//! `utsuwa config check|show`.

use clap::Subcommand;
use serde_json::json;

use super::{ClientArgs, ServerArgs};
use crate::client::Failure;
use crate::config::{Layers, variable};
use crate::output::{items, note, text_at};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check file, environment and flags; all problems at once.
    Check(Box<ServerArgs>),
    /// Show every option with its value and where it came from.
    Show(Box<ServerArgs>),
}

pub(crate) fn run(command: &ConfigCommand, client: &ClientArgs) -> Result<(), Failure> {
    let (ConfigCommand::Check(args) | ConfigCommand::Show(args)) = command;
    let usage = |e: crate::config::ConfigError| Failure::usage(e.to_string());
    let layers = Layers::read(&args.given(client)).map_err(usage)?;
    if let ConfigCommand::Show(_) = command {
        let rows: Vec<serde_json::Value> = layers
            .iter()
            .map(|(option, value, source)| {
                json!({"option": option.name, "value": value.join(","), "source": source.to_string(), "variable": variable(option.name),
                       "default": option.default, "since": option.since, "meaning": option.doc})
            })
            .collect();
        items(
            &client.format,
            &rows,
            &[
                ("OPTION", &|i| text_at(i, "option")),
                ("VALUE", &|i| text_at(i, "value")),
                ("FROM", &|i| text_at(i, "source")),
                ("MEANING", &|i| text_at(i, "meaning")),
            ],
        )?;
    }
    layers.check().map_err(usage)?;
    if let ConfigCommand::Check(_) = command {
        note("The configuration is valid.");
    }
    Ok(())
}
