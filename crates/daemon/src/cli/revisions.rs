//! `utsuwa revisions …`.

use clap::Subcommand;
use serde_json::Value;

use super::services::show::{condition, ready_mark};
use super::services::{confirm, existing};
use super::{ClientArgs, short, suggest};
use crate::client::{Api, Failure};
use crate::output::{Format, items, moment, note, text_at, value};

#[derive(Debug, Subcommand)]
pub(crate) enum RevisionsCommand {
    /// List revisions.
    List {
        /// Only those of this service.
        #[arg(long)]
        service: Option<String>,
    },
    /// Describe one revision.
    Describe { name: String },
    /// Delete a revision that gets no requests.
    Delete {
        name: String,
        /// Never ask.
        #[arg(long, short)]
        quiet: bool,
    },
}

pub(crate) async fn run(command: &RevisionsCommand, client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    match command {
        RevisionsCommand::List { service } => {
            let of = service.as_deref().unwrap_or("-");
            let services = match service {
                Some(name) => vec![existing(&api, name).await?],
                None => {
                    let path = format!("/run/v2/{}/services", api.parent());
                    api.list(&path, "services").await?
                }
            };
            let all = api
                .list(&format!("{}/revisions", api.service(of)), "revisions")
                .await?;
            let routes = Routes::of(&services);
            items(
                &client.format,
                &all,
                &[
                    ("", &ready_mark),
                    ("REVISION", &|i| short(&text_at(i, "name"))),
                    ("ACTIVE", &active),
                    ("SERVICE", &|i| short(&text_at(i, "service"))),
                    ("DEPLOYED", &|i| moment(&text_at(i, "createTime"))),
                    ("DEPLOYED BY", &|i| text_at(i, "creator")),
                    ("TRAFFIC", &|i| routes.percent(i)),
                    ("TAGS", &|i| routes.tags(i)),
                ],
            )
        }
        RevisionsCommand::Describe { name } => {
            let found = find(&api, name).await?;
            let format = if client.format == Format::Table {
                Format::Yaml
            } else {
                client.format.clone()
            };
            value(&format, &found)
        }
        RevisionsCommand::Delete { name, quiet } => {
            let found = find(&api, name).await?;
            if !quiet {
                confirm(&format!("Revision [{name}] will be deleted."))?;
            }
            let operation = api
                .delete(&format!("/run/v2/{}", text_at(&found, "name")))
                .await?;
            super::wait::wait(&api, &operation).await?;
            note(&format!("Deleted revision [{name}]."));
            Ok(())
        }
    }
}

fn active(revision: &Value) -> String {
    match condition(revision, "Active") {
        Some("CONDITION_SUCCEEDED") => "yes".to_owned(),
        _ => String::new(),
    }
}

/// Which requests go to which revision, by the services' own word.
struct Routes(Vec<(String, Value)>);

impl Routes {
    fn of(services: &[Value]) -> Self {
        let targets = |service: &Value| {
            let all = service["trafficStatuses"].as_array();
            all.cloned().unwrap_or_default()
        };
        Self(
            services
                .iter()
                .flat_map(targets)
                .map(|target| (short(&text_at(&target, "revision")), target))
                .collect(),
        )
    }

    fn to<'a>(&'a self, revision: &Value) -> impl Iterator<Item = &'a Value> {
        let name = short(&text_at(revision, "name"));
        self.0
            .iter()
            .filter(move |(to, _)| *to == name)
            .map(|(_, target)| target)
    }

    fn percent(&self, revision: &Value) -> String {
        let sum: u64 = self
            .to(revision)
            .filter_map(|t| t["percent"].as_u64())
            .sum();
        if sum == 0 {
            String::new()
        } else {
            format!("{sum}%")
        }
    }

    fn tags(&self, revision: &Value) -> String {
        let tags: Vec<&str> = self
            .to(revision)
            .filter_map(|t| t["tag"].as_str())
            .collect();
        tags.join(", ")
    }
}

/// A revision by its id alone, as gcloud takes it, or by its full name, as `revisions list --format 'value(name)'` prints it.
async fn find(api: &Api, name: &str) -> Result<Value, Failure> {
    let all = api
        .list(&format!("{}/revisions", api.service("-")), "revisions")
        .await?;
    let names: Vec<String> = all.iter().map(|r| short(&text_at(r, "name"))).collect();
    let is_it = |r: &&Value| short(&text_at(r, "name")) == name || text_at(r, "name") == name;
    match all.iter().find(is_it) {
        Some(found) => Ok(found.clone()),
        None => Err(Failure::failed(format!(
            "revision [{name}] does not exist in project [{}] region [{}]",
            api.project, api.region
        ))
        .hint(suggest::hint(name, &names, "revisions", api))),
    }
}
