//! `utsuwa services …` and `utsuwa revisions …`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::progress::Progress;
use super::{ClientArgs, short, suggest};
use crate::client::{Api, Failure};
use crate::output::{Format, items, line, moment, note, text_at, value};

#[derive(Debug, Subcommand)]
pub(crate) enum ServicesCommand {
    /// List services.
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
    UpdateTraffic {
        name: String,
        /// REVISION=PERCENT,… ; LATEST names the newest ready one. What is left goes on in proportion.
        #[arg(long, value_name = "LIST", conflicts_with = "to_latest")]
        to_revisions: Option<String>,
        /// Everything to the newest ready revision.
        #[arg(long)]
        to_latest: bool,
        /// TAG=REVISION,…: sets these tags and no others.
        #[arg(long, value_name = "LIST")]
        set_tags: Option<String>,
    },
}

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
    Delete { name: String },
}

/// The state of a service or revision, in a word.
fn ready_word(item: &Value) -> String {
    let word = match item["terminalCondition"]["state"]
        .as_str()
        .or_else(|| condition(item, "Ready"))
    {
        Some("CONDITION_SUCCEEDED") => "ready",
        Some("CONDITION_FAILED") => "failed",
        _ => "working",
    };
    word.to_owned()
}

/// The same in one sign, as gcloud lists it.
fn ready_mark(item: &Value) -> String {
    let mark = match ready_word(item).as_str() {
        "ready" => "✔",
        "failed" => "X",
        _ => "…",
    };
    mark.to_owned()
}

/// The state of one condition.
fn condition<'a>(item: &'a Value, kind: &str) -> Option<&'a str> {
    let all = item["conditions"].as_array()?;
    all.iter().find(|c| c["type"] == json!(kind))?["state"].as_str()
}

/// `projects/P/locations/R/services/S`: its region.
fn region(item: &Value) -> String {
    let name = text_at(item, "name");
    name.split('/').nth(3).unwrap_or_default().to_owned()
}

pub(crate) async fn run(command: &ServicesCommand, client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    match command {
        ServicesCommand::List => {
            let all = api
                .list(&format!("/run/v2/{}/services", api.parent()), "services")
                .await?;
            items(
                &client.format,
                &all,
                &[
                    ("", &ready_mark),
                    ("SERVICE", &|i| short(&text_at(i, "name"))),
                    ("REGION", &region),
                    ("URL", &|i| text_at(i, "uri")),
                    ("LAST DEPLOYED BY", &|i| text_at(i, "lastModifier")),
                    ("LAST DEPLOYED AT", &|i| moment(&text_at(i, "updateTime"))),
                ],
            )
        }
        ServicesCommand::Describe { name, why } => {
            let service = existing(&api, name).await?;
            if *why {
                let explained = api.get(&api.explain(name)).await?;
                return if client.format == Format::Table {
                    let message = text_at(&service, "terminalCondition.message");
                    if !message.is_empty() {
                        line(&format!("{}: {message}", ready_word(&service)));
                    }
                    print_why(name, &explained);
                    Ok(())
                } else {
                    value(&client.format, &explained)
                };
            }
            if client.format == Format::Table {
                print_service(&service);
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
        ServicesCommand::UpdateTraffic {
            name,
            to_revisions,
            to_latest,
            set_tags,
        } => {
            let path = api.service(name);
            if to_revisions.is_none() && !to_latest && set_tags.is_none() {
                return Err(Failure::usage(
                    "say where requests shall go: --to-latest, --to-revisions or --set-tags",
                ));
            }
            let mut service = existing(&api, name).await?;
            let targets = new_traffic(
                service["traffic"].as_array().cloned().unwrap_or_default(),
                to_revisions.as_deref(),
                *to_latest,
                set_tags.as_deref(),
            )?;
            let body = json!({"traffic": targets, "etag": service["etag"].take()});
            let operation = api
                .patch(&format!("{path}?updateMask=traffic"), &body)
                .await
                .map_err(|f| {
                    f.hint(format!(
                        "`utsuwa revisions list --service {name}` shows them"
                    ))
                })?;
            let progress = Progress::new();
            super::wait::wait_shown(&api, &operation, name, &progress).await?;
            drop(progress);
            let service = api.get(&path).await?;
            if client.format == Format::Table {
                print_traffic(&service);
                Ok(())
            } else {
                value(&client.format, &service["trafficStatuses"])
            }
        }
    }
}

/// The service, or a failure that names the one that was probably meant.
async fn existing(api: &Api, name: &str) -> Result<Value, Failure> {
    match api.get(&api.service(name)).await {
        Ok(service) => Ok(service),
        Err(failure) => Err(suggest::service(api, name, failure).await),
    }
}

/// Stops unless the user says yes; without a terminal the answer is no.
fn confirm(what: &str) -> Result<(), Failure> {
    use std::io::{BufRead, IsTerminal};
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(
            Failure::usage(format!("{what} Not asked, since this is no terminal."))
                .hint("say yes ahead with --quiet"),
        );
    }
    note(&format!("{what} Go on (y/N)? "));
    let mut answer = String::new();
    stdin
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::failed(format!("read the answer: {e}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::failed("Nothing was changed."))
    }
}

const LATEST: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST";
const REVISION: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION";

fn target(revision: &str) -> Value {
    if revision == "LATEST" {
        json!({"type": LATEST})
    } else {
        json!({"type": REVISION, "revision": revision})
    }
}

/// The new list of targets: percentages first, then tags.
fn new_traffic(
    old: Vec<Value>,
    to: Option<&str>,
    latest: bool,
    tags: Option<&str>,
) -> Result<Vec<Value>, Failure> {
    let (old_tags, old_shares): (Vec<Value>, Vec<Value>) = old
        .into_iter()
        .partition(|t| t["tag"].is_string() && t["percent"].is_null());
    let mut shares = old_shares;
    if latest {
        shares = vec![json!({"type": LATEST, "percent": 100})];
    }
    if let Some(list) = to {
        let mut named = Vec::new();
        let mut sum = 0;
        for part in list.split(',') {
            let (revision, percent) = part
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("{part:?}: must be REVISION=PERCENT")))?;
            let percent: u32 = percent.parse().map_err(|_| {
                Failure::usage(format!("{part:?}: the percentage must be a whole number"))
            })?;
            sum += percent;
            let mut share = target(revision);
            share["percent"] = json!(percent);
            named.push(share);
        }
        if sum > 100 {
            return Err(Failure::usage(format!(
                "the percentages add up to {sum}; they must not exceed 100"
            )));
        }
        shares = spread(shares, named, 100 - sum)?;
    }
    let tag_targets = match tags {
        None => old_tags,
        Some(list) => list
            .split(',')
            .filter(|p| !p.is_empty())
            .map(|part| {
                let (tag, revision) = part
                    .split_once('=')
                    .ok_or_else(|| Failure::usage(format!("{part:?}: must be TAG=REVISION")))?;
                let mut tagged = target(revision);
                tagged["tag"] = json!(tag);
                Ok(tagged)
            })
            .collect::<Result<_, Failure>>()?,
    };
    shares.extend(tag_targets);
    Ok(shares)
}

/// Gives `left` percent to those of `old` that `named` doesn't name, in proportion; the largest takes what rounding leaves.
fn spread(old: Vec<Value>, named: Vec<Value>, left: u32) -> Result<Vec<Value>, Failure> {
    let same = |a: &Value, b: &Value| a["type"] == b["type"] && a["revision"] == b["revision"];
    let mut rest: Vec<(Value, u64)> = old
        .into_iter()
        .filter(|o| !named.iter().any(|n| same(o, n)))
        .map(|o| {
            let percent = o["percent"].as_u64().unwrap_or(0);
            (o, percent)
        })
        .filter(|(_, percent)| *percent > 0)
        .collect();
    let total: u64 = rest.iter().map(|(_, p)| p).sum();
    if left > 0 && total == 0 {
        return Err(Failure::usage(format!(
            "{left} percent go nowhere: name revisions whose percentages add up to 100"
        )));
    }
    let mut given = 0;
    for (_, percent) in &mut rest {
        *percent = *percent * u64::from(left) / total.max(1);
        given += *percent;
    }
    if let Some((_, most)) = rest.iter_mut().max_by_key(|(_, p)| *p) {
        *most += u64::from(left) - given;
    }
    Ok(named
        .into_iter()
        .chain(rest.into_iter().map(|(mut target, percent)| {
            target["percent"] = json!(percent);
            target
        }))
        .filter(|t| t["percent"].as_u64() != Some(0) || t["tag"].is_string())
        .collect())
}

fn print_service(service: &Value) {
    line(&format!(
        "Service {} in {}",
        short(&text_at(service, "name")),
        region(service)
    ));
    line(&format!("URL:      {}", text_at(service, "uri")));
    line(&format!("State:    {}", ready_word(service)));
    let message = text_at(service, "terminalCondition.message");
    if !message.is_empty() {
        line(&format!("          {message}"));
    }
    print_traffic(service);
    let container = &service["template"]["containers"][0];
    line(&format!("Image:    {}", text_at(container, "image")));
    for (label, path) in [
        ("Memory:", "resources.limits.memory"),
        ("CPU:", "resources.limits.cpu"),
    ] {
        let limit = text_at(container, path);
        if !limit.is_empty() {
            line(&format!("{label:<9} {limit}"));
        }
    }
    line(&format!(
        "Deployed: {} by {}",
        moment(&text_at(service, "updateTime")),
        text_at(service, "lastModifier")
    ));
}

fn print_traffic(service: &Value) {
    line("Traffic:");
    for target in service["trafficStatuses"].as_array().into_iter().flatten() {
        let latest = if target["type"] == json!(LATEST) {
            " (latest)"
        } else {
            ""
        };
        let tag = match target["tag"].as_str() {
            Some(tag) => format!("  tag {tag}: {}", text_at(target, "uri")),
            None => String::new(),
        };
        line(&format!(
            "  {:>3}% {}{latest}{tag}",
            target["percent"].as_u64().unwrap_or(0),
            short(&text_at(target, "revision"))
        ));
    }
}

fn print_why(name: &str, explained: &Value) {
    let revisions = explained["revisions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if revisions.is_empty() {
        line(&format!(
            "Service {name}: nothing is routed and nothing runs."
        ));
    }
    for revision in &revisions {
        line(&format!(
            "{}  {}% of traffic, {} in flight, {} queued",
            short(&text_at(revision, "revision")),
            text_at(revision, "percent"),
            text_at(revision, "inFlight"),
            text_at(revision, "queued")
        ));
        for instance in revision["instances"].as_array().into_iter().flatten() {
            line(&format!(
                "  instance {} {} pid {}, {} in flight, since {}",
                text_at(instance, "id").get(..12).unwrap_or_default(),
                text_at(instance, "state"),
                text_at(instance, "pid"),
                text_at(instance, "inFlight"),
                text_at(instance, "started")
            ));
        }
        for because in revision["because"].as_array().into_iter().flatten() {
            line(&format!("  because {}", text_at(because, "summary")));
            for fact in because["facts"].as_array().into_iter().flatten() {
                line(&format!(
                    "    {} = {}",
                    text_at(fact, "0"),
                    text_at(fact, "1")
                ));
            }
        }
    }
}

pub(crate) async fn run_revisions(
    command: &RevisionsCommand,
    client: &ClientArgs,
) -> Result<(), Failure> {
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
        RevisionsCommand::Delete { name } => {
            let found = find(&api, name).await?;
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

/// A revision by its id alone, as gcloud takes it.
async fn find(api: &Api, name: &str) -> Result<Value, Failure> {
    let all = api
        .list(&format!("{}/revisions", api.service("-")), "revisions")
        .await?;
    let names: Vec<String> = all.iter().map(|r| short(&text_at(r, "name"))).collect();
    match names.iter().position(|n| n == name) {
        Some(at) => Ok(all[at].clone()),
        None => Err(Failure::failed(format!(
            "revision [{name}] does not exist in project [{}] region [{}]",
            api.project, api.region
        ))
        .hint(suggest::hint(name, &names, "revisions", api))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_goes_on_in_proportion() {
        let old = vec![
            json!({"type": LATEST, "percent": 60}),
            json!({"type": REVISION, "revision": "a", "percent": 40}),
        ];
        let new = new_traffic(old, Some("b=10"), false, None).expect("valid");
        let percents: Vec<u64> = new.iter().filter_map(|t| t["percent"].as_u64()).collect();
        assert_eq!(percents, [10, 54, 36]);
        assert!(new_traffic(vec![], Some("b=10"), false, None).is_err());
        assert!(new_traffic(vec![], Some("a=60,b=50"), false, None).is_err());
    }

    #[test]
    fn tags_are_kept_unless_set() {
        let old = vec![
            json!({"type": LATEST, "percent": 100}),
            json!({"type": REVISION, "revision": "a", "tag": "old"}),
        ];
        assert_eq!(
            new_traffic(old.clone(), None, true, None)
                .expect("valid")
                .len(),
            2
        );
        let set = new_traffic(old, None, false, Some("new=LATEST")).expect("valid");
        assert_eq!(set[1], json!({"type": LATEST, "tag": "new"}));
    }
}
