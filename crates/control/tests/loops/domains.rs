//! Custom domains: where they lead, their certificates, their end.

use std::time::Duration;

use utsuwa_control::ControlSettings;
use utsuwa_model::domain::DomainMapping;
use utsuwa_model::route::Access;
use utsuwa_model::{ConditionState, condition};

use crate::hello;
use crate::house::{House, template};

const NAME: &str = "www.example.com";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn asks(settings: &mut ControlSettings) {
    settings.asks_authority = true;
    settings.also_https = Some(8443);
    settings.public.v4 = Some([203, 0, 113, 7].into());
}

fn mapped(house: &House) -> DomainMapping {
    let name = NAME.parse().expect("a domain");
    let found = house.store.domain(&name).expect("store");
    found.expect("it is mapped")
}

fn shown(house: &House, kind: &str) -> (ConditionState, String) {
    let mapping = mapped(house);
    condition::find(&mapping.status.conditions, kind)
        .map_or((ConditionState::Unknown, String::new()), |c| {
            (c.state, c.reason.clone())
        })
}

async fn until_ready(house: &House, state: ConditionState) {
    house
        .until("the domain's state", |h| shown(h, "Ready").0 == state)
        .await;
    house.rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_domain_leads_where_its_service_does() {
    let (house, key, revision) = hello().await;
    house.map(NAME, "hello", false).await.unwrap();
    until_ready(&house, ConditionState::True).await;
    assert_eq!(house.routed(NAME), Some(revision));
    // Nobody asks an authority: told, but no failure.
    let (state, reason) = shown(&house, "CertificateProvisioned");
    assert_eq!(
        (state, reason.as_str()),
        (ConditionState::False, "CertificateAuthorityNotAsked")
    );
    assert_eq!(mapped(&house).status.url, "http://www.example.com:8080");
    let others = house.service(&key).status.other_urls;
    assert_eq!(others, ["http://www.example.com:8080"]);

    // Switching the service's own address off leaves the domain.
    house
        .update(&key, |s| s.spec.default_uri_disabled = true)
        .await;
    house.until_ready(&key).await;
    let table = house.door.table();
    assert_eq!(table.hosts[NAME].access, Access::Public);
    assert_eq!(table.hosts["hello.localhost"].access, Access::Closed);
    let shown = house.service(&key).status;
    assert_eq!(shown.url, "", "nothing answers under it");
    assert_eq!(shown.other_urls, ["http://www.example.com:8080"]);

    house.unmap(NAME).await;
    house.until("no route", |h| h.routed(NAME).is_none()).await;
    house.rest().await;
    assert!(house.service(&key).status.other_urls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_domain_waits_for_its_service() {
    let house = House::new().await;
    house.images.put("hello:1");
    house.map(NAME, "hello", false).await.unwrap();
    until_ready(&house, ConditionState::False).await;
    assert_eq!(shown(&house, "DomainRoutable").1, "RouteNotFound");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    until_ready(&house, ConditionState::True).await;
    assert!(house.routed(NAME).is_some());
    house.delete(&key).await;
    until_ready(&house, ConditionState::False).await;
    assert!(house.routed(NAME).is_none());
}

/// The loops of a service and of its domains look at their own times: what one hasn't done yet is no news of the other.
#[tokio::test(start_paused = true)]
async fn a_service_that_has_not_looked_yet_is_awaited_not_denied() {
    let house = House::new().await;
    house.images.put("hello:1");
    let hold = house.hold("create revision");
    let key = house.create("hello", template("hello:1")).await;
    house.until("its loop is held", |_| hold.is_reached()).await;
    house.map(NAME, "hello", false).await.unwrap();
    house
        .until("the domain's state", |h| {
            !mapped(h).status.conditions.is_empty()
        })
        .await;
    let awaited = (ConditionState::Unknown, "RouteAwaited".to_owned());
    assert_eq!(shown(&house, "DomainRoutable"), awaited);
    assert_eq!(mapped(&house).status.observed_generation, 0);
    hold.open();
    house.until_ready(&key).await;
    until_ready(&house, ConditionState::True).await;
    assert_eq!(mapped(&house).status.observed_generation, 1);
}

#[tokio::test(start_paused = true)]
async fn a_domain_is_one_mapping_s_unless_it_is_taken_by_force() {
    let (house, _, first) = hello().await;
    let other = house.create("other", template("hello:1")).await;
    house.until_ready(&other).await;
    house.map(NAME, "hello", false).await.unwrap();
    until_ready(&house, ConditionState::True).await;
    let refused = house.map(NAME, "other", false).await.unwrap_err();
    assert!(refused.to_string().contains("demo/here/hello"), "{refused}");
    assert_eq!(house.routed(NAME).as_ref(), Some(&first));
    house.map(NAME, "other", true).await.unwrap();
    house
        .until("it leads elsewhere", |h| {
            h.routed(NAME)
                .is_some_and(|r| r.service.service.as_str() == "other")
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_issued_renewed_ahead_and_let_go_of() {
    let house = House::with(true, asks).await;
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    house.map(NAME, "hello", false).await.unwrap();
    until_ready(&house, ConditionState::True).await;
    let mapping = mapped(&house);
    assert_eq!(mapping.status.url, "https://www.example.com:8443");
    assert_eq!(mapping.status.records[0].data, "203.0.113.7");
    assert_eq!(mapping.status.trouble, None);
    assert_eq!(house.registrar.asked.lock().len(), 1);

    house.skip_time(56 * DAY).await;
    assert_eq!(house.registrar.asked.lock().len(), 1, "not yet");
    house.skip_time(5 * DAY).await;
    assert_eq!(house.registrar.asked.lock().len(), 2, "a month ahead");
    assert_eq!(shown(&house, "Ready").0, ConditionState::True);

    house.unmap(NAME).await;
    house
        .until("it is forgotten", |h| h.registrar.kept().is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_and_tried_again_ever_later() {
    let house = House::with(true, asks).await;
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    *house.registrar.refuses.lock() = Some("port 80 of www.example.com is closed".to_owned());
    house.map(NAME, "hello", false).await.unwrap();
    until_ready(&house, ConditionState::False).await;
    let ready = condition::find(&mapped(&house).status.conditions, "Ready").cloned();
    assert!(ready.unwrap().message.contains("port 80"), "in words");
    // Its records are shown all the same, and it is served.
    assert!(!mapped(&house).status.records.is_empty());
    assert!(house.routed(NAME).is_some());

    house.pass_time(Duration::from_secs(3600)).await;
    let asked = house.registrar.asked.lock().clone();
    assert!((3..=5).contains(&asked.len()), "{asked:?}");
    let numbers: Vec<u32> = asked.iter().map(|(_, _, attempt)| *attempt).collect();
    assert_eq!(
        numbers,
        (1..=u32::try_from(asked.len()).unwrap()).collect::<Vec<_>>()
    );
    let waits: Vec<Duration> = asked.windows(2).map(|w| w[1].0.since(w[0].0)).collect();
    assert!(waits.windows(2).all(|w| w[0] < w[1]), "{waits:?}");

    *house.registrar.refuses.lock() = None;
    house.skip_time(Duration::from_secs(14 * 3600)).await;
    assert_eq!(shown(&house, "Ready").0, ConditionState::True);
    assert_eq!(mapped(&house).status.trouble, None);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_begins_again_goes_on_waiting() {
    let mut house = House::with(true, asks).await;
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    *house.registrar.refuses.lock() = Some("no".to_owned());
    house.map(NAME, "hello", false).await.unwrap();
    until_ready(&house, ConditionState::False).await;
    for _ in 0..5 {
        house.restart(None).await;
        house.rest().await;
    }
    assert_eq!(house.registrar.asked.lock().len(), 1, "nobody hurries");
}

/// However many wait for an authority that doesn't answer, the next domain has its status and its records at once, and its turn
/// in its time.
#[tokio::test(start_paused = true)]
async fn an_authority_that_hangs_keeps_no_other_domain_waiting() {
    let house = House::with(true, asks).await;
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    house.registrar.hangs.send_replace(true);
    let names: Vec<String> = (0..12).map(|n| format!("d{n}.example.com")).collect();
    let status = |house: &House, name: &str| {
        let found = house.store.domain(&name.parse().expect("a domain"));
        found.expect("store").expect("it is mapped").status
    };
    for name in &names {
        house.map(name, "hello", false).await.unwrap();
        house
            .until("its status", |h| {
                let status = status(h, name);
                status.observed_generation == 1 && !status.records.is_empty()
            })
            .await;
    }
    house
        .until("eight attempts", |h| {
            h.registrar.hangs.receiver_count() == 8
        })
        .await;
    house.unmap(&names[11]).await;
    house
        .until("its end", |h| h.routed(&names[11]).is_none())
        .await;
    assert_eq!(
        house.registrar.hangs.receiver_count(),
        8,
        "no more at a time"
    );

    house.registrar.hangs.send_replace(false);
    house.pass_time(Duration::from_secs(6)).await;
    assert_eq!(house.registrar.kept().len(), 11);
    for name in &names[..11] {
        let status = status(&house, name);
        let ready = condition::find(&status.conditions, "Ready").map(|c| c.state);
        assert_eq!(ready, Some(ConditionState::True), "{name}");
        assert_eq!(status.trouble, None);
    }
    let asked = house.registrar.asked.lock().clone();
    assert!(
        asked.iter().all(|(_, _, attempt)| *attempt == 1),
        "{asked:?}"
    );
}
