//! Revisions of several containers: who is started when, and what becomes of one that never gets through.

mod house;

use std::time::Duration;

use house::{House, template};
use utsuwa_decide::revision::SETTLE;
use utsuwa_model::instance::Exit;
use utsuwa_model::route::StartupCheck;
use utsuwa_model::service::{
    Container, ContainerPort, Probe, ProbeAction, RevisionTemplate, Volume, VolumeMount,
    VolumeSource,
};
use utsuwa_model::{ConditionState, InstanceId, ServiceKey, condition::find};

fn probe(port: u16) -> Option<Probe> {
    Some(Probe {
        initial_delay_secs: None,
        timeout_secs: None,
        period_secs: None,
        failure_threshold: None,
        success_threshold: None,
        action: ProbeAction::Tcp { port: Some(port) },
    })
}

/// `side` and `base` stand before `app` in the template, which takes requests and waits for `side`, which waits for `base`.
fn three() -> RevisionTemplate {
    let one = |name: &str, after: &[&str]| Container {
        name: name.to_owned(),
        image: format!("{name}:1"),
        depends_on: after.iter().map(|&name| name.to_owned()).collect(),
        limits: [("memory".to_owned(), "256Mi".to_owned())].into(),
        ..Container::default()
    };
    let mut side = one("side", &["base"]);
    side.startup_probe = probe(7000);
    let mut base = one("base", &[]);
    base.startup_probe = probe(7001);
    let mut app = one("app", &["side"]);
    app.ports.push(ContainerPort {
        name: String::new(),
        container_port: 9000,
    });
    for container in [&mut base, &mut app] {
        container.volume_mounts.push(VolumeMount {
            name: "shared".to_owned(),
            mount_path: "/shared".to_owned(),
            sub_path: None,
            read_only: None,
        });
    }
    RevisionTemplate {
        containers: vec![side, base, app],
        volumes: vec![Volume {
            name: "shared".to_owned(),
            source: VolumeSource::EmptyDir { size_limit: None },
        }],
        ..template("unused")
    }
}

async fn house() -> House {
    let house = House::new().await;
    for name in ["side", "base", "app"] {
        house.images.put(&format!("{name}:1"));
    }
    house
}

#[tokio::test(start_paused = true)]
async fn containers_are_started_in_the_order_of_their_dependencies() {
    let house = house().await;
    let key = house.create("hello", three()).await;
    house.until_ready(&key).await;
    let id = house.driver.running().pop().expect("an instance");
    let starts: Vec<String> = house.driver.log();
    let starts: Vec<&str> = starts
        .iter()
        .filter_map(|line| line.strip_prefix("start "))
        .collect();
    let (one, two) = (format!("{id} container 1"), format!("{id} container 0"));
    assert_eq!(starts, [id.to_string(), one, two]);
    let tcp = |port| StartupCheck::Tcp { port };
    assert_eq!(house.door.probes(), [tcp(7001), tcp(7000)]);

    let spec = house.driver.spec(&id).expect("spec");
    assert_eq!(spec.port, 9000);
    let names: Vec<&str> = (0..3).map(|number| spec.container_name(number)).collect();
    assert_eq!(names, ["app", "side", "base"]);
    assert_eq!(
        [0, 1, 2].map(|number| spec.waits(number)),
        [true, true, false]
    );
    let has_port = |env: &[String]| env.iter().any(|one| one.starts_with("PORT="));
    assert!(has_port(&spec.process.env));
    assert!(!has_port(&spec.sidecars()[0].process.env));
    let others = spec.group.as_ref().unwrap().memory_of_others();
    assert_eq!(spec.limits.memory.0 + others.0, 768 << 20);
    let base = &spec.sidecars()[1].volumes;
    assert_eq!(base[0].shared, "shared");
    assert_eq!(
        (base[0].size, &base[0].shared),
        (spec.volumes[0].size, &spec.volumes[0].shared)
    );
    assert!(spec.sidecars()[0].volumes.is_empty());
    assert_eq!(house.driver.prepared().len(), 3);
    let revision = house.routed("hello.localhost").expect("routed");
    let stored = house
        .store
        .revision(&revision)
        .expect("store")
        .expect("there");
    assert_eq!(stored.status.image_digests.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_never_starts_fails_the_deploy_by_name() {
    let house = house().await;
    house.door.fails(StartupCheck::Tcp { port: 7000 });
    let key = house.create("hello", three()).await;
    house.until_failed(&key).await;
    let conditions = house.service(&key).status.conditions;
    let message = &find(&conditions, "Ready").expect("Ready").message;
    assert!(
        message.contains("\"side\" failed its startup probe"),
        "{message}"
    );
    house
        .until("nothing of it runs", |h| h.driver.running().is_empty())
        .await;
    assert_eq!(house.ready(&key), Some(ConditionState::False));
}

#[tokio::test(start_paused = true)]
async fn what_ends_while_the_others_are_started_is_told_once() {
    let house = house().await;
    house
        .driver
        .exit_at_start(Some((Exit::Code(3), vec!["no".to_owned()])));
    let key = house.create("hello", three()).await;
    house.until_failed(&key).await;
    let conditions = house.service(&key).status.conditions;
    let message = &find(&conditions, "Ready").expect("Ready").message;
    assert!(message.contains("exited with status 3"), "{message}");
}

/// As [`three`], with a `side` that no probe asks after and nobody waits for, deployed until `app` was reached.
async fn reached() -> (House, ServiceKey, InstanceId) {
    let house = house().await;
    let mut template = three();
    template.containers[0].startup_probe = None;
    template.containers[2].depends_on = Vec::new();
    let key = house.create("hello", template).await;
    house
        .until("app is reached", |h| {
            message(h, &key).starts_with("The first instance was reached.")
        })
        .await;
    let id = house.driver.running().pop().expect("an instance");
    (house, key, id)
}

fn message(house: &House, key: &ServiceKey) -> String {
    let conditions = house.service(key).status.conditions;
    find(&conditions, "Ready").map_or_else(String::new, |ready| ready.message.clone())
}

const NO_CONFIG: &str = "no config";

fn leave(house: &House, id: &InstanceId) {
    let lines = vec![NO_CONFIG.to_owned()];
    house.driver.exit_of(id, "side", Exit::Code(7), lines);
}

#[tokio::test(start_paused = true)]
async fn a_deploy_waits_whether_containers_without_a_probe_stay() {
    let (mut house, key, id) = reached().await;
    let short = Duration::from_millis(10);
    house.pass_time(SETTLE - short).await;
    assert_eq!(house.ready(&key), Some(ConditionState::Unknown));
    // The next server knows no better than to watch again.
    house.restart(None).await;
    house.pass_time(short).await;
    assert_eq!(house.ready(&key), Some(ConditionState::Unknown));
    house.pass_time(SETTLE).await;
    house.until_ready(&key).await;
    assert_eq!(house.driver.running(), [id]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_leaves_meanwhile_fails_the_deploy_by_name() {
    let (house, key, id) = reached().await;
    leave(&house, &id);
    house.until_failed(&key).await;
    let message = message(&house, &key);
    assert!(
        message.contains("\"side\" exited with status 7 right after its start")
            && message.contains(NO_CONFIG),
        "{message}"
    );
    assert!(house.driver.running().is_empty());
    assert!(house.routed("hello.localhost").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_container_that_leaves_later_is_replaced_with_its_instance() {
    let (house, key, id) = reached().await;
    house.pass_time(SETTLE).await;
    house.until_ready(&key).await;
    let routed = house.routed("hello.localhost").expect("routed");
    let route = house.door.table().revisions[&routed].clone();
    let took = route.usual_start.expect("known");
    assert!(
        took < SETTLE,
        "what was watched is no part of the start: {took:?}"
    );
    leave(&house, &id);
    house.rest().await;
    assert_eq!(house.ready(&key), Some(ConditionState::True));
}
