//! The whole system in one process: what a user asks of the API, what a client gets from the ingress, and which instances run
//! for it. Each part has its own tests; these fail when the parts are joined wrongly.

mod app;
mod house;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use utsuwa_ingress::IngressSettings;
use utsuwa_model::demand::Reach;
use utsuwa_model::instance::Tier;

use self::house::{House, Reply};

/// A client that asks again and again, one request after another, until it is told to end.
struct Steady {
    ends: Arc<AtomicBool>,
    asking: JoinSet<Vec<Reply>>,
}

impl Steady {
    fn begin(house: &House) -> Self {
        let ends = Arc::<AtomicBool>::default();
        let (ended, mut asking) = (Arc::clone(&ends), JoinSet::new());
        let next = house.asker("/steady");
        asking.spawn(async move {
            let mut replies = Vec::new();
            while !ended.load(Ordering::SeqCst) {
                replies.push(next().await);
            }
            replies
        });
        Self { ends, asking }
    }

    /// What was answered, repetitions left out; every request was.
    async fn said(mut self) -> Vec<String> {
        self.ends.store(true, Ordering::SeqCst);
        let replies = self.asking.join_next().await.unwrap().unwrap();
        let mut said: Vec<_> = replies
            .iter()
            .map(|reply| reply.said().to_owned())
            .collect();
        said.dedup();
        said
    }
}

/// The shortest that the API takes.
const WINDOW: Duration = Duration::from_secs(6);

/// What is idle stops after [`WINDOW`].
fn short_window(template: &mut Value) {
    let window = format!("{}s", WINDOW.as_secs());
    template["annotations"] = json!({"autoscaling.knative.dev/window": window});
}

#[tokio::test]
async fn a_revision_is_ready_only_once_the_ingress_has_reached_it() {
    let house = House::new().await;
    house.stage.listens.send_replace(false);
    let operation = house.ask(house.wanted("one", |_| ())).await;
    house
        .until("an instance runs", |h| h.driver.running().len() == 1)
        .await;
    let revision = house.driver.spec(&house.only()).unwrap().revision;
    house
        .until("the ingress tries it", |h| {
            h.reach(&revision, &h.only()) == Some(Reach::Starting)
        })
        .await;
    let service = house.service().await;
    assert_eq!(service.get("latestReadyRevision"), None, "{service}");
    house.stage.listens.send_replace(true);
    let outcome = house.outcome(&operation).await;
    assert_eq!(outcome.get("error"), None, "{outcome}");
    assert!(house.stage.reached.load(Ordering::SeqCst) > 0);
    assert_eq!(house.latest_ready().await, revision);
    assert_eq!(house.get("/hello").await.said(), "one");
    assert_eq!(house.starts(), 1);
    house.close().await;
}

#[tokio::test]
async fn requests_wake_one_instance_of_what_sleeps_and_wait_for_it() {
    let house = House::new().await;
    let revision = house.deploy(house.wanted("one", short_window)).await;
    house
        .until("it sleeps", |h| h.driver.running().is_empty())
        .await;
    house.stage.listens.send_replace(false);
    let mut clients = JoinSet::new();
    for number in 1..=3 {
        clients.spawn(house.get("/hello"));
        house
            .until("one more waits", |h| h.demand(&revision).queued == number)
            .await;
    }
    house
        .until("one wakes", |h| h.driver.running().len() == 1)
        .await;
    house.stage.listens.send_replace(true);
    for reply in clients.join_all().await {
        assert_eq!(reply.said(), "one");
    }
    assert_eq!(house.starts(), 2, "one for the deploy, one woken");
    house.close().await;
}

#[tokio::test]
async fn a_request_thaws_what_was_frozen() {
    let house = House::new().await;
    let revision = house.deploy(house.wanted("one", |_| ())).await;
    let id = house.only();
    house
        .until("it is frozen", |h| {
            h.driver.tier(&id) == Some(Tier::Frozen) && h.is_at_rest()
        })
        .await;
    let look = house.looks(&revision);
    let (looked, seen) = (look(), Arc::<Mutex<Vec<_>>>::default());
    let at_thaw = Arc::clone(&seen);
    house.before("thaw", move || {
        at_thaw.lock().push(look());
        std::future::ready(()).boxed()
    });
    let mut client = JoinSet::new();
    client.spawn(house.get("/slow"));
    house
        .until("it is thawed", |h| h.driver.tier(&id) == Some(Tier::Awake))
        .await;
    assert!(client.try_join_next().is_none(), "its request is inside");
    // The loops would find it out, too. A request waits for no pass.
    assert_eq!(seen.lock().first(), Some(&looked));
    house.stage.gate.add_permits(1);
    assert_eq!(client.join_next().await.unwrap().unwrap().said(), "one");
    house.close().await;
}

#[tokio::test]
async fn what_was_replaced_stays_until_its_last_request_has_ended() {
    let house = House::new().await;
    let first = house.deploy(house.wanted("one", short_window)).await;
    let old = house.only();
    let mut slow = JoinSet::new();
    slow.spawn(house.get("/slow"));
    house
        .until("it is inside", |h| h.demand(&first).in_flight == 1)
        .await;
    let steady = Steady::begin(&house);
    let second = house.deploy(house.wanted("two", |_| ())).await;
    assert_ne!(first, second);
    assert_eq!(house.get("/hello").await.said(), "two");
    // Nothing new comes to it any more, for longer than it would be kept idle.
    let look = house.looks(&first);
    let passed = look().plus(WINDOW);
    house.until("its window passes", |_| look() > passed).await;
    assert!(house.driver.running().contains(&old));
    assert!(slow.try_join_next().is_none());
    house.stage.gate.add_permits(1);
    assert_eq!(slow.join_next().await.unwrap().unwrap().said(), "one");
    house
        .until("it is gone", |h| !h.driver.running().contains(&old))
        .await;
    assert_eq!(steady.said().await, ["one", "two"]);
    house.close().await;
}

#[tokio::test]
async fn an_instance_too_many_leaves_after_its_last_request() {
    let house = House::new().await;
    let counted = |count: u32| {
        let mut service = house.wanted("one", |template| {
            template["maxInstanceRequestConcurrency"] = json!(1);
        });
        service["scaling"] = json!({"scalingMode": "MANUAL", "manualInstanceCount": count});
        service
    };
    let revision = house.deploy(counted(2)).await;
    let ready = |house: &House| {
        let loads = house.demand(&revision).instances;
        loads.iter().filter(|l| l.reach == Reach::Ready).count()
    };
    house.until("two are ready", |h| ready(h) == 2).await;
    let mut slow = JoinSet::new();
    for number in 1..=2 {
        slow.spawn(house.get("/slow"));
        house
            .until("one more is inside", |h| {
                h.demand(&revision).in_flight == number
            })
            .await;
    }
    assert_eq!(house.deploy(counted(1)).await, revision);
    let look = house.looks(&revision);
    let deployed = look();
    house.until("it is too many", |_| look() > deployed).await;
    assert_eq!(ready(&house), 2, "both are busy");
    // Who is to stop still runs for a while.
    let stops = Arc::new(Semaphore::new(0));
    let stopping = Arc::clone(&stops);
    house.before("stop", move || {
        let stops = Arc::clone(&stopping);
        async move { stops.acquire().await.unwrap().forget() }.boxed()
    });
    house.stage.gate.add_permits(1);
    assert_eq!(slow.join_next().await.unwrap().unwrap().said(), "one");
    house
        .until("one is to leave", |h| {
            let loads = h.demand(&revision).instances;
            loads.iter().any(|l| l.reach == Reach::Retiring)
        })
        .await;
    assert_eq!(house.driver.running().len(), 2);
    slow.spawn(house.get("/slow"));
    house
        .until("the next one waits for the other", |h| {
            let demand = h.demand(&revision);
            (demand.in_flight, demand.queued) == (1, 1)
        })
        .await;
    stops.add_permits(1);
    house
        .until("it is gone", |h| h.driver.running().len() == 1)
        .await;
    house.stage.gate.add_permits(2);
    for reply in slow.join_all().await {
        assert_eq!(reply.said(), "one");
    }
    assert_eq!(ready(&house), 1);
    house.close().await;
}

#[tokio::test]
async fn a_full_queue_turns_away_and_answers_the_others_in_order() {
    // One revision may have half of it.
    let house = House::with(IngressSettings {
        max_waiting: 8,
        ..IngressSettings::default()
    })
    .await;
    let service = house.wanted("one", |template| {
        template["maxInstanceRequestConcurrency"] = json!(1);
        template["scaling"] = json!({"maxInstanceCount": 1});
    });
    let revision = house.deploy(service).await;
    let paths = ["/slow/0", "/slow/1", "/slow/2", "/slow/3", "/slow/4"];
    let mut inside = JoinSet::new();
    for (number, path) in (0..).zip(paths) {
        inside.spawn(house.get(path));
        house
            .until("one more is taken", |h| {
                let demand = h.demand(&revision);
                (demand.in_flight, demand.queued) == (1, number)
            })
            .await;
    }
    for _ in 0..3 {
        let reply = house.get("/slow/beyond").await;
        let told = (reply.status, reply.text.as_str(), reply.reason.as_str());
        assert_eq!(told, (429, "Rate exceeded.", "queue_full"));
    }
    house.stage.gate.add_permits(paths.len());
    for reply in inside.join_all().await {
        assert_eq!(reply.said(), "one");
    }
    assert_eq!(*house.stage.seen.lock(), paths);
    assert_eq!(house.get("/hello").await.said(), "one");
    assert_eq!(house.starts(), 1);
    house.close().await;
}

#[tokio::test]
async fn a_failed_deploy_changes_nothing_that_serves() {
    let house = House::new().await;
    let first = house.deploy(house.wanted("one", |_| ())).await;
    let id = house.only();
    let steady = Steady::begin(&house);
    let deaf = house.wanted("two", |template| {
        let container = &mut template["containers"][0];
        container["env"] = json!([{"name": "DEAF", "value": "yes"}]);
        container["startupProbe"] = json!({
            "tcpSocket": {}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1,
        });
    });
    let operation = house.ask(deaf).await;
    let outcome = house.outcome(&operation).await;
    assert!(outcome.get("error").is_some(), "{outcome}");
    assert_eq!(house.starts(), 2);
    house
        .until("what failed is gone", |h| h.driver.running().len() == 1)
        .await;
    assert_eq!(house.only(), id);
    assert_eq!(house.reach(&first, &id), Some(Reach::Ready));
    assert_eq!(house.latest_ready().await, first);
    assert_eq!(house.get("/hello").await.said(), "one");
    assert_eq!(steady.said().await, ["one"]);
    house.close().await;
}
