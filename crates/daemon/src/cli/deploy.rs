//! `utsuwa deploy`: the flags of `gcloud run deploy`, over the v2 API. Flags change only what they name; what an existing
//! service has besides stays.

use std::io::{BufRead, IsTerminal};

use clap::Args;
use serde_json::{Map, Value, json};

use super::progress::Progress;
use super::{ClientArgs, suggest};
use crate::client::{Api, Failure};
use crate::output::{Format, line, note, value};

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Name of the service.
    name: String,
    /// Image: any registry reference, `utsuwa.local/hello`, `oci:DIR[:TAG]`, `oci-archive:FILE` or `docker-archive:FILE`.
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// Build from source: not built yet.
    #[arg(long, value_name = "DIR")]
    source: Option<String>,
    /// Let everybody call the service.
    #[arg(long, overrides_with = "no_allow_unauthenticated")]
    allow_unauthenticated: bool,
    /// Keep the service private.
    #[arg(long)]
    no_allow_unauthenticated: bool,
    /// Port the container listens on [default: 8080]
    #[arg(long)]
    port: Option<u16>,
    /// Speak HTTP/2 cleartext to the container.
    #[arg(long, overrides_with = "no_use_http2")]
    use_http2: bool,
    /// Speak HTTP/1.1 to the container (default).
    #[arg(long)]
    no_use_http2: bool,
    /// Memory limit, for example 512Mi or 1Gi.
    #[arg(long)]
    memory: Option<String>,
    /// CPU limit, for example 1, 0.5 or 500m.
    #[arg(long)]
    cpu: Option<String>,
    /// Requests in flight per instance.
    #[arg(long)]
    concurrency: Option<u32>,
    /// Time a request may take: seconds, or 5m.
    #[arg(long)]
    timeout: Option<String>,
    /// Instances kept when nobody calls, per revision.
    #[arg(long)]
    min_instances: Option<u32>,
    /// Instances at most, per revision.
    #[arg(long)]
    max_instances: Option<u32>,
    /// Instances kept over all revisions.
    #[arg(long)]
    min: Option<u32>,
    /// Instances at most over all revisions.
    #[arg(long)]
    max: Option<u32>,
    /// NAME=VALUE,…: replaces all variables. `^@^A=1@B=2` uses another separator.
    #[arg(long, value_name = "LIST", conflicts_with = "update_env_vars")]
    set_env_vars: Option<String>,
    /// NAME=VALUE,…: adds or changes variables.
    #[arg(long, value_name = "LIST")]
    update_env_vars: Option<String>,
    /// NAME,…: removes variables.
    #[arg(long, value_name = "LIST")]
    remove_env_vars: Option<String>,
    /// Removes all variables.
    #[arg(long, conflicts_with_all = ["set_env_vars", "update_env_vars", "remove_env_vars"])]
    clear_env_vars: bool,
    /// Replaces the image's entrypoint; comma-separated. Empty resets it.
    #[arg(long, value_name = "LIST")]
    command: Option<String>,
    /// Replaces the image's arguments; comma-separated. Empty resets it.
    #[arg(long, value_name = "LIST")]
    args: Option<String>,
    /// gen1 or gen2.
    #[arg(long)]
    execution_environment: Option<String>,
    /// Keep CPU between requests; an instance here always does.
    #[arg(long)]
    no_cpu_throttling: bool,
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
    /// KEY=VALUE,…: labels on service and revision.
    #[arg(long, value_name = "LIST")]
    labels: Option<String>,
    /// KEY=VALUE,…: template annotations such as autoscaling.knative.dev/window=6s.
    #[arg(long, value_name = "LIST")]
    annotations: Option<String>,
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
    let existing = match api.get(&path).await {
        Ok(service) => Some(service),
        Err(failure) if failure.is_not_found() => None,
        Err(failure) => return Err(failure),
    };
    if args.image.is_none() && existing.is_none() {
        return Err(no_image(&api, &args.name).await);
    }
    let public = wants_public(args, existing.is_none())?;
    // Not before the question: both want the line.
    let progress = Progress::new();
    let image = match &args.image {
        Some(reference) => Some(super::images::upload_if_local(&api, reference, &progress).await?),
        None => None,
    };
    let body = body(args, image, existing.clone())?;
    let operation = if existing.is_some() {
        api.patch(&path, &body).await?
    } else {
        api.post(
            &format!("/run/v2/{}/services?serviceId={}", api.parent(), args.name),
            &body,
        )
        .await?
    };
    if let Some(public) = public {
        set_public(&api, &path, public).await?;
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
    super::wait::wait_shown(&api, &operation, &args.name, &progress).await?;
    drop(progress);
    report(&api, args, client).await
}

/// A service without an image doesn't exist yet; or another one was meant.
async fn no_image(api: &Api, name: &str) -> Failure {
    let needed = Failure::usage(format!(
        "there is no service [{name}] in project [{}] region [{}], and --image is needed for a new one",
        api.project, api.region
    ));
    let names = suggest::services(api).await.unwrap_or_default();
    match suggest::nearest(name, names.iter().map(String::as_str)) {
        Some(meant) => needed.hint(format!("did you mean {meant}?")),
        None => needed.hint("try --image utsuwa.local/hello"),
    }
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
    eprint_prompt(&format!("Allow everybody to call [{}] (y/N)? ", args.name));
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::failed(format!("read the answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes").then_some(true))
}

fn eprint_prompt(text: &str) {
    use std::io::Write;
    let mut err = std::io::stderr();
    drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
}

/// The service to send: the existing one with the named changes.
fn body(
    args: &DeployArgs,
    image: Option<String>,
    existing: Option<Value>,
) -> Result<Value, Failure> {
    let mut service = existing.unwrap_or_else(|| json!({"template": {"containers": [{}]}}));
    let latest_ready = service["latestReadyRevision"]
        .as_str()
        .and_then(|n| n.rsplit('/').next())
        .map(str::to_owned);
    if let Some(object) = service.as_object_mut() {
        object.retain(|key, _| INPUT_FIELDS.contains(&key.as_str()));
    }
    set(&mut service, "description", args.description.clone());
    set(
        &mut service,
        "ingress",
        args.ingress.as_deref().map(ingress).transpose()?,
    );
    for (key, value) in pairs("--labels", args.labels.as_deref())? {
        service["labels"][&key] = json!(value);
        service["template"]["labels"][&key] = json!(value);
    }
    if let Some(min) = args.min {
        service["scaling"]["minInstanceCount"] = json!(min);
    }
    if let Some(max) = args.max {
        service["scaling"]["maxInstanceCount"] = json!(max);
    }
    let template = &mut service["template"];
    template["revision"] = Value::Null;
    // As gcloud does: every deploy makes a revision, so that a moved tag is looked up anew and a failed one is tried again.
    template["labels"]["client.knative.dev/nonce"] = json!(nonce());
    if let Some(suffix) = &args.revision_suffix {
        template["revision"] = json!(format!("{}-{suffix}", args.name));
    }
    set(template, "maxInstanceRequestConcurrency", args.concurrency);
    set(
        template,
        "timeout",
        args.timeout.as_deref().map(timeout).transpose()?,
    );
    set(
        template,
        "executionEnvironment",
        args.execution_environment
            .as_deref()
            .map(environment)
            .transpose()?,
    );
    set(
        template,
        "sessionAffinity",
        flag(args.session_affinity, args.no_session_affinity),
    );
    if let Some(min) = args.min_instances {
        template["scaling"]["minInstanceCount"] = json!(min);
    }
    if let Some(max) = args.max_instances {
        template["scaling"]["maxInstanceCount"] = json!(max);
    }
    for (key, value) in pairs("--annotations", args.annotations.as_deref())? {
        template["annotations"][&key] = json!(value);
    }
    container(&mut template["containers"][0], args, image)?;
    traffic(&mut service, args, latest_ready.as_deref());
    Ok(service)
}

/// What a PATCH may send back; the rest is the server's.
const INPUT_FIELDS: &[&str] = &[
    "name",
    "description",
    "labels",
    "annotations",
    "client",
    "clientVersion",
    "ingress",
    "launchStage",
    "scaling",
    "template",
    "traffic",
    "invokerIamDisabled",
    "defaultUriDisabled",
    "customAudiences",
    "etag",
];

fn container(
    container: &mut Value,
    args: &DeployArgs,
    image: Option<String>,
) -> Result<(), Failure> {
    set(container, "image", image);
    let http2 = flag(args.use_http2, args.no_use_http2);
    if args.port.is_some() || http2.is_some() {
        // What isn't named stays: the port's number when the protocol changes, the protocol when the port does.
        let old = container["ports"][0].clone();
        let port = args
            .port
            .map_or_else(|| old["containerPort"].clone(), |p| json!(p));
        let name = http2.map_or_else(
            || old["name"].clone(),
            |h2| json!(if h2 { "h2c" } else { "http1" }),
        );
        container["ports"] = json!([{
            "name": if name.is_null() { json!("http1") } else { name },
            "containerPort": if port.is_null() { json!(8080) } else { port },
        }]);
    }
    for (key, limit) in [("memory", &args.memory), ("cpu", &args.cpu)] {
        if let Some(limit) = limit {
            if container["resources"].is_null() {
                // v2's default inside a given Resources message is CPU always; gcloud's is CPU during requests.
                container["resources"]["cpuIdle"] = json!(true);
            }
            container["resources"]["limits"][key] = json!(limit);
        }
    }
    if args.no_cpu_throttling {
        container["resources"]["cpuIdle"] = json!(false);
    }
    for (key, list) in [("command", &args.command), ("args", &args.args)] {
        if let Some(list) = list {
            container[key] = json!(
                list.split(',')
                    .filter(|p| !p.is_empty())
                    .collect::<Vec<_>>()
            );
        }
    }
    let mut env: Vec<Value> = container["env"].as_array().cloned().unwrap_or_default();
    if args.clear_env_vars || args.set_env_vars.is_some() {
        env.clear();
    }
    if let Some(remove) = &args.remove_env_vars {
        let names: Vec<&str> = remove.split(',').collect();
        env.retain(|v| !names.contains(&v["name"].as_str().unwrap_or_default()));
    }
    let (flag, list) = match &args.set_env_vars {
        Some(list) => ("--set-env-vars", Some(list)),
        None => ("--update-env-vars", args.update_env_vars.as_ref()),
    };
    for (name, value) in pairs(flag, list.map(String::as_str))? {
        let variable = json!({"name": name, "value": value});
        match env.iter_mut().find(|v| v["name"] == json!(name)) {
            Some(old) => *old = variable,
            None => env.push(variable),
        }
    }
    container["env"] = Value::Array(env);
    Ok(())
}

/// `--no-traffic` pins what takes requests now; `--tag` adds an address for the new revision.
fn traffic(service: &mut Value, args: &DeployArgs, latest_ready: Option<&str>) {
    const LATEST: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST";
    let mut targets: Vec<Value> = service["traffic"].as_array().cloned().unwrap_or_default();
    if targets.is_empty() && (args.no_traffic || args.tag.is_some()) {
        targets.push(json!({"type": LATEST, "percent": 100}));
    }
    if args.no_traffic
        && let Some(ready) = latest_ready
    {
        for target in targets.iter_mut().filter(|t| t["type"] == json!(LATEST)) {
            target["type"] = json!("TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION");
            target["revision"] = json!(ready);
        }
    }
    if let Some(tag) = &args.tag {
        targets.retain(|t| t["tag"] != json!(tag));
        targets.push(json!({"type": LATEST, "tag": tag}));
    }
    if !targets.is_empty() {
        service["traffic"] = Value::Array(targets);
    }
}

/// Ten letters that no other deploy has.
fn nonce() -> String {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (0..10)
        .map(|i| char::from(b'a' + u8::try_from((high >> (i * 6)) % 26).unwrap_or(0)))
        .collect()
}

/// What a pair of flags says: yes, no, or nothing.
fn flag(yes: bool, no: bool) -> Option<bool> {
    match (yes, no) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    }
}

fn set(object: &mut Value, key: &str, new: Option<impl Into<Value>>) {
    if let Some(new) = new {
        if object.is_null() {
            *object = Value::Object(Map::new());
        }
        object[key] = new.into();
    }
}

fn ingress(text: &str) -> Result<String, Failure> {
    match text {
        "all" => Ok("INGRESS_TRAFFIC_ALL".to_owned()),
        "internal" => Ok("INGRESS_TRAFFIC_INTERNAL_ONLY".to_owned()),
        "internal-and-cloud-load-balancing" => {
            Ok("INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER".to_owned())
        }
        _ => Err(Failure::usage(
            "--ingress: must be all, internal or internal-and-cloud-load-balancing",
        )),
    }
}

fn environment(text: &str) -> Result<String, Failure> {
    match text {
        "gen1" => Ok("EXECUTION_ENVIRONMENT_GEN1".to_owned()),
        "gen2" => Ok("EXECUTION_ENVIRONMENT_GEN2".to_owned()),
        _ => Err(Failure::usage(
            "--execution-environment: must be gen1 or gen2",
        )),
    }
}

fn timeout(text: &str) -> Result<String, Failure> {
    crate::config::duration(text)
        .map(|d| format!("{}s", d.as_secs()))
        .map_err(|why| Failure::usage(format!("--timeout: {why}")))
}

/// `A=1,B=2`; `^SEP^A=1SEPB=2` chooses another separator, as gcloud does.
fn pairs(flag: &str, text: Option<&str>) -> Result<Vec<(String, String)>, Failure> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let (separator, rest) = match text.strip_prefix('^').and_then(|t| t.split_once('^')) {
        Some((separator, rest)) if !separator.is_empty() => (separator, rest),
        _ => (",", text),
    };
    rest.split(separator)
        .filter(|p| !p.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Failure::usage(format!(
                "{flag}: {pair:?} must be NAME=VALUE"
            ))),
        })
        .collect()
}

/// Adds or removes `allUsers` as invoker, keeping every other binding.
async fn set_public(api: &Api, path: &str, public: bool) -> Result<(), Failure> {
    let mut policy = api.get(&format!("{path}:getIamPolicy")).await?;
    let mut bindings: Vec<Value> = policy["bindings"].as_array().cloned().unwrap_or_default();
    for binding in bindings
        .iter_mut()
        .filter(|b| b["role"] == json!(utsuwa_model::iam::INVOKER))
    {
        if let Some(members) = binding["members"].as_array_mut() {
            members.retain(|m| m != &json!("allUsers"));
        }
    }
    bindings.retain(|b| b["members"].as_array().is_none_or(|m| !m.is_empty()));
    if public {
        bindings.push(json!({"role": utsuwa_model::iam::INVOKER, "members": ["allUsers"]}));
    }
    policy["bindings"] = Value::Array(bindings);
    api.post(&format!("{path}:setIamPolicy"), &json!({"policy": policy}))
        .await
        .map(drop)
}

async fn report(api: &Api, args: &DeployArgs, client: &ClientArgs) -> Result<(), Failure> {
    let service = api.get(&api.service(&args.name)).await?;
    if client.format != Format::Table {
        return value(&client.format, &service);
    }
    let revision = service["latestReadyRevision"]
        .as_str()
        .and_then(|n| n.rsplit('/').next())
        .unwrap_or_default();
    let percent: u64 = service["trafficStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|t| {
            t["revision"]
                .as_str()
                .is_some_and(|r| r.ends_with(revision))
        })
        .filter_map(|t| t["percent"].as_u64())
        .sum();
    note(&format!(
        "Service [{}] revision [{revision}] has been deployed and is serving {percent} percent of traffic.",
        args.name
    ));
    let uri = service["uri"].as_str().unwrap_or_default();
    line(&format!("Service URL: {uri}"));
    if let Some(tag) = &args.tag {
        let tagged = service["trafficStatuses"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|t| t["tag"] == json!(tag));
        if let Some(uri) = tagged.and_then(|t| t["uri"].as_str()) {
            line(&format!("Tag URL: {uri}"));
        }
    }
    if let Some((host, at)) = host_and_address(uri) {
        note(&format!(
            "hint: where {host} does not resolve: curl -H 'Host: {host}' http://{at}/"
        ));
    }
    let policy = api
        .get(&format!("{}:getIamPolicy", api.service(&args.name)))
        .await?;
    let public = policy["bindings"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|b| {
            b["role"] == json!(utsuwa_model::iam::INVOKER)
                && b["members"]
                    .as_array()
                    .is_some_and(|m| m.contains(&json!("allUsers")))
        });
    if !public {
        note("The service is private: callers get 403.");
        note(&format!(
            "hint: `utsuwa deploy {} --allow-unauthenticated` lets everybody call it",
            args.name
        ));
    }
    Ok(())
}

/// `http://hello.localhost:8080` → (`hello.localhost:8080`, `127.0.0.1:8080`).
pub(crate) fn host_and_address(uri: &str) -> Option<(String, String)> {
    let host = uri.split_once("://")?.1.trim_end_matches('/');
    let port = host.rsplit_once(':').map_or("80", |(_, port)| port);
    Some((host.to_owned(), format!("127.0.0.1:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_take_another_separator() {
        let own = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            pairs("--x", Some("A=1,B=x=y")).ok(),
            Some(own(&[("A", "1"), ("B", "x=y")]))
        );
        assert_eq!(
            pairs("--x", Some("^@^A=1,2@B=3")).ok(),
            Some(own(&[("A", "1,2"), ("B", "3")]))
        );
        assert!(pairs("--x", Some("A")).is_err());
    }

    #[test]
    fn a_host_line_for_everywhere() {
        let expected = (
            "hello.localhost:8080".to_owned(),
            "127.0.0.1:8080".to_owned(),
        );
        assert_eq!(
            host_and_address("http://hello.localhost:8080"),
            Some(expected)
        );
    }
}
