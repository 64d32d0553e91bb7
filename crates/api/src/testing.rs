//! A whole edge on a store in memory, for tests of any API.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::Request;
use http_body_util::BodyExt;
use serde_json::Value;
use utsuwa_decide::standing::Standing;
use utsuwa_model::demand::FailingProbe;
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::service::TrafficStatus;
use utsuwa_model::{
    Because, Condition, ConditionState, InstanceId, RevisionKey, ServiceKey, Severity, Timestamp,
};
use utsuwa_store::{Settings, Store};

use crate::http::{Arrival, Edge};
use crate::seam::{
    ImageInsight, Images, Insight, InstanceInsight, LoadError, LoadedImage, LogLine, Logs,
    LoopInsight, PullInsight, RevisionInsight, Wanted,
};
use crate::{Addresses, ApiState, Clock, Readiness};

/// A clock that moves one second each time it is looked at.
#[derive(Debug)]
pub(crate) struct StepClock(AtomicI64);

impl Clock for StepClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1_000_000, Ordering::Relaxed))
    }
}

/// One running instance of whatever is asked about; a bug when asked about a service named `panics`.
#[derive(Debug)]
pub(crate) struct FixedInsight;

impl Insight for FixedInsight {
    fn explain(&self, service: &ServiceKey) -> Vec<RevisionInsight> {
        assert_ne!(service.service.as_str(), "panics", "asked to panic");
        let revision = RevisionKey {
            service: service.clone(),
            revision: format!("{}-00001-abc", service.service).parse().unwrap(),
        };
        vec![RevisionInsight {
            revision,
            percent: 100,
            in_flight: 3,
            queued: 1,
            instances: vec![InstanceInsight {
                id: "0123456789abcdef0123456789abcdef"
                    .parse::<InstanceId>()
                    .unwrap(),
                state: "ready".to_owned(),
                pid: 42,
                in_flight: 3,
                started: Timestamp(1_700_000_000_000_000),
                standing: Standing {
                    since: Some(Timestamp(1_700_000_001_000_000)),
                    because: "3 requests inside".to_owned(),
                    next: vec![("it stops".to_owned(), Timestamp(1_700_000_901_000_000))],
                    kept: Some("an idle instance stays 15m (retention period)".to_owned()),
                },
                failing: vec![FailingProbe {
                    probe: "liveness".to_owned(),
                    asks: "GET /health on port 8080".to_owned(),
                    since: Timestamp(1_700_000_002_000_000),
                    last_answer: "HTTP status 503 Service Unavailable".to_owned(),
                    failures: 1,
                    failure_threshold: 3,
                    advice: "Mend /health.".to_owned(),
                }],
            }],
            because: vec![Because::new("want 1: 3 in flight ÷ target 48").fact("in flight", 3)],
            decided_at: Some(Timestamp(1_700_000_003_000_000)),
            last_failure: Some((
                Timestamp(1_700_000_000_000_000),
                "the container exited with status 1".to_owned(),
            )),
            failures_in_a_row: 0,
        }]
    }

    fn loops(&self) -> Vec<LoopInsight> {
        let line = LoopInsight {
            name: "service".to_owned(),
            key: "demo/asia-northeast1/hello".to_owned(),
            last_pass: Timestamp(1_700_000_000_000_000),
            duration_us: 120,
            because: "at rest".to_owned(),
            next_wake: None,
            last_error: None,
        };
        let slow = LoopInsight {
            name: "revision".to_owned(),
            key: "demo/asia-northeast1/slow/slow-00001-abc".to_owned(),
            last_error: Some("registry.test: nobody answers".to_owned()),
            ..line.clone()
        };
        vec![line, slow]
    }
    fn metrics(&self) -> String {
        "# TYPE up gauge\nup 1\n".to_owned()
    }
}

/// Three lines, then (when following) one more.
#[derive(Debug)]
pub(crate) struct FixedLogs;

impl Logs for FixedLogs {
    fn lines(&self, _: &ServiceKey, wanted: Wanted) -> BoxStream<'static, LogLine> {
        let line = |n: u64| LogLine {
            instance: "0123456789abcdef0123456789abcdef".parse().ok(),
            container: String::new(),
            revision: "hello-00001-abc".to_owned(),
            stream: "stdout".to_owned(),
            sequence: n,
            at: Timestamp(1_700_000_000_000_000),
            text: format!("line {n}"),
        };
        let past = (1..=3).map(line).skip(3_usize.saturating_sub(wanted.tail));
        stream::iter(past)
            .chain(stream::iter(wanted.follow.then(|| line(4))))
            .boxed()
    }
}

/// Counts the bytes of what is loaded.
#[derive(Debug)]
pub(crate) struct CountingImages;

impl Images for CountingImages {
    fn load(
        &self,
        mut archive: BoxStream<'static, std::io::Result<Bytes>>,
        wanted: Option<String>,
    ) -> BoxFuture<'_, Result<LoadedImage, LoadError>> {
        Box::pin(async move {
            let mut length = 0;
            while let Some(chunk) = archive.next().await {
                let chunk = chunk.map_err(|e| LoadError::Unavailable(e.to_string()))?;
                length += chunk.len();
            }
            if length == 0 {
                return Err(LoadError::Wrong("the archive is empty".to_owned()));
            }
            Ok(LoadedImage {
                reference: format!(
                    "utsuwa.local/loaded{}:{length}",
                    wanted.map(|name| format!("/{name}")).unwrap_or_default()
                ),
                digest: "sha256:00".to_owned(),
            })
        })
    }

    fn list(&self) -> BoxFuture<'_, Vec<ImageInsight>> {
        Box::pin(async {
            vec![ImageInsight {
                left_out: Vec::new(),
                reference: "utsuwa.local/hello".to_owned(),
                digest: "sha256:00".to_owned(),
                size_bytes: 7,
                in_use: true,
            }]
        })
    }

    /// An image called `slow` is always on its way.
    fn pulling(&self, reference: &str) -> Option<PullInsight> {
        reference.contains("slow").then_some(PullInsight {
            layers: 3,
            layers_ready: 1,
            total_bytes: 80_100_000,
            done_bytes: 12_400_000,
        })
    }
}

/// The edge under test. Requests go to the API's own address.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) state: ApiState,
    pub(crate) edge: Edge,
    _keys: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let state = ApiState {
            store: Store::open_in_memory().unwrap(),
            insight: Arc::new(FixedInsight),
            logs: Arc::new(FixedLogs),
            images: Arc::new(CountingImages),
            settings: Settings {
                project: "demo".parse().unwrap(),
                region: "asia-northeast1".parse().unwrap(),
                domain: "localhost".to_owned(),
            },
            clock: Arc::new(StepClock(AtomicI64::new(1_700_000_000_000_000))),
            addresses: Addresses {
                api: vec!["http://localhost:8787".to_owned()],
                ..Addresses::default()
            },
            keys_dir: keys.path().join("keys"),
            configuration: Arc::default(),
            host_dirs: Arc::new(vec![
                "/srv/data:rw".parse().unwrap(),
                "/srv/models".parse().unwrap(),
            ]),
            ready: Readiness::default(),
            closing: tokio_util::sync::CancellationToken::new(),
        };
        Self {
            edge: Edge::new(state.clone()).unwrap(),
            state,
            _keys: keys,
        }
    }

    /// As after a start of the server without any `--allow-host-dir`.
    pub(crate) fn without_host_dirs(&mut self) {
        self.state.host_dirs = Arc::default();
        self.edge = Edge::new(self.state.clone()).unwrap();
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response {
        let arrival = Arrival::Direct {
            local: [127, 0, 0, 1].into(),
        };
        self.edge.answer(&arrival, request).await
    }

    /// Sends JSON (nothing for `Null`), answers status and JSON.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost:8787")
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        let response = self.send(request).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
        (status, value)
    }

    /// Plays the loops: the current generation has become ready (or failed with `failure`: reason and message).
    pub(crate) async fn settle(&self, key: &ServiceKey, failure: Option<(&str, &str)>) {
        let service = self.state.store.service(key).unwrap().unwrap();
        let generation = service.meta.generation;
        let outcome = match failure {
            None => GenerationOutcome::Succeeded,
            Some((reason, message)) => GenerationOutcome::Failed {
                reason: reason.to_owned(),
                message: message.to_owned(),
            },
        };
        let failure = failure.map(|(r, m)| (r.to_owned(), m.to_owned()));
        let now = self.state.now();
        let change = move |service: &mut utsuwa_model::service::Service| {
            let revision: utsuwa_model::RevisionId =
                format!("{}-{generation:05}-abc", service.key.service)
                    .parse()
                    .unwrap();
            let status = &mut service.status;
            status.observed_generation = generation;
            status.latest_created = Some(revision.clone());
            let (state, reason, message) = match failure {
                None => (ConditionState::True, String::new(), String::new()),
                Some((reason, message)) => (ConditionState::False, reason, message),
            };
            if state == ConditionState::True {
                status.latest_ready = Some(revision.clone());
                status.url = format!("http://{}.localhost:8080", service.key.service);
                status.traffic = vec![TrafficStatus {
                    revision,
                    latest: true,
                    percent: Some(100),
                    tag: None,
                    url: String::new(),
                }];
            }
            status.conditions = ["Ready", "ConfigurationsReady", "RoutesReady"]
                .map(|kind| Condition {
                    kind: kind.to_owned(),
                    state,
                    reason: reason.clone(),
                    message: message.clone(),
                    severity: Severity::Error,
                    last_transition: now,
                })
                .to_vec();
            true
        };
        self.state
            .store
            .update_service_status(key, Some((generation, outcome)), change)
            .await
            .unwrap();
    }
}

/// The key of a service in the default project and region.
pub(crate) fn key(name: &str) -> ServiceKey {
    format!("demo/asia-northeast1/{name}").parse().unwrap()
}
