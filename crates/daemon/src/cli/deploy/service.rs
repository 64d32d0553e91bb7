//! From flags to the service that is sent.

use serde_json::{Map, Value, json};

use utsuwa_model::service::{REFUSE_SCANNERS, WAITING_PAGE, ZYGOTE};

use super::DeployArgs;
use super::lists::{pairs, parts};
use crate::cli::services::containers::ingress_index;
use crate::client::Failure;
use crate::output::text_at;

/// The service to send: the existing one with the named changes.
pub(super) fn body(
    args: &DeployArgs,
    image: Option<String>,
    existing: Option<Value>,
) -> Result<Value, Failure> {
    let new = existing.is_none();
    let mut service = existing.unwrap_or_else(|| json!({"template": {"containers": [{}]}}));
    // In JSON a 64-bit number is text.
    let generation: u64 = service["generation"]
        .as_str()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let last = |key: &str| {
        let name = service[key].as_str()?.rsplit('/').next()?;
        Some(name.to_owned())
    };
    let latest_ready = last("latestReadyRevision");
    let failed = last("latestCreatedRevision")
        .filter(|created| Some(created) != latest_ready.as_ref())
        .filter(|_| service["reconciling"] != json!(true));
    let inherited = tags_of(&service, failed.as_deref());
    if let Some(object) = service.as_object_mut() {
        object.retain(|key, _| INPUT_FIELDS.contains(&key.as_str()));
    }
    set(&mut service, "description", args.description.clone());
    set(
        &mut service,
        "ingress",
        args.ingress.as_deref().map(ingress).transpose()?,
    );
    for (key, value) in pairs("--labels", &args.labels)? {
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
    } else if args.tag.is_some() || !inherited.is_empty() {
        // The tag shall stay with what is deployed now, whatever comes later; so that has to have a name already.
        let letters: String = nonce().chars().take(3).collect();
        let name = format!("{}-{:05}-{letters}", args.name, generation + 1);
        template["revision"] = json!(name);
    }
    set(template, "maxInstanceRequestConcurrency", args.concurrency);
    set(
        template,
        "timeout",
        args.timeout.map(|seconds| format!("{seconds}s")),
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
    for (key, value) in pairs("--annotations", &args.annotations)? {
        if !value.is_empty() {
            template["annotations"][&key] = json!(value);
        } else if let Some(annotations) = template["annotations"].as_object_mut() {
            annotations.remove(&key);
        }
    }
    for (annotation, on, off) in [
        (ZYGOTE, args.zygote, args.no_zygote),
        (
            REFUSE_SCANNERS,
            args.refuse_scanners,
            args.no_refuse_scanners,
        ),
        (WAITING_PAGE, args.waiting_page, args.no_waiting_page),
    ] {
        if let Some(value) = flag(on, off) {
            template["annotations"][annotation] = json!(value.to_string());
        }
    }
    let ingress = ingress_index(template);
    container(&mut template["containers"][ingress], args, image, new)?;
    traffic(&mut service, args, latest_ready.as_deref(), inherited);
    Ok(service)
}

/// The tags of a revision that will never serve. As long as they name it all traffic is held, so the next deploy takes them over.
fn tags_of(service: &Value, failed: Option<&str>) -> Vec<String> {
    let targets = service["traffic"].as_array().into_iter().flatten();
    targets
        .filter(|t| failed.is_some() && t["revision"].as_str() == failed)
        .filter_map(|t| t["tag"].as_str().map(str::to_owned))
        .collect()
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
    new: bool,
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
    // As gcloud does for new services.
    let boost = flag(args.cpu_boost, args.no_cpu_boost).or_else(|| new.then_some(true));
    let limits = [("memory", &args.memory), ("cpu", &args.cpu)];
    let named = boost.is_some() || limits.iter().any(|(_, limit)| limit.is_some());
    if named && container["resources"].is_null() {
        // v2's default inside a given Resources message is CPU always; gcloud's is CPU during requests.
        container["resources"]["cpuIdle"] = json!(true);
    }
    set(&mut container["resources"], "startupCpuBoost", boost);
    for (key, limit) in limits {
        if let Some(limit) = limit {
            container["resources"]["limits"][key] = json!(limit);
        }
    }
    let throttling = flag(args.cpu_throttling, args.no_cpu_throttling);
    set(&mut container["resources"], "cpuIdle", throttling);
    for (key, flag, given) in [
        ("command", "--command", &args.command),
        ("args", "--args", &args.args),
    ] {
        if !given.is_empty() {
            container[key] = json!(parts(flag, given)?);
        }
    }
    container["env"] = environment_of(container, args)?;
    Ok(())
}

/// The variables, with the named changes.
fn environment_of(container: &Value, args: &DeployArgs) -> Result<Value, Failure> {
    let mut env: Vec<Value> = container["env"].as_array().cloned().unwrap_or_default();
    if args.clear_env_vars || !args.set_env_vars.is_empty() {
        env.clear();
    }
    let removed = parts("--remove-env-vars", &args.remove_env_vars)?;
    env.retain(|v| !removed.iter().any(|name| v["name"] == json!(name)));
    let (flag, given) = match args.set_env_vars.is_empty() {
        false => ("--set-env-vars", &args.set_env_vars),
        true => ("--update-env-vars", &args.update_env_vars),
    };
    for (name, value) in pairs(flag, given)? {
        let variable = json!({"name": name, "value": value});
        match env.iter_mut().find(|v| v["name"] == json!(name)) {
            Some(old) => *old = variable,
            None => env.push(variable),
        }
    }
    Ok(Value::Array(env))
}

/// What to say of variables to remove that aren't there. Not refused: gcloud doesn't either, and a script may run twice. Values are
/// nobody's who reads over a shoulder.
pub(super) fn nothing_to_remove(
    args: &DeployArgs,
    existing: Option<&Value>,
) -> Result<Option<String>, Failure> {
    const FLAG: &str = "--remove-env-vars";
    let template = existing.map_or(&Value::Null, |service| &service["template"]);
    let env = &template["containers"][ingress_index(template)]["env"];
    let there: Vec<String> = (env.as_array().into_iter().flatten())
        .map(|variable| text_at(variable, "name"))
        .collect();
    let mut missing = parts(FLAG, &args.remove_env_vars)?;
    missing.retain(|name| !there.contains(name));
    if missing.is_empty() {
        return Ok(None);
    }
    let has = match there.is_empty() {
        true => "none".to_owned(),
        false => there.join(", "),
    };
    Ok(Some(format!(
        "note: {FLAG}: [{}] has no variable {}; it has {has}.",
        args.name,
        missing.join(", ")
    )))
}

/// `--no-traffic` pins what takes requests now; `--tag` adds an address for the new revision, by its name: as the newest one, the
/// tag (and a share that was given by it) would go over to the next deploy's.
fn traffic(
    service: &mut Value,
    args: &DeployArgs,
    latest_ready: Option<&str>,
    mut new_tags: Vec<String>,
) {
    const LATEST: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST";
    const REVISION: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION";
    let mut targets: Vec<Value> = service["traffic"].as_array().cloned().unwrap_or_default();
    if targets.is_empty() && (args.no_traffic || args.tag.is_some()) {
        targets.push(json!({"type": LATEST, "percent": 100}));
    }
    if args.no_traffic
        && let Some(ready) = latest_ready
    {
        for target in targets.iter_mut().filter(|t| t["type"] == json!(LATEST)) {
            target["type"] = json!(REVISION);
            target["revision"] = json!(ready);
        }
    }
    if let Some(tag) = &args.tag
        && !new_tags.contains(tag)
    {
        new_tags.push(tag.clone());
    }
    for tag in new_tags {
        targets.retain(|t| t["tag"] != json!(tag));
        let revision = service["template"]["revision"].clone();
        targets.push(json!({"type": REVISION, "revision": revision, "tag": tag}));
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

#[cfg(test)]
mod tests {
    use super::super::parsed;
    use super::*;

    fn args(text: &str) -> DeployArgs {
        let words: Vec<&str> = text.split(' ').collect();
        parsed(&words).unwrap()
    }

    #[test]
    fn an_annotation_without_a_value_goes() {
        let old = json!({"template": {"containers": [{}], "annotations": {"a.dev/x": "1", "a.dev/y": "2"}}});
        let sent = body(&args("--annotations a.dev/x=,a.dev/none="), None, Some(old)).unwrap();
        assert_eq!(sent["template"]["annotations"], json!({"a.dev/y": "2"}));
    }

    #[test]
    fn a_variable_to_remove_that_is_not_there_is_told_without_values() {
        let env = json!([{"name": "A", "value": "secret"}, {"name": "B", "value": "x"}]);
        let old = json!({"template": {"containers": [{"env": env}]}});
        let said = |text: &str, old: &Value| {
            let said = nothing_to_remove(&args(text), Some(old)).unwrap();
            said.unwrap_or_default()
        };
        assert_eq!(
            said("--remove-env-vars NOPE,A,NO2", &old),
            "note: --remove-env-vars: [web] has no variable NOPE, NO2; it has A, B."
        );
        assert_eq!(said("--remove-env-vars A,B", &old), "");
        assert_eq!(said("--cpu 2", &old), "");
        let none = json!({"template": {"containers": [{}]}});
        assert!(said("--remove-env-vars A", &none).ends_with("no variable A; it has none."));
        let new = nothing_to_remove(&args("--remove-env-vars A"), None).unwrap();
        assert!(new.unwrap().ends_with("it has none."));
    }

    #[test]
    fn a_tag_stays_with_the_revision_it_was_deployed_with() {
        let old = json!({"generation": "6", "template": {"containers": [{"image": "i"}]}});
        let first = body(&args("--tag green"), None, Some(old)).unwrap();
        let name = first["template"]["revision"].as_str().unwrap().to_owned();
        assert!(name.starts_with("web-00007-") && name.len() == 13, "{name}");
        let tag = json!({"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION", "revision": name, "tag": "green"});
        assert_eq!(first["traffic"][1], tag);

        let next = body(&args("--cpu 2"), None, Some(first)).unwrap();
        assert_eq!(next["template"]["revision"], Value::Null);
        assert_eq!(next["traffic"][1], tag);

        let mut failed = next.clone();
        failed["latestCreatedRevision"] = json!(format!("services/web/revisions/{name}"));
        failed["latestReadyRevision"] = json!("services/web/revisions/web-00001-abc");
        failed["generation"] = json!("7");
        let after = body(&args("--cpu 2"), None, Some(failed)).unwrap();
        let over = after["traffic"][1]["revision"].as_str().unwrap();
        assert!(over.starts_with("web-00008-"), "{over}");

        let named = args("--tag green --revision-suffix two");
        let named = body(&named, None, Some(next)).unwrap();
        assert_eq!(named["traffic"][1]["revision"], json!("web-two"));
    }
}
