//! Dying after every action (house rules §4.9, level 2b): the same story is told once for each action the loops take; in the
//! n-th telling the server dies after its n-th action and a new one begins with what the store and the world hold. Every
//! telling must come to the same end, with the promises kept and nothing left to do.
#![expect(clippy::unwrap_used, reason = "tests")]

mod house;

use std::sync::Arc;
use std::time::Duration;

use house::{Gate, House, template};
use utsuwa_decide::invariant;
use utsuwa_model::instance::Tier;
use utsuwa_model::route::Target;
use utsuwa_model::service::ZYGOTE;
use utsuwa_model::{ConditionState, ServiceKey, condition};

/// Long enough for an instance to be frozen and to give its memory back before it is stopped.
const IDLE: Duration = Duration::from_secs(180);

/// Kind, state and reason of a condition.
type Shown = (String, ConditionState, String);

/// Where a telling ended, without names that chance made.
#[derive(Debug, PartialEq, Eq)]
struct End {
    services: Vec<(String, u64, Vec<Shown>)>,
    revisions: Vec<(String, String)>,
    routed: Vec<(String, String)>,
    running: usize,
    /// Of which services something is kept.
    kept: Vec<String>,
}

fn stem(name: &str) -> String {
    name.rsplit_once('-')
        .map_or(name, |(stem, _)| stem)
        .to_owned()
}

fn end(house: &House) -> End {
    let mut services = Vec::new();
    let mut revisions = Vec::new();
    for key in house.store.all_service_keys().unwrap() {
        let service = house.service(&key);
        assert_eq!(
            invariant::observed_follows(
                service.status.observed_generation,
                service.meta.generation
            ),
            Ok(())
        );
        let conditions = service
            .status
            .conditions
            .iter()
            .map(|c| (c.kind.clone(), c.state, c.reason.clone()))
            .collect();
        services.push((
            key.service.to_string(),
            service.status.observed_generation,
            conditions,
        ));
        for revision in house.store.revisions_of(&key).unwrap() {
            let ready = condition::find(&revision.status.conditions, "Ready").unwrap();
            revisions.push((
                stem(revision.key.revision.as_str()),
                format!("{:?}", ready.state),
            ));
        }
    }
    let table = house.door.table();
    assert_eq!(invariant::table_is_whole(&table), Ok(()));
    let routed = table.hosts.iter().map(|(host, route)| {
        let to = match &route.target {
            Target::Split(split) => split
                .iter()
                .map(|(key, percent)| format!("{percent}% {}", stem(key.revision.as_str())))
                .collect::<Vec<_>>()
                .join(" "),
            Target::NotReady { .. } => "nothing".to_owned(),
        };
        (host.clone(), to)
    });
    let routed = routed.collect();
    End {
        services,
        revisions,
        routed,
        kept: house.papers.kept(),
        running: house.driver.running().len(),
    }
}

/// Waits for `done`; if the server dies meanwhile, a new one begins.
async fn reach(house: &mut House, gate: &Arc<Gate>, what: &str, done: impl Fn(&House) -> bool) {
    let (lives, seen) = (Arc::clone(gate), Arc::clone(gate));
    house
        .until(what, |h| (lives.is_closed() && !h.reborn) || done(h))
        .await;
    if seen.is_closed() && !house.reborn {
        house.restart(None).await;
        house.reborn = true;
        house.until(what, |h| done(h)).await;
    }
}

/// With starts prepared ahead: deploy, sleep with one parked, wake by it, sleep, delete.
async fn tell_of_zygotes(actions: u64) -> (End, Arc<Gate>) {
    let idle = Duration::from_secs(5);
    let mut house = House::with(true, |settings| settings.idle_timeout = idle).await;
    let gate = Gate::after(actions);
    house.restart(Some(Arc::clone(&gate))).await;
    house.images.put("hello:1");
    house.driver.learns(Ok(&["re", "json"]));
    let mut ahead = template("hello:1");
    ahead
        .annotations
        .insert(ZYGOTE.to_owned(), "true".to_owned());
    let key = house.create("hello", ahead).await;
    reach(&mut house, &gate, "deploy", |h| {
        state(h, &key) == Some(ConditionState::True)
    })
    .await;
    for _ in 0..2 {
        for _ in 0..4 {
            if gate.is_closed() && !house.reborn {
                house.restart(None).await;
                house.reborn = true;
            }
            house.pass_time(Duration::from_secs(5)).await;
        }
        let routed = house.routed("hello.localhost").expect("it is routed");
        house.door.arrive(&routed, 1);
        reach(&mut house, &gate, "served", |h| {
            h.door_in_flight(&routed) > 0 || h.reborn
        })
        .await;
        house.door.finish(&routed);
    }
    for _ in 0..6 {
        if gate.is_closed() && !house.reborn {
            house.restart(None).await;
            house.reborn = true;
        }
        house.pass_time(Duration::from_secs(5)).await;
    }
    let parked = house.driver.running();
    let parked = parked
        .iter()
        .filter(|id| house.driver.parked(id) == Some(true));
    assert!(parked.count() <= 1, "{:?}", house.driver.log());
    house.delete(&key).await;
    reach(&mut house, &gate, "deleted", |h| {
        h.store.service(&key).unwrap().is_none()
    })
    .await;
    if gate.is_closed() && !house.reborn {
        house.restart(None).await;
        house.reborn = true;
    }
    house
        .until("all gone", |h| h.driver.running().is_empty())
        .await;
    house.control.look_at_everything();
    house.rest().await;
    let end = end(&house);
    house.control.shutdown(Duration::ZERO).await;
    (end, gate)
}

#[tokio::test(start_paused = true)]
async fn dying_after_every_action_leaves_nothing_parked() {
    let (undisturbed, gate) = tell_of_zygotes(u64::MAX).await;
    let actions = u64::try_from(gate.seen.lock().len()).unwrap();
    let went = gate
        .seen
        .lock()
        .iter()
        .filter(|action| *action == "go")
        .count();
    assert_eq!(went, 2, "{:?}", gate.seen.lock());
    assert_eq!(undisturbed.running, 0);
    for after in 0..actions {
        let (end, gate) = tell_of_zygotes(after).await;
        let last = gate.seen.lock().last().cloned();
        assert_eq!(end, undisturbed, "died after action {after} ({last:?})");
    }
}

/// A domain is mapped, gets its certificate at the second attempt, is renewed, and goes.
async fn tell_of_domains(actions: u64) -> (End, Vec<String>, Arc<Gate>) {
    const NAME: &str = "www.example.com";
    let mut house = House::with(true, |settings| settings.asks_authority = true).await;
    let gate = Gate::after(actions);
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    house.restart(Some(Arc::clone(&gate))).await;
    *house.registrar.refuses.lock() = Some("no".to_owned());
    house.map(NAME, "hello", false).await.unwrap();
    reach(&mut house, &gate, "refused", |h| {
        let asked = h.registrar.asked.lock();
        !asked.is_empty() || h.reborn
    })
    .await;
    let reborn = async |house: &mut House| {
        if gate.is_closed() && !house.reborn {
            house.restart(None).await;
            house.reborn = true;
        }
    };
    *house.registrar.refuses.lock() = None;
    for _ in 0..8 {
        reborn(&mut house).await;
        house.skip_time(Duration::from_secs(300)).await;
    }
    reborn(&mut house).await;
    let ready = |h: &House| {
        let mapping = h.store.domain(&NAME.parse().unwrap()).unwrap().unwrap();
        let ready = condition::find(&mapping.status.conditions, "Ready");
        ready.is_some_and(|c| c.state == ConditionState::True) && mapping.status.trouble.is_none()
    };
    house.until("a certificate", ready).await;
    let first = house.registrar.asked.lock().len();
    // Around the day of its renewal in short steps.
    for days in [50, 7, 1, 1, 1, 1, 1, 1] {
        house.skip_time(Duration::from_secs(days * 24 * 3600)).await;
        reborn(&mut house).await;
    }
    house.skip_time(Duration::from_secs(24 * 3600)).await;
    assert!(house.registrar.asked.lock().len() > first, "renewed");
    house.until("renewed", ready).await;
    house.unmap(NAME).await;
    reach(&mut house, &gate, "unmapped", |h| {
        (h.registrar.kept().is_empty() && h.routed(NAME).is_none()) || h.reborn
    })
    .await;
    house
        .until("all gone", |h| {
            h.registrar.kept().is_empty() && h.routed(NAME).is_none()
        })
        .await;
    house.rest().await;
    reborn(&mut house).await;
    let before = *house.store.changes().borrow();
    house.control.look_at_everything();
    house.rest().await;
    assert_eq!(before, *house.store.changes().borrow(), "at rest");
    let (end, kept) = (end(&house), house.registrar.kept());
    house.control.shutdown(Duration::ZERO).await;
    (end, kept, gate)
}

#[tokio::test(start_paused = true)]
async fn dying_after_every_action_keeps_domains_and_certificates_right() {
    let (undisturbed, kept, gate) = tell_of_domains(u64::MAX).await;
    let seen = gate.seen.lock().clone();
    for step in ["issue", "forget", "write domain status"] {
        assert!(seen.iter().any(|action| action == step), "{step}: {seen:?}");
    }
    assert_eq!(kept, Vec::<String>::new());
    for after in 0..u64::try_from(seen.len()).unwrap() {
        let (end, kept, gate) = tell_of_domains(after).await;
        let last = gate.seen.lock().last().cloned();
        assert_eq!(
            kept,
            Vec::<String>::new(),
            "died after action {after} ({last:?})"
        );
        assert_eq!(end, undisturbed, "died after action {after} ({last:?})");
    }
}

fn state(house: &House, key: &ServiceKey) -> Option<ConditionState> {
    house.ready(key)
}

/// Deploy, wake, a second deploy, a failed one, another service that is deleted, a request to a frozen instance, sleep.
async fn tell(actions: u64) -> (End, Arc<Gate>) {
    let mut house = House::with(true, |settings| settings.idle_timeout = IDLE).await;
    let gate = Gate::after(actions);
    house.restart(Some(Arc::clone(&gate))).await;
    house.images.put("hello:1");
    house.images.put("hello:2");
    let key = house.create("hello", template("hello:1")).await;
    reach(&mut house, &gate, "first deploy", |h| {
        state(h, &key) == Some(ConditionState::True)
    })
    .await;

    let first = house.routed("hello.localhost");
    if let Some(first) = &first {
        house.door.arrive(first, 1);
        let woken = first.clone();
        reach(&mut house, &gate, "served", |h| {
            h.door_in_flight(&woken) > 0 || h.reborn
        })
        .await;
        house.door.finish(first);
    }

    house
        .update(&key, |s| s.spec.template = template("hello:2"))
        .await;
    reach(&mut house, &gate, "second deploy", |h| {
        state(h, &key) == Some(ConditionState::True)
    })
    .await;
    house
        .update(&key, |s| s.spec.template = template("nowhere:1"))
        .await;
    reach(&mut house, &gate, "failed deploy", |h| {
        state(h, &key) == Some(ConditionState::False)
    })
    .await;

    let other = house.create("other", template("hello:1")).await;
    reach(&mut house, &gate, "other", |h| {
        state(h, &other) == Some(ConditionState::True)
    })
    .await;
    for written in [&key, &other] {
        house.write(written);
    }
    house.delete(&other).await;
    reach(&mut house, &gate, "deleted", |h| {
        h.store.service(&other).unwrap().is_none()
    })
    .await;

    // The second time what served the first is frozen, and its memory was given back.
    for idle in [Duration::ZERO, Duration::from_secs(70)] {
        house.pass_time(idle).await;
        let Some(routed) = house.routed("hello.localhost") else {
            continue;
        };
        house.door.arrive(&routed, 1);
        reach(&mut house, &gate, "served when awake", |h| {
            // A request that died with its server asks for nothing.
            (h.door_in_flight(&routed) > 0 || h.reborn)
                && h.driver
                    .running()
                    .iter()
                    .all(|id| h.driver.tier(id) == Some(Tier::Awake))
        })
        .await;
        house.door.finish(&routed);
    }

    // Twice as long as the idle time needs: a server that begins meanwhile counts it anew.
    for _ in 0..14 {
        if gate.is_closed() && !house.reborn {
            house.restart(None).await;
            house.reborn = true;
        }
        house.pass_time(Duration::from_secs(30)).await;
    }
    if gate.is_closed() && !house.reborn {
        house.restart(None).await;
        house.reborn = true;
        house.pass_time(IDLE + Duration::from_secs(60)).await;
    }
    let before = (house.driver.log().len(), *house.store.changes().borrow());
    house.control.look_at_everything();
    house.rest().await;
    let after = (house.driver.log().len(), *house.store.changes().borrow());
    assert_eq!(before, after, "a pass at the end does nothing");
    let end = end(&house);
    house.control.shutdown(Duration::ZERO).await;
    (end, gate)
}

#[tokio::test(start_paused = true)]
async fn dying_after_every_action_changes_nothing_in_the_end() {
    let (undisturbed, gate) = tell(u64::MAX).await;
    let actions = u64::try_from(gate.seen.lock().len()).unwrap();
    assert!(actions > 30, "{:?}", gate.seen.lock());
    for step in ["freeze", "reclaim", "thaw"] {
        let seen = gate.seen.lock();
        assert!(seen.iter().any(|action| action == step), "{step}: {seen:?}");
    }
    assert_eq!(undisturbed.running, 0, "asleep");
    assert_eq!(undisturbed.kept, ["hello"], "nothing of what was deleted");
    for after in 0..actions {
        let (end, gate) = tell(after).await;
        let last = gate.seen.lock().last().cloned();
        assert_eq!(end, undisturbed, "died after action {after} ({last:?})");
    }
}
