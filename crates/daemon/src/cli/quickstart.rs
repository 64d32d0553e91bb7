//! `utsuwa quickstart`: the whole story in half a minute: deploy, asleep, woken, warm, asleep again. What stays is a service like
//! every other.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::ClientArgs;
use super::deploy::is_internal;
use super::progress::Progress;
use super::rewrites::Rewrites;
use super::services::LATEST;
use super::services::callers::is_public;
use super::services::show::is_off;
use crate::client::{Api, Failure};
use crate::output::{line, note, text_at};

const SAMPLE: &str = "utsuwa.local/hello";

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// Name of the service.
    #[arg(long, default_value = "hello")]
    name: String,
}

pub(crate) async fn run(args: &QuickstartArgs, client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    let path = api.service(&args.name);
    let progress = Progress::new();
    let started = Instant::now();
    // Nothing else of a service is sent, so that all it has besides stays.
    let template_of = format!("{path}?updateMask=template");
    let (operation, normal) = match api.get(&path).await {
        Ok(service) => {
            let public = is_public(&api, &args.name, &service).await?;
            refuse_foreign(&service, &args.name, public, &Rewrites::of(&api).await)?;
            let normal = normal(service["template"].clone());
            (api.patch(&template_of, &shown(&normal)).await?, normal)
        }
        Err(failure) if failure.is_not_found() => {
            let normal = normal(json!({"containers": [{"image": SAMPLE}]}));
            let new = format!("/run/v2/{}/services?serviceId={}", api.parent(), args.name);
            let operation = api.post(&new, &shown(&normal)).await?;
            // Before anything is waited for: a quickstart that ends here can be run again.
            super::deploy::set_public(&api, &path, true).await?;
            (operation, normal)
        }
        Err(failure) => return Err(failure),
    };
    super::wait::wait_shown(&api, &operation, &args.name, &progress).await?;
    drop(progress);
    let service = api.get(&path).await?;
    let uri = text_at(&service, "uri");
    line(&format!(
        "deployed   {} in {} ms: {uri}",
        args.name,
        started.elapsed().as_millis()
    ));

    wait_for_instances(&api, &args.name, 0).await?;
    line("asleep     no instance runs");
    let visitor = Visitor::new(&uri)?;
    let (cold, timing) = visitor.visit().await?;
    line(&format!(
        "woken      first answer after {:.1} ms ({timing})",
        cold.as_secs_f64() * 1000.0
    ));
    let mut warm: Vec<Duration> = Vec::new();
    for _ in 0..20 {
        warm.push(visitor.visit().await?.0);
    }
    warm.sort();
    line(&format!(
        "warm       {:.2} ms (median of 20)",
        warm[warm.len() / 2].as_secs_f64() * 1000.0
    ));
    let since = Instant::now();
    wait_for_instances(&api, &args.name, 0).await?;
    line(&format!(
        "asleep     again after {:.1} s without a request",
        since.elapsed().as_secs_f64()
    ));
    let operation = api.patch(&template_of, &normal).await?;
    super::wait::wait(&api, &operation).await?;
    let kept = match normal["template"]["annotations"][WINDOW].as_str() {
        Some(own) => format!("it has its own {own} again"),
        None => "from now on it stays as long as every other service (--idle-timeout, 15 minutes by default)".to_owned(),
    };
    line(&format!("normal     the 6 s were for show: {kept}"));
    line("");
    line(&format!("Open {uri} in a browser, or: {}", visitor.curl()));
    line(&format!(
        "Why it does what it does:   utsuwa services describe {} --why",
        args.name
    ));
    Ok(())
}

/// How long an instance is kept without requests.
const WINDOW: &str = "autoscaling.knative.dev/window";
/// Who watches shall not have to wait for a quarter of an hour.
const SHOW: &str = "6s";

/// The service with `template`, as it was before the demonstration and shall be after it.
fn normal(mut template: Value) -> Value {
    // A revision can't be made again.
    template["revision"] = Value::Null;
    // Left by a quickstart that was broken off.
    if template["annotations"][WINDOW] == json!(SHOW)
        && let Some(annotations) = template["annotations"].as_object_mut()
    {
        annotations.remove(WINDOW);
    }
    json!({"template": template})
}

/// The same for as long as it is shown.
fn shown(normal: &Value) -> Value {
    let mut shown = normal.clone();
    shown["template"]["annotations"][WINDOW] = json!(SHOW);
    shown
}

/// A service of the user's own, that happens to have the name, is not overwritten, nor one that would never sleep; nor is one opened
/// that callers shall not reach. One that runs the sample by another of its names was begun with it and may be shown.
fn refuse_foreign(
    service: &Value,
    name: &str,
    public: bool,
    rewrites: &Rewrites,
) -> Result<(), Failure> {
    let image = text_at(service, "template.containers.0.image");
    let least = |at: &str| -> u64 {
        let count = service.pointer(at).and_then(Value::as_u64);
        count.unwrap_or(0)
    };
    let least = least("/template/scaling/minInstanceCount").max(least("/scaling/minInstanceCount"));
    let why = if !rewrites.is_sample(&image) {
        format!("it runs {image}, not the sample {SAMPLE}")
    } else if least > 0 {
        format!("it never sleeps: its minimum of instances is {least}")
    } else if !public {
        "it is private, and the quickstart calls it".to_owned()
    } else if is_internal(service) || is_off(service) {
        "its address is closed to callers from outside, and the quickstart calls it".to_owned()
    } else if is_pinned(service) {
        "its traffic goes to revisions by their names, and the quickstart makes a new one"
            .to_owned()
    } else {
        return Ok(());
    };
    let why = format!("service [{name}] exists and is not the quickstart's: {why}");
    Err(Failure::failed(why).hint("`utsuwa quickstart --name quickstart` uses another name"))
}

/// Whether a new revision gets less than all requests.
fn is_pinned(service: &Value) -> bool {
    let mut targets = service["traffic"].as_array().into_iter().flatten();
    targets.any(|target| {
        target["percent"].as_u64().unwrap_or(0) > 0 && target["type"] != json!(LATEST)
    })
}

/// Calls the service like a stranger would: by address, with the Host header.
struct Visitor {
    http: reqwest::Client,
    url: String,
    host: String,
}

impl Visitor {
    fn new(uri: &str) -> Result<Self, Failure> {
        let (host, address) = super::deploy::host_and_address(uri)
            .ok_or_else(|| Failure::failed(format!("{uri:?}: is no address")))?;
        let url = format!("http://{address}/");
        Ok(Self {
            http: crate::client::near(&url)?,
            url,
            host,
        })
    }

    fn curl(&self) -> String {
        format!("curl -H 'Host: {}' {}", self.host, self.url)
    }

    async fn call(&self) -> Result<reqwest::Response, Failure> {
        self.http
            .get(&self.url)
            .header("host", &self.host)
            .header("x-utsuwa-timing", "1")
            .send()
            .await
            .map_err(|e| Failure::failed(format!("call {}: {e}", self.url)))
    }

    async fn visit(&self) -> Result<(Duration, String), Failure> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let started = Instant::now();
            let response = self.call().await?;
            let took = started.elapsed();
            let status = response.status();
            let timing = response
                .headers()
                .get("server-timing")
                .and_then(|t| t.to_str().ok())
                .unwrap_or("")
                .to_owned();
            let body = response.text().await.unwrap_or_default();
            if status.is_success() {
                return Ok((took, timing));
            }
            // The policy is published a moment after it was accepted; a refused call wakes nothing.
            if status.as_u16() != 403 || Instant::now() > deadline {
                return Err(
                    Failure::failed(format!("the service answered {status}: {body}"))
                        .hint("`utsuwa logs` shows what it wrote"),
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits until the service has exactly `wanted` instances; tells when it takes long.
async fn wait_for_instances(api: &Api, name: &str, wanted: usize) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let explained = api.get(&api.explain(name)).await?;
        let count = explained["revisions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r["instances"].as_array())
            .map(Vec::len)
            .sum::<usize>();
        if count == wanted {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why: Vec<Value> = explained["revisions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            note(&serde_json::to_string_pretty(&why).unwrap_or_default());
            return Err(Failure::failed(format!(
                "{name} still has {count} instances, expected {wanted}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_shown_by_each_of_its_names_and_nothing_else() {
        let rewrites = Rewrites::from_options(&json!({}));
        let digest = format!("{SAMPLE}@sha256:{}", "a".repeat(64));
        for image in [
            SAMPLE,
            &digest,
            "gcr.io/cloudrun/hello",
            "us-docker.pkg.dev/cloudrun/container/hello:latest",
        ] {
            let mut service = json!({"template": {"containers": [{"image": image}]}});
            assert!(
                refuse_foreign(&service, "hello", true, &rewrites).is_ok(),
                "{image}"
            );
            service["template"]["scaling"] = json!({"minInstanceCount": 2});
            let said = refuse_foreign(&service, "hello", true, &rewrites).unwrap_err();
            assert!(said.message.contains("never sleeps"), "{said}");
            assert!(said.message.contains("instances is 2"), "{said}");
            assert!(!said.message.contains("it runs"), "{said}");
        }
        for image in ["r.example/hello", "utsuwa.local/hello:job", ""] {
            let service = json!({"template": {"containers": [{"image": image}]}});
            let said = refuse_foreign(&service, "hello", true, &rewrites).unwrap_err();
            assert!(said.message.contains(&format!("it runs {image},")));
            assert!(!said.message.contains("sleeps"), "{said}");
        }
    }

    #[test]
    fn a_service_that_can_not_be_called_or_shown_is_left_alone() {
        let rewrites = Rewrites::from_options(&json!({}));
        let sample = json!({"template": {"containers": [{"image": SAMPLE}]}});
        let said = |service: &Value, public| {
            let refused = refuse_foreign(service, "hello", public, &rewrites);
            refused.err().map(|failure| failure.message)
        };
        assert!(said(&sample, false).unwrap().contains("it is private"));
        for (key, value, why) in [
            (
                "ingress",
                json!("INGRESS_TRAFFIC_INTERNAL_ONLY"),
                "its address is closed",
            ),
            ("defaultUriDisabled", json!(true), "its address is closed"),
            (
                "traffic",
                json!([{"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION", "revision": "a", "percent": 100}]),
                "by their names",
            ),
        ] {
            let mut service = sample.clone();
            service[key] = value;
            let message = said(&service, true).unwrap();
            assert!(message.contains(why), "{message}");
        }
        let mut fine = sample;
        fine["traffic"] = json!([
            {"type": LATEST, "percent": 100},
            {"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION", "revision": "a", "tag": "old"},
        ]);
        assert_eq!(said(&fine, true), None);
    }

    #[test]
    fn what_a_service_has_of_its_own_is_there_again_after_the_show() {
        let own = json!({
            "revision": "hello-00001-abc",
            "annotations": {"a.dev/x": "1", WINDOW: "2m"},
            "containers": [{"image": SAMPLE, "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"cpu": "2"}}}],
        });
        let before = normal(own.clone());
        let mut expected = own;
        expected["revision"] = Value::Null;
        assert_eq!(before["template"], expected);
        let during = shown(&before);
        expected["annotations"][WINDOW] = json!(SHOW);
        assert_eq!(during["template"], expected);
        // Broken off in the middle of it.
        let after = normal(during["template"].clone());
        assert_eq!(after["template"]["annotations"], json!({"a.dev/x": "1"}));
    }
}
