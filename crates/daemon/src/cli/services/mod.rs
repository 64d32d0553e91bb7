//! `utsuwa services …`.

pub(super) mod back;
pub(super) mod callers;
mod container;
pub(super) mod containers;
pub(super) mod show;
mod traffic;
mod why;

use clap::Subcommand;
use serde_json::Value;

pub(super) use self::container::probe_limit;
use self::show::{About, print_service, ready_mark, ready_word, region};
pub(super) use self::traffic::LATEST;
use self::traffic::TrafficArgs;
use self::why::print_why;
use super::rewrites::Rewrites;
use super::words::cause;
use super::{ClientArgs, short, suggest};
use crate::client::{Api, Failure};
use crate::output::{Format, ask, line, moment, note, remarked, text_at, value};

#[derive(Debug, Subcommand)]
pub(crate) enum ServicesCommand {
    /// List services of all regions, or of the one given with --region.
    List,
    /// Describe one service.
    Describe {
        name: String,
        /// Show what runs and why: every decision with its reason.
        #[arg(long)]
        why: bool,
    },
    /// Delete a service, its revisions and its instances.
    Delete {
        name: String,
        /// Never ask.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Change where requests go.
    UpdateTraffic(TrafficArgs),
}

pub(crate) async fn run(command: &ServicesCommand, client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    match command {
        ServicesCommand::List => {
            let all = everywhere(&api, client.region.as_deref()).await?;
            remarked(
                &client.format,
                &all,
                &[
                    ("", &ready_mark),
                    ("SERVICE", &|i| short(&text_at(i, "name"))),
                    ("REGION", &region),
                    ("URL", &show::address),
                    ("LAST DEPLOYED BY", &|i| text_at(i, "lastModifier")),
                    ("LAST DEPLOYED AT", &|i| moment(&text_at(i, "updateTime"))),
                    ("STATE", &show::state),
                ],
                &show::reason,
            )?;
            let lame = |i: &&Value| ready_word(i) == "failed" && !show::can_serve(i);
            if client.format == Format::Table
                && let Some(service) = all.iter().find(lame)
            {
                let name = short(&text_at(service, "name"));
                let ran = may_have_run(&api, service).await;
                note(&format!(
                    "hint: `utsuwa services describe {name}` says more of {name}; {}",
                    show::repair(&name, ran)
                ));
            }
            Ok(())
        }
        ServicesCommand::Describe { name, why } => {
            let mut service = existing(&api, name).await?;
            if *why {
                let explained = api.get(&api.explain(name)).await?;
                return if client.format == Format::Table {
                    let message = text_at(&service, "terminalCondition.message");
                    if !message.is_empty() {
                        line(&format!("{}: {}", ready_word(&service), cause(&message)));
                    }
                    print_why(name, &explained);
                    Ok(())
                } else {
                    value(&client.format, &explained)
                };
            }
            if client.format == Format::Table {
                Rewrites::of(&api).await.explain(&mut service);
                let ran = may_have_run(&api, &service).await;
                let public = callers::is_public(&api, name, &service).await?;
                let way = match ready_word(&service).as_str() {
                    "failed" => back::Back::of(&api, &service).await.words(name),
                    _ => None,
                };
                // Only what is observed now, and so not part of the service: without it the rest is as true.
                let explained = api.get(&api.explain(name)).await.unwrap_or_default();
                print_service(
                    &service,
                    &About {
                        callers: callers::words(public),
                        ran,
                        way,
                        trouble: why::trouble(name, &explained),
                    },
                );
                Ok(())
            } else {
                value(&client.format, &service)
            }
        }
        ServicesCommand::Delete { name, quiet } => {
            existing(&api, name).await?;
            if !quiet {
                confirm(&format!(
                    "Service [{name}] with its revisions will be deleted."
                ))?;
            }
            let operation = api.delete(&api.service(name)).await?;
            super::wait::wait(&api, &operation).await?;
            note(&format!("Deleted service [{name}]."));
            Ok(())
        }
        ServicesCommand::UpdateTraffic(args) => traffic::run(args, &api, client).await,
    }
}

/// Whether something of what a service last deployed may have run. Its newest revision knows; only one that failed is asked.
async fn may_have_run(api: &Api, service: &Value) -> bool {
    let newest = text_at(service, "latestCreatedRevision");
    if ready_word(service) != "failed" || newest.is_empty() {
        return true;
    }
    match api.get(&format!("/run/v2/{newest}")).await {
        Ok(revision) => !show::nothing_ran(&revision),
        Err(_) => true,
    }
}

/// The services of `region`, or else of every region that has some.
async fn everywhere(api: &Api, region: Option<&str>) -> Result<Vec<Value>, Failure> {
    let places = match region {
        Some(_) => vec![api.parent()],
        None => {
            let path = format!("/run/v2/projects/{}/locations", api.project);
            let regions = api.list(&path, "locations").await?;
            regions.iter().map(|r| text_at(r, "name")).collect()
        }
    };
    let mut all = Vec::new();
    for place in places {
        all.extend(
            api.list(&format!("/run/v2/{place}/services"), "services")
                .await?,
        );
    }
    Ok(all)
}

/// The service, or a failure that names the one that was probably meant.
pub(super) async fn existing(api: &Api, name: &str) -> Result<Value, Failure> {
    match api.get(&api.service(name)).await {
        Ok(service) => Ok(service),
        Err(failure) => Err(suggest::service(api, name, failure).await),
    }
}

/// Stops unless the user says yes; without a terminal the answer is no.
pub(super) fn confirm(what: &str) -> Result<(), Failure> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::usage(format!("{what} Not asked, since this is no terminal."))
                .hint("say yes ahead with --quiet"),
        );
    }
    if ask(&format!("{what} Go on"))? {
        Ok(())
    } else {
        Err(Failure::failed("Nothing was changed."))
    }
}
