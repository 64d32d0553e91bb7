//! `utsuwa config check|show`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::Value;
use utsuwa_runtime::privilege;

use super::words::shortened;
use super::{ClientArgs, ServerArgs};
use crate::client::Failure;
use crate::config::{Config, ConfigError, Layers, frozen};
use crate::output::{Format, items, line, note, text_at};
use crate::up::ahead::{self, Found};
use crate::up::named;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check file, environment and flags; all problems at once.
    Check(Box<CheckArgs>),
    /// Show every option with its value and where it came from.
    Show(Box<ShowArgs>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The file to check, whatever --config says.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

impl CheckArgs {
    fn server(&self) -> ServerArgs {
        let mut server = self.server.clone();
        server.config = self.file.clone().or(server.config);
        server
    }
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
            let layers = Layers::read(&args.server().given(client)).map_err(usage)?;
            let config = layers.check().map_err(usage)?;
            compare(&layers, &config).map_err(usage)?;
            look(&config)?;
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

/// What the data directory is made for. It may be another user's, or of a build that isn't this one: then it stays unknown, which is
/// no fault of the options.
fn compare(layers: &Layers, config: &Config) -> Result<(), ConfigError> {
    let unknown = match ahead::made_for(&config.data_dir) {
        Ok(Found::Nothing) => return Ok(()),
        Ok(Found::MadeFor(settings)) => {
            let problems = frozen::differing(layers, config, &settings);
            return match problems.is_empty() {
                true => Ok(()),
                false => Err(ConfigError(problems)),
            };
        }
        Ok(Found::Wrong(problems) | Found::Denied(problems)) => problems.join("; "),
        Ok(Found::Unknown(why)) => why,
        Err(error) => format!("{error:#}"),
    };
    note(&format!(
        "note: project, region and domain are not compared with what the data directory is made for: {unknown}"
    ));
    Ok(())
}

/// What the options name on this machine, as a start looks at it. Who isn't root may check root's configuration: what they can't see
/// is told, and no fault of the options.
fn look(config: &Config) -> Result<(), Failure> {
    let usage = |problems| Failure::usage(ConfigError(problems).to_string());
    let found = named::all(config).map_err(|error| usage(vec![format!("{error:#}")]))?;
    let (unseen, wrong): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|problem| problem.denied && !privilege::is_root());
    for problem in unseen {
        note(&format!("note: not checked: {}", problem.message));
    }
    let mut hints: Vec<&str> = wrong.iter().filter_map(|problem| problem.hint).collect();
    hints.dedup();
    let problems: Vec<String> = wrong
        .iter()
        .map(|problem| problem.message.clone())
        .collect();
    match (problems.is_empty(), hints.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => Err(usage(problems)),
        (false, false) => Err(usage(problems).hint(hints.join("; "))),
    }
}

/// A value beside which its meaning is still in sight.
const VALUE_WIDTH: usize = 40;

/// A table, and below it whole what is too long for its column.
fn print(client: &ClientArgs, rows: &[Value]) -> Result<(), Failure> {
    listed(client, rows)?;
    if client.format == Format::Table {
        for text in long_values(rows) {
            line(&text);
        }
    }
    Ok(())
}

fn in_column(row: &Value) -> String {
    shortened(&text_at(row, "value"), VALUE_WIDTH)
}

/// The options whose values are shortened in the table.
fn long_values(rows: &[Value]) -> Vec<String> {
    rows.iter()
        .filter(|row| in_column(row) != text_at(row, "value"))
        .map(|row| format!("{} = {}", text_at(row, "option"), text_at(row, "value")))
        .collect()
}

fn listed(client: &ClientArgs, rows: &[Value]) -> Result<(), Failure> {
    items(
        &client.format,
        rows,
        &[
            ("OPTION", &|i| text_at(i, "option")),
            ("VALUE", &in_column),
            ("FROM", &|i| text_at(i, "source")),
            ("MEANING", &|i| text_at(i, "meaning")),
        ],
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::super::{Cli, Command};
    use super::*;

    #[test]
    fn a_long_value_stands_below_the_table_and_not_before_the_meaning() {
        let long = "/.env,".repeat(60);
        let rows = [
            json!({"option": "domain", "value": "localhost"}),
            json!({"option": "scanner-paths", "value": long}),
        ];
        assert_eq!(in_column(&rows[0]), "localhost");
        let shown = in_column(&rows[1]);
        assert!(
            shown.chars().count() <= VALUE_WIDTH && shown.ends_with('…'),
            "{shown}"
        );
        assert_eq!(long_values(&rows), [format!("scanner-paths = {long}")]);
    }

    /// Else `UTSUWA_REGION=x` would be told as a mistake in a flag that nobody gave.
    #[test]
    fn what_a_variable_says_is_no_flag() {
        let variables = [("UTSUWA_REGION".to_owned(), "x".to_owned())].into();
        let typed = |words: &[&str]| {
            let line = ["utsuwa"].iter().chain(words).chain(&["loops"]);
            Cli::try_parse_from(line).unwrap().client.typed(&variables)
        };
        assert!(typed(&["--region", "x"]).is_empty());
        assert_eq!(
            typed(&["--region", "y", "--project", "p"]),
            [("project", "p".to_owned()), ("region", "y".to_owned())]
        );
    }

    #[test]
    fn a_file_to_check_is_named_in_either_way() {
        let file = |words: &[&str]| {
            let line = ["utsuwa", "config", "check"].iter().chain(words);
            let cli = Cli::try_parse_from(line).ok()?;
            match cli.command {
                Command::Config(ConfigCommand::Check(args)) => args.server().config,
                _ => None,
            }
        };
        let named = Some(PathBuf::from("a.toml"));
        assert_eq!(file(&["a.toml"]), named);
        assert_eq!(file(&["--config", "a.toml"]), named);
        assert_eq!(file(&["a.toml", "--config", "b.toml"]), named);
    }
}
