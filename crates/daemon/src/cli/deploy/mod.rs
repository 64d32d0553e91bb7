//! `utsuwa deploy`: the flags of `gcloud run deploy`, over the v2 API. Flags change only what they name; what an existing
//! service has besides stays.

mod counts;
mod lists;
mod named;
mod report;
mod service;

use std::io::IsTerminal;

use clap::Args;
use serde_json::Value;

pub(crate) use self::lists::swallowed;
use self::report::report;
pub(crate) use self::report::{host_and_address, is_internal, set_public};
use self::service::{body, nothing_to_remove};
use super::progress::Progress;
use super::rewrites::Rewrites;
use super::services::back::Back;
use super::services::show::{can_serve, repair};
use super::{ClientArgs, numbers, overtaken, suggest};
use crate::client::{Api, Failure};
use crate::output::{ask, note};

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Name of the service.
    name: String,
    /// Image: any registry reference, `utsuwa.local/hello`, `oci:DIR[:TAG]`, `oci-archive:FILE[:REFERENCE]` or `docker-archive:FILE[:REFERENCE]`.
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// Build from source: not built yet.
    #[arg(long, value_name = "DIR")]
    source: Option<String>,
    /// Let everybody call the service.
    #[arg(long, conflicts_with = "no_allow_unauthenticated")]
    allow_unauthenticated: bool,
    /// Keep the service private.
    #[arg(long)]
    no_allow_unauthenticated: bool,
    /// Port the container listens on [default: 8080]
    #[arg(long, value_parser = numbers::port)]
    port: Option<u16>,
    /// Speak HTTP/2 cleartext to the container.
    #[arg(long, overrides_with = "no_use_http2")]
    use_http2: bool,
    /// Speak HTTP/1.1 to the container (default).
    #[arg(long)]
    no_use_http2: bool,
    /// Memory limit, for example 512Mi or 1Gi [default: 512Mi]
    #[arg(long)]
    memory: Option<String>,
    /// CPU limit, for example 1, 0.5 or 500m [default: 1]
    #[arg(long)]
    cpu: Option<String>,
    /// Requests in flight per instance: 1 to 1000, or default (80; 1 below one CPU).
    #[arg(long, value_name = "COUNT", value_parser = counts::concurrency)]
    concurrency: Option<u32>,
    /// Time a request may take: seconds, or 5m; 60 minutes at most [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = counts::timeout)]
    timeout: Option<u64>,
    /// Instances kept when nobody calls, per revision.
    #[arg(long, value_parser = numbers::whole::<u32>)]
    min_instances: Option<u32>,
    /// Instances at most, per revision: 1 or more, or default (100).
    #[arg(long, value_name = "COUNT", value_parser = counts::one_or_default)]
    max_instances: Option<u32>,
    /// Instances kept over all revisions.
    #[arg(long, value_parser = numbers::whole::<u32>)]
    min: Option<u32>,
    /// Instances at most over all revisions: 1 or more, or default (no limit of its own).
    #[arg(long, value_name = "COUNT", value_parser = counts::one_or_default)]
    max: Option<u32>,
    /// NAME=VALUE,…: replaces all variables. Another delimiter than a comma, in every list here: `^@^A=1,2@B=3`. Repeatable.
    #[arg(long, value_name = "LIST", conflicts_with = "update_env_vars")]
    set_env_vars: Vec<String>,
    /// NAME=VALUE,…: adds or changes variables. Repeatable.
    #[arg(long, value_name = "LIST")]
    update_env_vars: Vec<String>,
    /// NAME,…: removes variables. Repeatable.
    #[arg(long, value_name = "LIST")]
    remove_env_vars: Vec<String>,
    /// Removes all variables.
    #[arg(long, conflicts_with_all = ["set_env_vars", "update_env_vars", "remove_env_vars"])]
    clear_env_vars: bool,
    /// Replaces the image's entrypoint; comma-separated, or `^@^a@b,c`. Repeatable. Empty resets it.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    command: Vec<String>,
    /// Replaces the image's arguments; comma-separated, or `^@^-c@echo a,b`. Repeatable. Empty resets them.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    args: Vec<String>,
    /// gen1 (on gVisor, where runsc is installed) or gen2.
    #[arg(long)]
    execution_environment: Option<String>,
    /// CPU during requests only (default for new services): idle instances are frozen and go on with the next request.
    #[arg(long, overrides_with = "no_cpu_throttling")]
    cpu_throttling: bool,
    /// Keep CPU between requests, as work in the background needs.
    #[arg(long)]
    no_cpu_throttling: bool,
    /// More CPU while an instance starts, until ten seconds after it is ready: 1 becomes 2, 2 become 4 (default for new services).
    #[arg(long, overrides_with = "no_cpu_boost")]
    cpu_boost: bool,
    /// An instance starts with its own --cpu.
    #[arg(long)]
    no_cpu_boost: bool,
    /// Prepare starts ahead: an instance waits with the program's modules imported (Python). Costs its memory between requests.
    #[arg(long, overrides_with = "no_zygote")]
    zygote: bool,
    /// Start instances when they are needed (default).
    #[arg(long)]
    no_zygote: bool,
    /// Answer paths that scanners ask for (/.env, /wp-login.php, …; the server's scanner-paths) 404, without waking.
    #[arg(long, overrides_with = "no_refuse_scanners")]
    refuse_scanners: bool,
    /// Pass every path to the app (default).
    #[arg(long)]
    no_refuse_scanners: bool,
    /// Show browsers a page that comes back by itself when an instance takes longer than a second to start.
    #[arg(long, overrides_with = "no_waiting_page")]
    waiting_page: bool,
    /// Let browsers wait for the app (default).
    #[arg(long)]
    no_waiting_page: bool,
    /// Send a client to the same instance again where possible.
    #[arg(long, overrides_with = "no_session_affinity")]
    session_affinity: bool,
    /// Send each request to any instance (default).
    #[arg(long)]
    no_session_affinity: bool,
    /// all, internal or internal-and-cloud-load-balancing.
    #[arg(long)]
    ingress: Option<String>,
    /// What the service is for.
    #[arg(long)]
    description: Option<String>,
    /// KEY=VALUE,…: labels on service and revision. Repeatable.
    #[arg(long, value_name = "LIST")]
    labels: Vec<String>,
    /// KEY=VALUE,…: template annotations such as autoscaling.knative.dev/window=6s; without a value one is removed. Repeatable.
    #[arg(long, value_name = "LIST")]
    annotations: Vec<String>,
    /// Name of the revision: SERVICE-SUFFIX.
    #[arg(long, value_name = "SUFFIX")]
    revision_suffix: Option<String>,
    /// Give the new revision an address of its own: TAG---NAME…
    #[arg(long)]
    tag: Option<String>,
    /// Send no requests to the new revision.
    #[arg(long)]
    no_traffic: bool,
    /// Return once the change is accepted.
    #[arg(long = "async")]
    no_wait: bool,
    /// Never ask.
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) async fn run(args: &DeployArgs, client: &ClientArgs) -> Result<(), Failure> {
    if args.source.is_some() {
        return Err(Failure::usage(
            "--source is not built yet: build the image yourself and name it with --image",
        ));
    }
    let api = client.connect().await?;
    let path = api.service(&args.name);
    let before = there(&api, &args.name).await?;
    let new = before.is_none();
    if args.image.is_none() && new {
        return Err(no_image(&api, &args.name).await);
    }
    if let Some(refused) = without_traffic(args, new) {
        return Err(refused);
    }
    if new {
        // Before the question, so that nobody opens what goes to the wrong place.
        first_of_region(&api).await?;
    }
    let public = wants_public(args, new)?;
    if let Some(text) = nothing_to_remove(args, before.as_ref())? {
        note(&text);
    }
    if let Some(reference) = &args.image
        && let Some(other) = Rewrites::of(&api).await.note(reference)
    {
        note(&other);
    }
    // Not before the question: both want the line.
    let progress = Progress::new();
    let image = match &args.image {
        Some(reference) => Some(super::images::upload_if_local(&api, reference, &progress).await?),
        None => None,
    };
    let what = format!("service [{}]", args.name);
    let (operation, existing) = overtaken::again(&what, async || {
        let mut existing = there(&api, &args.name).await?;
        if existing.is_none() {
            let body = body(args, image.clone(), None)?;
            let new = format!("/run/v2/{}/services?serviceId={}", api.parent(), args.name);
            match api.post(&new, &body).await {
                Err(failure) if failure.is_already_there() => {
                    existing = there(&api, &args.name).await?;
                    // Not that somebody else has just made it: something else has its host.
                    if existing.is_none() {
                        return Err(failure);
                    }
                }
                made => {
                    return Ok((
                        made.map_err(|refused| named::flags(refused, &body["template"]))?,
                        None,
                    ));
                }
            }
        }
        let body = body(args, image.clone(), existing.clone())?;
        let changed = api.patch(&path, &body).await;
        let changed = changed.map_err(|refused| named::flags(refused, &body["template"]))?;
        Ok((changed, existing))
    })
    .await?;
    if let Some(public) = public {
        let what = format!("who may call {what}");
        overtaken::again(&what, async || set_public(&api, &path, public).await)
            .await
            .map_err(|failure| half_done(failure, &args.name, existing.is_none(), public))?;
    }
    if args.no_wait {
        note(&format!(
            "Deploying [{}]; follow it with `utsuwa services describe {}`.",
            args.name, args.name
        ));
        return Ok(());
    }
    progress.note(&format!(
        "Deploying [{}] in project [{}] region [{}]",
        args.name, api.project, api.region
    ));
    let waited = super::wait::wait_shown(&api, &operation, &args.name, &progress).await;
    drop(progress);
    if let Err(failure) = waited {
        if failure.status != 1 {
            return Err(failure);
        }
        let failed = there(&api, &args.name).await.ok().flatten();
        let way = match &failed {
            Some(service) => Back::of(&api, service)
                .await
                .words_without_values(&args.name),
            None => None,
        };
        return Err(after_failure(
            failure,
            &args.name,
            existing.as_ref(),
            way.as_deref(),
        ));
    }
    report(&api, args, client).await
}

/// The refusal of `--no-traffic` for a `new` service, as gcloud's: nothing else could take the requests.
fn without_traffic(args: &DeployArgs, new: bool) -> Option<Failure> {
    (args.no_traffic && new).then(|| {
        Failure::usage(format!(
            "--no-traffic: service [{}] is not there yet, and the first revision of a new service takes its traffic",
            args.name
        ))
        .hint("deploy it without --no-traffic; --no-allow-unauthenticated keeps it closed to callers meanwhile")
    })
}

/// The service, if there is one of that name.
async fn there(api: &Api, name: &str) -> Result<Option<Value>, Failure> {
    match api.get(&api.service(name)).await {
        Ok(service) => Ok(Some(service)),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Says that a region is about to get its first service, unless it is the server's own: every name is a region here, a mistyped one too.
async fn first_of_region(api: &Api) -> Result<(), Failure> {
    if api.region != api.home && suggest::services(api).await?.is_empty() {
        note(&format!(
            "This is the first service of region [{}]; the server's own is [{}]. A region is no more than a name here: if it is mistyped, \
             `utsuwa services delete` with the same --region undoes it.",
            api.region, api.home
        ));
    }
    Ok(())
}

/// Adds how the service stands when its deploy was accepted, but not who may call it.
fn half_done(mut failure: Failure, name: &str, new: bool, public: bool) -> Failure {
    // Deleted by somebody else, and its deploy with it.
    if failure.is_not_found() {
        return failure;
    }
    let (callers, flag) = match (public, new) {
        (true, true) => ("it is closed to callers still", "--allow-unauthenticated"),
        (true, false) => ("who may call it is as before", "--allow-unauthenticated"),
        (false, _) => ("who may call it is as before", "--no-allow-unauthenticated"),
    };
    failure.message = format!(
        "who may call service [{name}] was not changed: {failure}\nThe deploy itself was accepted and goes on, and is not waited for; {callers}."
    );
    failure.hint(format!(
        "`utsuwa services describe {name}` says how the deploy went; then `utsuwa deploy {name} {flag}` changes who may call"
    ))
}

/// Says how the service stands now that its deploy failed, what of it stays, and what can be done about one that serves nothing.
fn after_failure(
    failure: Failure,
    name: &str,
    existing: Option<&Value>,
    way: Option<&str>,
) -> Failure {
    let serves = existing.is_some_and(can_serve);
    note(&match serves {
        true => "The deploy failed; what served before still serves.".to_owned(),
        false => format!("The deploy failed; service [{name}] exists, but serves nothing."),
    });
    if let Some(way) = way {
        note(way);
    }
    if serves {
        return failure;
    }
    let ran = !failure.nothing_ran;
    failure.hint(repair(name, ran))
}

/// A service without an image doesn't exist yet; or another one was meant.
async fn no_image(api: &Api, name: &str) -> Failure {
    let needed = Failure::usage(format!(
        "there is no service [{name}] in project [{}] region [{}], and --image is needed for a new one",
        api.project, api.region
    ));
    if let Some(region) = suggest::elsewhere(api, name).await {
        return needed.hint(suggest::in_region(name, &region));
    }
    let names = suggest::services(api).await.unwrap_or_default();
    needed.hint(which_image(name, &names))
}

/// What to do about a deploy of `name` without an image, where there are `services`. Who has some has most likely mistyped one's name,
/// and shall not get the sample under the wrong one.
fn which_image(name: &str, services: &[String]) -> String {
    const SHOWN: usize = 5;
    if let Some(meant) = suggest::nearest(name, services.iter().map(String::as_str)) {
        return format!("did you mean {meant}?");
    }
    if services.is_empty() {
        return format!(
            "name its image with --image REF; `utsuwa deploy {name} --image utsuwa.local/hello` takes the built-in sample"
        );
    }
    let shown = services.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    let more = match services.len() > SHOWN {
        true => ", and more (`utsuwa services list`)",
        false => "",
    };
    format!(
        "there are {}{more}; for a new service name its image with --image REF",
        shown.join(", ")
    )
}

/// Whether to open the service: by flag, by asking on a terminal, else unchanged (decision 23).
fn wants_public(args: &DeployArgs, new: bool) -> Result<Option<bool>, Failure> {
    if args.allow_unauthenticated {
        return Ok(Some(true));
    }
    if args.no_allow_unauthenticated {
        return Ok(if new { None } else { Some(false) });
    }
    if !new || args.quiet || !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let yes = ask(&format!("Allow everybody to call [{}]", args.name))?;
    Ok(yes.then_some(true))
}

/// What `utsuwa deploy web` with these words sends for `existing`.
#[cfg(test)]
pub(super) fn sent(words: &[&str], existing: Value) -> Result<Value, Failure> {
    let args = parsed(words).map_err(|error| Failure::usage(error.to_string()))?;
    body(&args, args.image.clone(), Some(existing))
}

/// What `utsuwa deploy web` with these words asks for.
#[cfg(test)]
fn parsed(words: &[&str]) -> Result<DeployArgs, clap::Error> {
    use clap::Parser;
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        deploy: DeployArgs,
    }
    let line = ["deploy", "web"].iter().chain(words);
    Line::try_parse_from(line).map(|line| line.deploy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deploy_that_goes_on_is_told_of_where_its_callers_could_not_be_let_in() {
        let failed = |code| half_done(crate::client::refused_as(code), "web", true, true);
        let failure = failed("ABORTED");
        for part in [
            "[web] was not changed: no",
            "goes on",
            "closed to callers still",
        ] {
            assert!(failure.message.contains(part), "{failure}");
        }
        assert!(
            failure
                .hint
                .unwrap()
                .contains("utsuwa services describe web")
        );
        let deleted = failed("NOT_FOUND");
        assert_eq!((deleted.message.as_str(), deleted.hint), ("no", None));
    }

    #[test]
    fn a_new_service_can_not_go_without_traffic() {
        let without = parsed(&["--no-traffic"]).unwrap();
        let refused = without_traffic(&without, true).unwrap();
        assert_eq!(refused.status, 2);
        assert!(refused.message.starts_with("--no-traffic: service [web]"));
        assert!(without_traffic(&without, false).is_none());
        assert!(without_traffic(&parsed(&[]).unwrap(), true).is_none());
    }

    #[test]
    fn the_sample_is_proposed_only_where_nothing_else_can_be_meant() {
        let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(which_image("ap", &names(&["app"])), "did you mean app?");
        let other = which_image("shop", &names(&["orders", "web"]));
        assert!(other.contains("there are orders, web;"), "{other}");
        assert!(!other.contains("utsuwa.local"), "{other}");
        let many = which_image("shop", &names(&["a1", "b1", "c1", "d1", "e1", "f1"]));
        assert!(
            many.contains("e1, and more") && !many.contains("f1"),
            "{many}"
        );
        assert!(which_image("shop", &[]).contains("--image utsuwa.local/hello"));
    }
}
