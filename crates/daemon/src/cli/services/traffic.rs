//! `utsuwa services update-traffic`: where requests shall go, from gcloud's flags to the list of targets.
//!
//! As gcloud does it: tags change first, then percentages; a share and a tag are entries of their own, so that each can be
//! changed without the other.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::{Value, json};
use utsuwa_model::service::validate::tag_problem;

use super::super::progress::Progress;
use super::super::{ClientArgs, overtaken, short, suggest, wait};
use super::existing;
use super::show::print_traffic;
use crate::client::{Api, Failure};
use crate::output::{Format, note, text_at, value};

pub(in crate::cli) const LATEST: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST";
const REVISION: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION";

#[derive(Debug, Default, Args)]
pub(crate) struct TrafficArgs {
    /// Name of the service.
    name: String,
    /// REVISION=PERCENT,… ; LATEST names the newest ready one. What is left goes on in proportion.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["to_latest", "to_tags"])]
    to_revisions: Option<String>,
    /// TAG=PERCENT,…: as --to-revisions, for the revisions that have these tags.
    #[arg(long, value_name = "LIST", conflicts_with = "to_latest")]
    to_tags: Option<String>,
    /// Everything to the newest ready revision.
    #[arg(long)]
    to_latest: bool,
    /// TAG=REVISION,…: sets these tags and no others.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["update_tags", "remove_tags", "clear_tags"])]
    set_tags: Option<String>,
    /// TAG=REVISION,…: adds or moves these tags. A tagged revision has an address of its own.
    #[arg(long, value_name = "LIST", conflicts_with = "clear_tags")]
    update_tags: Option<String>,
    /// TAG,…: removes these tags, before --update-tags.
    #[arg(long, value_name = "LIST", conflicts_with = "clear_tags")]
    remove_tags: Option<String>,
    /// Removes all tags.
    #[arg(long)]
    clear_tags: bool,
    /// Return once the change is accepted.
    #[arg(long = "async")]
    no_wait: bool,
}

pub(super) async fn run(args: &TrafficArgs, api: &Api, client: &ClientArgs) -> Result<(), Failure> {
    if !args.changes_something() {
        return Err(Failure::usage(
            "say where requests shall go: --to-latest, --to-revisions or --to-tags; or which revisions have tags: --set-tags, \
             --update-tags, --remove-tags or --clear-tags",
        ));
    }
    let name = &args.name;
    let path = api.service(name);
    let own = path.trim_start_matches("/run/v2/");
    let operation = overtaken::again(&format!("service [{name}]"), async || {
        let mut service = existing(api, name).await?;
        let old = service["traffic"].as_array().cloned().unwrap_or_default();
        let targets = new_traffic(old, args, own)?;
        let body = json!({"traffic": targets, "etag": service["etag"].take()});
        let patched = api
            .patch(&format!("{path}?updateMask=traffic"), &body)
            .await;
        match patched {
            Err(failure) if !failure.is_overtaken() => {
                Err(with_meant(api, name, failure, &body["traffic"]).await)
            }
            done => done,
        }
    })
    .await?;
    if args.no_wait {
        note(&format!(
            "Changing the traffic of [{name}]; follow it with `utsuwa services describe {name}`."
        ));
        return Ok(());
    }
    let progress = Progress::new();
    wait::wait_shown(api, &operation, name, &progress).await?;
    drop(progress);
    let service = api.get(&path).await?;
    if client.format == Format::Table {
        print_traffic(&service);
        Ok(())
    } else {
        value(&client.format, &service["trafficStatuses"])
    }
}

/// The refusal, with the revision that was probably meant by one that isn't there.
async fn with_meant(api: &Api, name: &str, failure: Failure, targets: &Value) -> Failure {
    let path = format!("{}/revisions", api.service(name));
    let there = api.list(&path, "revisions").await.unwrap_or_default();
    let there: Vec<String> = there.iter().map(|r| short(&text_at(r, "name"))).collect();
    hinted(name, failure, targets, &there)
}

/// Nothing is meant by what is wrong elsewhere in the service, which is checked as a whole.
fn hinted(name: &str, failure: Failure, targets: &Value, there: &[String]) -> Failure {
    let of_traffic = |(field, _): &(String, String)| field.starts_with("traffic");
    if !failure.violations.iter().any(of_traffic) {
        return failure;
    }
    let hint = match meant(targets, there) {
        Some((wrong, right)) => format!("there is no revision {wrong}; did you mean {right}?"),
        None => format!("`utsuwa revisions list --service {name}` shows the revisions there are"),
    };
    failure.hint(hint)
}

/// The first revision of `targets` that is not `there`, and the one most like it.
fn meant<'a>(targets: &Value, there: &'a [String]) -> Option<(String, &'a str)> {
    let named = targets.as_array()?.iter();
    let wrong = named
        .map(|target| text_at(target, "revision"))
        .find(|revision| !revision.is_empty() && !there.contains(revision))?;
    let right = suggest::nearest(&wrong, there.iter().map(String::as_str))?;
    Some((wrong, right))
}

impl TrafficArgs {
    fn changes_something(&self) -> bool {
        let lists = [
            &self.to_revisions,
            &self.to_tags,
            &self.set_tags,
            &self.update_tags,
            &self.remove_tags,
        ];
        self.to_latest || self.clear_tags || lists.iter().any(|list| list.is_some())
    }
}

/// The new list of targets: percentages first, then tags. `own`: the full name of the service.
fn new_traffic(old: Vec<Value>, args: &TrafficArgs, own: &str) -> Result<Vec<Value>, Failure> {
    let (mut shares, tags) = parted(old);
    if shares.is_empty() && tags.is_empty() {
        // Never set: the newest ready revision has everything, and a list that says less would be refused.
        shares = vec![share("LATEST", 100)];
    }
    let tags = new_tags(tags, args, own)?;
    if args.to_latest {
        shares = vec![share("LATEST", 100)];
    } else if let Some(list) = &args.to_revisions {
        const FLAG: &str = "--to-revisions";
        let by_id = |name: &str| revision_id(FLAG, name, own);
        let named = percentages(FLAG, "REVISION", list, by_id)?
            .into_iter()
            .map(|(revision, percent)| share(&revision, percent));
        shares = spread(FLAG, shares, named.collect())?;
    } else if let Some(list) = &args.to_tags {
        let named = percentages("--to-tags", "TAG", list, |tag| Ok(tag.to_owned()))?
            .into_iter()
            .map(|(tag, percent)| {
                let mut target = tagged(&tags, &tag, &args.name)?.clone();
                if let Some(target) = target.as_object_mut() {
                    target.remove("tag");
                }
                target["percent"] = json!(percent);
                Ok(target)
            });
        let named = named.collect::<Result<Vec<Value>, Failure>>()?;
        shares = spread("--to-tags", shares, merged(named))?;
    }
    shares.extend(tags);
    Ok(shares)
}

/// Shares and tags. An entry that is both (other clients write such) becomes two.
fn parted(old: Vec<Value>) -> (Vec<Value>, Vec<Value>) {
    let (mut shares, mut tags) = (Vec::new(), Vec::new());
    for mut target in old {
        let percent = target["percent"].as_u64().unwrap_or(0);
        if text_at(&target, "tag").is_empty() {
            shares.push(target);
            continue;
        }
        if let Some(target) = target.as_object_mut() {
            target.remove("percent");
        }
        if percent > 0 {
            let mut share = target.clone();
            if let Some(share) = share.as_object_mut() {
                share.remove("tag");
            }
            share["percent"] = json!(percent);
            shares.push(share);
        }
        tags.push(target);
    }
    (merged(shares), tags)
}

fn new_tags(mut tags: Vec<Value>, args: &TrafficArgs, own: &str) -> Result<Vec<Value>, Failure> {
    if args.clear_tags || args.set_tags.is_some() {
        tags.clear();
    }
    for tag in args.remove_tags.iter().flat_map(|list| parts(list)) {
        let before = tags.len();
        tags.retain(|t| t["tag"] != json!(tag));
        if tags.len() == before {
            // Not refused: gcloud doesn't either, and a script may run twice.
            note(&format!(
                "note: --remove-tags: [{}] has no tag {tag:?}.",
                args.name
            ));
        }
    }
    let (flag, list) = match &args.set_tags {
        Some(list) => ("--set-tags", Some(list)),
        None => ("--update-tags", args.update_tags.as_ref()),
    };
    let mut named = BTreeSet::new();
    for part in list.into_iter().flat_map(|list| parts(list)) {
        let (tag, revision) = pair(flag, "TAG=REVISION", part)?;
        if let Some(problem) = tag_problem(tag, &args.name) {
            return Err(
                Failure::usage(format!("{flag}: the tag in {part:?}: {problem}")).hint(format!(
                    "a tag becomes part of an address, TAG---{}…; {flag} takes TAG=REVISION, with LATEST for the newest ready revision",
                    args.name
                )),
            );
        }
        if !named.insert(tag) {
            return Err(Failure::usage(format!("{flag}: names tag {tag:?} twice")));
        }
        let mut target = target(&revision_id(flag, revision, own)?);
        target["tag"] = json!(tag);
        tags.retain(|t| t["tag"] != json!(tag));
        tags.push(target);
    }
    Ok(tags)
}

/// The entry of `tag`.
fn tagged<'a>(tags: &'a [Value], tag: &str, service: &str) -> Result<&'a Value, Failure> {
    let found = tags.iter().find(|t| t["tag"] == json!(tag));
    found.ok_or_else(|| {
        let names: Vec<&str> = tags.iter().filter_map(|t| t["tag"].as_str()).collect();
        let hint = match suggest::nearest(tag, names.iter().copied()) {
            Some(meant) => format!("did you mean {meant}?"),
            None if names.is_empty() => format!(
                "it has none; --update-tags {tag}=REVISION in the same command gives it one"
            ),
            None => format!("it has {}", names.join(", ")),
        };
        Failure::usage(format!("--to-tags: [{service}] has no tag {tag:?}")).hint(hint)
    })
}

/// The id of a revision that is named by it, or in full, as `revisions list --format 'value(name)'` prints it, within the service `own`.
fn revision_id(flag: &str, name: &str, own: &str) -> Result<String, Failure> {
    let id = match name.strip_prefix(own) {
        Some(below) => below.strip_prefix("/revisions/").unwrap_or(name),
        None => name,
    };
    if id.is_empty() || id.contains('/') {
        return Err(
            Failure::usage(format!("{flag}: {name} is no revision of {own}"))
                .hint("a revision's id alone will do, the last part of its full name; --project and --region say where the service is"),
        );
    }
    Ok(id.to_owned())
}

fn target(revision: &str) -> Value {
    if revision == "LATEST" {
        json!({"type": LATEST})
    } else {
        json!({"type": REVISION, "revision": revision})
    }
}

fn share(revision: &str, percent: u64) -> Value {
    let mut share = target(revision);
    share["percent"] = json!(percent);
    share
}

fn parts(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|p| !p.is_empty())
}

fn pair<'a>(flag: &str, form: &str, part: &'a str) -> Result<(&'a str, &'a str), Failure> {
    part.split_once('=')
        .filter(|(name, what)| !name.is_empty() && !what.is_empty())
        .ok_or_else(|| Failure::usage(format!("{flag}: {part:?} must be {form}")))
}

/// `NAME=PERCENT,…`, each `named` thing once.
fn percentages(
    flag: &str,
    what: &str,
    list: &str,
    named: impl Fn(&str) -> Result<String, Failure>,
) -> Result<Vec<(String, u64)>, Failure> {
    let mut all: Vec<(String, u64)> = Vec::new();
    for part in parts(list) {
        let (name, percent) = pair(flag, &format!("{what}=PERCENT"), part)?;
        let percent = percent.parse().ok().filter(|p| *p <= 100).ok_or_else(|| {
            Failure::usage(format!(
                "{flag}: the percentage in {part:?} must be a whole number from 0 to 100"
            ))
        })?;
        let name = named(name)?;
        if all.iter().any(|(known, _)| *known == name) {
            return Err(Failure::usage(format!("{flag}: names {name} twice")));
        }
        all.push((name, percent));
    }
    if all.is_empty() {
        return Err(Failure::usage(format!(
            "{flag}: is empty; it takes {what}=PERCENT,…"
        )));
    }
    Ok(all)
}

fn same(a: &Value, b: &Value) -> bool {
    a["type"] == b["type"] && a["revision"] == b["revision"]
}

/// Two tags may lead to one revision: it gets what both are given.
fn merged(shares: Vec<Value>) -> Vec<Value> {
    let percent = |share: &Value| share["percent"].as_u64().unwrap_or(0);
    let mut all: Vec<Value> = Vec::new();
    for share in shares {
        match all.iter_mut().find(|known| same(known, &share)) {
            Some(known) => known["percent"] = json!(percent(known) + percent(&share)),
            None => all.push(share),
        }
    }
    all
}

/// `named`, and what is left for those of `old` that it doesn't name, in proportion; the largest takes what rounding leaves.
fn spread(flag: &str, old: Vec<Value>, named: Vec<Value>) -> Result<Vec<Value>, Failure> {
    let percent = |share: &Value| share["percent"].as_u64().unwrap_or(0);
    let sum: u64 = named.iter().map(percent).sum();
    let Some(left) = 100_u64.checked_sub(sum) else {
        return Err(Failure::usage(format!(
            "{flag}: the percentages add up to {sum}; they must not exceed 100"
        )));
    };
    let mut rest: Vec<(Value, u64)> = old
        .into_iter()
        .filter(|o| !named.iter().any(|n| same(o, n)))
        .map(|o| (o.clone(), percent(&o)))
        .filter(|(_, percent)| *percent > 0)
        .collect();
    let total: u64 = rest.iter().map(|(_, p)| p).sum();
    if left > 0 && total == 0 {
        return Err(Failure::usage(format!(
            "{flag}: {left} percent go nowhere: name revisions whose percentages add up to 100"
        )));
    }
    let mut given = 0;
    for (_, percent) in &mut rest {
        *percent = *percent * left / total.max(1);
        given += *percent;
    }
    if let Some((_, most)) = rest.iter_mut().max_by_key(|(_, p)| *p) {
        *most += left - given;
    }
    let rest = rest.into_iter().map(|(mut target, percent)| {
        target["percent"] = json!(percent);
        target
    });
    Ok(named
        .into_iter()
        .chain(rest)
        .filter(|target| percent(target) > 0)
        .collect())
}

#[cfg(test)]
mod tests;
