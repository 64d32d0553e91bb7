//! `utsuwa quickstart`: the whole story in half a minute: deploy, asleep, woken, warm, asleep again. What stays is a service like
//! every other.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::ClientArgs;
use super::progress::Progress;
use super::rewrites::Rewrites;
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
    let mut body = normal();
    // Who watches shall not have to wait for a quarter of an hour.
    body["template"]["annotations"] = json!({"autoscaling.knative.dev/window": "6s"});
    let operation = match api.get(&path).await {
        Ok(service) => {
            refuse_foreign(&service, &args.name, &Rewrites::of(&api).await)?;
            api.patch(&path, &body).await?
        }
        Err(failure) if failure.is_not_found() => {
            api.post(
                &format!("/run/v2/{}/services?serviceId={}", api.parent(), args.name),
                &body,
            )
            .await?
        }
        Err(failure) => return Err(failure),
    };
    super::wait::wait_shown(&api, &operation, &args.name, &progress).await?;
    drop(progress);
    let policy = json!({"policy": {"bindings": [{"role": utsuwa_model::iam::INVOKER, "members": ["allUsers"]}]}});
    api.post(&format!("{path}:setIamPolicy"), &policy).await?;
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
    let operation = api.patch(&path, &normal()).await?;
    super::wait::wait(&api, &operation).await?;
    line(
        "normal     the 6 s were for show: from now on it stays as long as every other service (--idle-timeout, 15 minutes by default)",
    );
    line("");
    line(&format!("Open {uri} in a browser, or: {}", visitor.curl()));
    line(&format!(
        "Why it does what it does:   utsuwa services describe {} --why",
        args.name
    ));
    Ok(())
}

/// The template without the demonstration's window.
fn normal() -> Value {
    json!({"template": {"containers": [{"image": SAMPLE}]}})
}

/// A service of the user's own, that happens to have the name, is not overwritten, nor one that would never sleep. One that runs the
/// sample by another of its names was begun with it and may be shown.
fn refuse_foreign(service: &Value, name: &str, rewrites: &Rewrites) -> Result<(), Failure> {
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
    } else {
        return Ok(());
    };
    let why = format!("service [{name}] exists and is not the quickstart's: {why}");
    Err(Failure::failed(why).hint("`utsuwa quickstart --name quickstart` uses another name"))
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
                refuse_foreign(&service, "hello", &rewrites).is_ok(),
                "{image}"
            );
            service["template"]["scaling"] = json!({"minInstanceCount": 2});
            let said = refuse_foreign(&service, "hello", &rewrites).unwrap_err();
            assert!(said.message.contains("never sleeps"), "{said}");
            assert!(said.message.contains("instances is 2"), "{said}");
            assert!(!said.message.contains("it runs"), "{said}");
        }
        for image in ["r.example/hello", "utsuwa.local/hello:job", ""] {
            let service = json!({"template": {"containers": [{"image": image}]}});
            let said = refuse_foreign(&service, "hello", &rewrites).unwrap_err();
            assert!(said.message.contains(&format!("it runs {image},")));
            assert!(!said.message.contains("sleeps"), "{said}");
        }
    }
}
