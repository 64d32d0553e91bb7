//! An API server in this process over a store in memory, with a thin loop in the place of `control`: it settles services at
//! once, without images or instances. An image whose name holds `missing` makes a revision that fails.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::task::JoinSet;
use utsuwa_api::seam::{
    ImageInsight, Images, Insight, LoadError, LoadedImage, LogLine, Logs, LoopInsight, PullInsight,
    RevisionInsight, Wanted,
};
use utsuwa_api::{Addresses, ApiState, Readiness, SystemClock, serve};
use utsuwa_decide::revision::automatic_name;
use utsuwa_model::address;
use utsuwa_model::condition::{Condition, ConditionState, Severity};
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::revision::{Outcome, Revision, RevisionStatus};
use utsuwa_model::service::{Meta, Service, TrafficStatus, TrafficTarget};
use utsuwa_model::{RevisionKey, ServiceKey, Timestamp};
use utsuwa_store::{Settings, Store, StoreError};

#[derive(Debug)]
struct Nothing;

impl Insight for Nothing {
    fn explain(&self, _: &ServiceKey) -> Vec<RevisionInsight> {
        Vec::new()
    }
    fn loops(&self) -> Vec<LoopInsight> {
        Vec::new()
    }
    fn metrics(&self) -> String {
        "# TYPE up gauge\nup 1\n".to_owned()
    }
}

impl Logs for Nothing {
    fn lines(&self, _: &ServiceKey, _: Wanted) -> BoxStream<'static, LogLine> {
        Box::pin(futures_util::stream::empty())
    }
}

impl Images for Nothing {
    fn load(
        &self,
        _: BoxStream<'static, std::io::Result<Bytes>>,
        _: Option<String>,
    ) -> BoxFuture<'_, Result<LoadedImage, LoadError>> {
        Box::pin(async { Err(LoadError::Wrong("no images in this test".to_owned())) })
    }
    fn list(&self) -> BoxFuture<'_, Vec<ImageInsight>> {
        Box::pin(async { Vec::new() })
    }
    fn pulling(&self, _: &str) -> Option<PullInsight> {
        None
    }
}

/// The server and its loop; both end when it is dropped.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) address: SocketAddr,
    pub(crate) keys: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl World {
    /// Starts in project `demo`, region `us-central1`.
    pub(crate) async fn start() -> Self {
        let store = Store::open_in_memory().expect("memory");
        let settings = Settings {
            project: "demo".parse().expect("a project"),
            region: "us-central1".parse().expect("a region"),
            domain: "localhost".to_owned(),
        };
        store
            .freeze_settings(settings.clone())
            .await
            .expect("first start");
        let keys = tempfile::tempdir().expect("a directory");
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = ApiState {
            store: store.clone(),
            insight: Arc::new(Nothing),
            logs: Arc::new(Nothing),
            images: Arc::new(Nothing),
            settings: settings.clone(),
            clock: Arc::new(SystemClock),
            addresses: Addresses::default(),
            keys_dir: keys.path().to_owned(),
            configuration: Arc::default(),
            host_dirs: Arc::default(),
            ready: Readiness::default(),
            closing: tokio_util::sync::CancellationToken::new(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            serve(state, vec![listener], std::future::pending())
                .await
                .expect("the server runs");
        });
        tasks.spawn(settle_for_ever(store.clone(), settings));
        Self {
            store,
            address,
            keys,
            _tasks: tasks,
        }
    }
}

async fn settle_for_ever(store: Store, settings: Settings) {
    let mut changes = store.changes();
    loop {
        changes.borrow_and_update();
        for key in store.all_service_keys().expect("keys") {
            settle(&store, &settings, &key).await.expect("settles");
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn settle(store: &Store, settings: &Settings, key: &ServiceKey) -> Result<(), StoreError> {
    let Some(service) = store.service(key)? else {
        return Ok(());
    };
    let revisions = store.revisions_of(key)?;
    let all = service.meta.delete_time.is_some();
    for revision in revisions
        .iter()
        .filter(|r| all || r.meta.delete_time.is_some())
    {
        store.remove_revision(&revision.key).await?;
    }
    if all {
        return store.remove_service(key).await;
    }
    if service.status.observed_generation == service.meta.generation {
        return Ok(());
    }
    let latest = match wanted(&service, &revisions) {
        Some(found) => found.clone(),
        None => {
            let made = make(&service);
            store.create_revision(made.clone()).await?;
            made
        }
    };
    let generation = service.meta.generation;
    let host = address::service_host(key, &settings.project, &settings.region, &settings.domain);
    let failure = match &latest.status.outcome {
        Outcome::Failed { reason, message } => Some((reason.clone(), message.clone())),
        _ => None,
    };
    let outcome = match &failure {
        None => GenerationOutcome::Succeeded,
        Some((reason, message)) => GenerationOutcome::Failed {
            reason: reason.clone(),
            message: message.clone(),
        },
    };
    store
        .update_service_status(key, Some((generation, outcome)), move |s| {
            let now = s.meta.version;
            s.status.observed_generation = generation;
            s.status.latest_created = Some(latest.key.revision.clone());
            let state = if failure.is_none() {
                ConditionState::True
            } else {
                ConditionState::False
            };
            let (reason, message) = failure.clone().unwrap_or_default();
            s.status.conditions = vec![
                condition("Ready", state, &reason, &message, now),
                condition("ConfigurationsReady", state, &reason, &message, now),
                condition("RoutesReady", ConditionState::True, "", "", now),
            ];
            if failure.is_none() {
                s.status.latest_ready = Some(latest.key.revision.clone());
                s.status.url = format!("http://{host}:8080");
                s.status.traffic = routed(s, &latest, &host);
            }
            true
        })
        .await
}

/// The revision that the template already has.
fn wanted<'a>(service: &Service, revisions: &'a [Revision]) -> Option<&'a Revision> {
    match &service.spec.template.revision {
        Some(name) => revisions.iter().find(|r| r.key.revision == *name),
        None => revisions
            .last()
            .filter(|r| r.is_made_from(&service.spec.template)),
    }
}

fn make(service: &Service) -> Revision {
    let template = service.spec.template.clone();
    let name = match &template.revision {
        Some(name) => name.clone(),
        None => automatic_name(&service.key.service, service.meta.generation, 7)
            .parse()
            .expect("a name"),
    };
    let now = service.meta.version;
    let image = template.containers[0].image.clone();
    let missing = image.contains("missing");
    let message = format!("Image '{image}' not found.");
    let (state, reason) = if missing {
        (ConditionState::False, "ContainerMissing")
    } else {
        (ConditionState::True, "")
    };
    let text = if missing { message.as_str() } else { "" };
    let pinned = format!(
        "{}@sha256:{}",
        image.split(['@', ':']).next().unwrap_or_default(),
        "ab".repeat(32)
    );
    Revision {
        key: RevisionKey {
            service: service.key.clone(),
            revision: name,
        },
        meta: Meta {
            uid: format!("revision-{}", service.meta.generation),
            generation: 1,
            version: now,
            create_time: now,
            creator: service.meta.last_modifier.clone(),
            ..Meta::default()
        },
        service_generation: service.meta.generation,
        service_uid: service.meta.uid.clone(),
        template,
        status: RevisionStatus {
            observed_generation: 1,
            conditions: vec![
                condition("Ready", state, reason, text, now),
                condition("ContainerHealthy", state, reason, text, now),
                Condition {
                    severity: Severity::Info,
                    ..condition("Active", state, reason, text, now)
                },
            ],
            outcome: if missing {
                Outcome::Failed {
                    reason: reason.to_owned(),
                    message,
                }
            } else {
                Outcome::Ready
            },
            image_digests: if missing { Vec::new() } else { vec![pinned] },
            proven_start_ms: None,
        },
    }
}

fn routed(service: &Service, latest: &Revision, host: &str) -> Vec<TrafficStatus> {
    let everything = [TrafficTarget {
        latest: true,
        percent: Some(100),
        ..TrafficTarget::default()
    }];
    let goal = if service.spec.traffic.is_empty() {
        &everything[..]
    } else {
        &service.spec.traffic
    };
    let one = |t: &TrafficTarget| TrafficStatus {
        revision: t
            .revision
            .clone()
            .unwrap_or_else(|| latest.key.revision.clone()),
        latest: t.latest,
        percent: t.percent,
        tag: t.tag.clone(),
        url: t
            .tag
            .as_deref()
            .map(|tag| format!("http://{}:8080", address::tag_host(tag, host)))
            .unwrap_or_default(),
    };
    goal.iter().map(one).collect()
}

fn condition(
    kind: &str,
    state: ConditionState,
    reason: &str,
    message: &str,
    at: Timestamp,
) -> Condition {
    Condition {
        kind: kind.to_owned(),
        state,
        reason: reason.to_owned(),
        message: message.to_owned(),
        severity: Severity::Error,
        last_transition: at,
    }
}
