//! `utsuwa config check|show`.

use clap::Subcommand;

use super::{ClientArgs, ServerArgs};
use crate::client::Failure;
use crate::config::{ConfigError, Layers, frozen};
use crate::output::{items, note, text_at};
use crate::up::ahead::{self, Found};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check file, environment and flags; all problems at once.
    Check(Box<ServerArgs>),
    /// Show every option with its value and where it came from.
    Show(Box<ShowArgs>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Ask the server that runs what it was started with, instead of what a start here would use.
    #[arg(long)]
    running: bool,
}

pub(crate) async fn run(command: &ConfigCommand, client: &ClientArgs) -> Result<(), Failure> {
    let usage = |e: ConfigError| Failure::usage(e.to_string());
    match command {
        ConfigCommand::Check(args) => {
            let layers = Layers::read(&args.given(client)).map_err(usage)?;
            let config = layers.check().map_err(usage)?;
            // It may be another user's, or of a build that isn't this one: then it stays unknown, which is no fault of the options.
            let unknown = match ahead::made_for(&config.data_dir) {
                Ok(Found::Nothing) => None,
                Ok(Found::MadeFor(settings)) => {
                    let problems = frozen::differing(&layers, &config, &settings);
                    if !problems.is_empty() {
                        return Err(usage(ConfigError(problems)));
                    }
                    None
                }
                Ok(Found::Wrong(problems)) => Some(problems.join("; ")),
                Ok(Found::Unknown(why)) => Some(why),
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(why) = unknown {
                note(&format!(
                    "note: project, region and domain are not compared with what the data directory is made for: {why}"
                ));
            }
            note("The configuration is valid.");
            Ok(())
        }
        ConfigCommand::Show(args) if args.running => {
            let api = client.connect().await?;
            let answer = api.get("/utsuwa/v1/config").await?;
            print(
                client,
                answer["options"].as_array().map_or(&[], Vec::as_slice),
            )
        }
        ConfigCommand::Show(args) => {
            let layers = Layers::read(&args.server.given(client)).map_err(usage)?;
            print(client, &layers.rows())?;
            layers.check().map_err(usage).map(drop)
        }
    }
}

fn print(client: &ClientArgs, rows: &[serde_json::Value]) -> Result<(), Failure> {
    items(
        &client.format,
        rows,
        &[
            ("OPTION", &|i| text_at(i, "option")),
            ("VALUE", &|i| text_at(i, "value")),
            ("FROM", &|i| text_at(i, "source")),
            ("MEANING", &|i| text_at(i, "meaning")),
        ],
    )
}
