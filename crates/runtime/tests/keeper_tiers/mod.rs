//! Instances without CPU: what is frozen stands still, and can be called, stopped, killed and adopted all the same.

pub(crate) mod zram;

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, Tier};
use utsuwa_runtime::sandbox::reclaim::swap;
use utsuwa_runtime::{Driver, DriverError, Reclaimed};

use self::zram::Zram;
use crate::busybox::possible;
use crate::keeper_world::{Server, World, at_rest, kill, until};
use crate::skip::skip;

/// Counts as fast as it can, and says goodbye.
const BUSY: &str = "trap 'echo bye; exit 3' TERM; while :; do :; done";

async fn tier(server: &Server, id: &InstanceId) -> Tier {
    let listed = server.driver.list().await.unwrap();
    listed.iter().find(|found| found.id == *id).unwrap().tier
}

async fn cpu_us(server: &Server, id: &InstanceId) -> u64 {
    server.driver.usage(id).await.unwrap().cpu_us
}

/// Waits until it gets CPU.
async fn runs(server: &Server, id: &InstanceId) {
    let before = cpu_us(server, id).await;
    until("it runs", async || {
        cpu_us(server, id).await > before + 1_000
    })
    .await;
}

/// Waits until it rests, and sees that it gets no CPU from then on.
async fn stands_still(server: &Server, id: &InstanceId) {
    let listed = server.driver.list().await.unwrap();
    let pid = listed.iter().find(|found| found.id == *id).unwrap().pid;
    until("it comes to rest", async || at_rest(pid)).await;
    let before = cpu_us(server, id).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let got = cpu_us(server, id).await - before;
    assert!(got < 500, "it got {got} µs of CPU while frozen");
}

/// Its SIGTERM handler is there.
async fn ready(server: &Server, id: &InstanceId) {
    until("the handler", async || {
        let listed = server.driver.list().await.unwrap();
        let pid = listed.iter().find(|found| found.id == *id).unwrap().pid;
        utsuwa_runtime::sandbox::has_sigterm_handler(pid).unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_instance_gets_no_cpu_and_goes_on_when_thawed() {
    if !possible("a_frozen_instance_gets_no_cpu_and_goes_on_when_thawed") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = world.spec(BUSY);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    ready(&server, &id).await;
    runs(&server, &id).await;
    assert_eq!(tier(&server, &id).await, Tier::Awake);
    for _ in 0..2 {
        // Twice, as a repeated request does.
        server.driver.freeze(&id).await.unwrap();
    }
    assert_eq!(tier(&server, &id).await, Tier::Frozen);
    stands_still(&server, &id).await;
    server.driver.thaw(&id).await.unwrap();
    server.driver.thaw(&id).await.unwrap();
    assert_eq!(tier(&server, &id).await, Tier::Awake);
    runs(&server, &id).await;

    // Stopped while frozen, it still has its say.
    server.driver.freeze(&id).await.unwrap();
    stands_still(&server, &id).await;
    let stop = server.driver.stop(id.clone(), Duration::from_secs(30));
    stop.await.unwrap();
    let (ended, exit, lines) = server.exit().await;
    assert_eq!((ended, exit), (id.clone(), Exit::Code(3)));
    assert_eq!(lines, ["bye"]);
    let gone = server.driver.freeze(&id).await;
    assert!(matches!(gone, Err(DriverError::NotFound(_))), "{gone:?}");
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_instance_is_killed_when_its_grace_is_over() {
    if !possible("a_frozen_instance_is_killed_when_its_grace_is_over") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = world.spec("trap '' TERM; while :; do :; done");
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    runs(&server, &id).await;
    server.driver.freeze(&id).await.unwrap();
    stands_still(&server, &id).await;
    let stop = server.driver.stop(id.clone(), Duration::ZERO);
    stop.await.unwrap();
    assert_eq!(server.exit().await.1, Exit::Signal(9));

    // One that is being stopped is frozen no more, and nothing is wrong with that.
    let spec = world.spec("trap '' TERM; while :; do :; done");
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    runs(&server, &id).await;
    let stop = server.driver.stop(id.clone(), Duration::from_secs(1));
    let (stopped, late) = tokio::join!(stop, server.driver.freeze(&id));
    stopped.unwrap();
    assert!(matches!(late, Err(DriverError::NotFound(_))), "{late:?}");
    server.exit().await;

    // And by `down`, which needs no server.
    let spec = world.spec(BUSY);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    runs(&server, &id).await;
    server.driver.freeze(&id).await.unwrap();
    drop(server);
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_instance_answers_when_thawed() {
    if !possible("a_frozen_instance_answers_when_thawed") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let spec = world.spec_of(&["httpd", "-f", "-v", "-p", "8080", "-h", "/www"]);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    assert!(server.get(&id).await.contains("hello from inside"));
    server.driver.freeze(&id).await.unwrap();
    // The kernel takes the connection and the request; the answer needs the program.
    let answer = {
        let asked = server.get(&id);
        tokio::pin!(asked);
        let early = tokio::time::timeout(Duration::from_millis(200), asked.as_mut()).await;
        assert!(early.is_err(), "answered while frozen: {early:?}");
        server.driver.thaw(&id).await.unwrap();
        asked.await
    };
    assert!(answer.contains("hello from inside"), "{answer}");
    drop(server);
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_keeper_and_a_new_server_see_what_is_frozen() {
    if !possible("a_new_keeper_and_a_new_server_see_what_is_frozen") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let spec = world.spec(BUSY);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    ready(&server, &id).await;
    server.driver.freeze(&id).await.unwrap();
    stands_still(&server, &id).await;
    let keeper = world.status().unwrap().pid;
    kill(keeper);
    until("another keeper", async || {
        world.status().is_some_and(|status| status.pid != keeper)
    })
    .await;
    assert_eq!(tier(&server, &id).await, Tier::Frozen);
    stands_still(&server, &id).await;
    drop(server);
    let mut server = world.server().await;
    assert_eq!(tier(&server, &id).await, Tier::Frozen);

    // A server of a build that can't thaw finds nothing frozen.
    let hello = json!({"hello": {
        "version": 2, "oldest": 1, "build": "earlier", "data_id": world.config.id, "kind": "server",
    }});
    let list = json!({"request": {"id": 1, "op": {"list": {"after": null}}}});
    drop(server);
    let answers = world.speak(&[hello, list]);
    assert!(answers[0]["welcome"].is_object(), "{answers:?}");
    server = world.server().await;
    assert_eq!(tier(&server, &id).await, Tier::Awake);
    runs(&server, &id).await;

    server.driver.freeze(&id).await.unwrap();
    server
        .driver
        .stop(id.clone(), Duration::from_secs(30))
        .await
        .unwrap();
    let (_, exit, lines) = server.exit().await;
    // Before Linux 6.15 only its parent, the keeper that was killed, could have learnt its status.
    let learnt = matches!(exit, Exit::Code(3) | Exit::Unknown { .. });
    assert!(learnt && lines == ["bye"], "{exit:?} {lines:?}");
    world.down();
}

/// An earlier build's `up` or `down` begins with having its own keeper take over, which may know nothing of the frozen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_that_makes_place_leaves_nothing_frozen() {
    if !possible("a_keeper_that_makes_place_leaves_nothing_frozen") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let spec = world.spec(BUSY);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    ready(&server, &id).await;
    server.driver.freeze(&id).await.unwrap();
    stands_still(&server, &id).await;
    world.config.build = "another".to_owned();
    utsuwa_runtime::keeper::ensure_keeper(&world.config).unwrap();
    assert_eq!(tier(&server, &id).await, Tier::Awake);
    runs(&server, &id).await;
    server.driver.freeze(&id).await.unwrap();
    drop(server);
    world.down();
}

/// v2: how much of it the kernel may write out without being asked.
fn swap_limit(pid: u32) -> Option<String> {
    let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = memberships
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))?;
    let file = Path::new("/sys/fs/cgroup")
        .join(path)
        .join("memory.swap.max");
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

/// Pages of memory that `pid` has in swap.
fn swapped_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSwap:"));
    let words = line.and_then(|line| line.split_whitespace().nth(1));
    words.map_or(0, |number| number.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_given_back_only_while_frozen_and_only_to_swap_that_may_hold_it() {
    const NAME: &str = "memory_is_given_back_only_while_frozen_and_only_to_swap_that_may_hold_it";
    if !possible(NAME) {
        return;
    }
    if let Err(why) = swap() {
        let given = frozen_and_asked().await;
        assert!(matches!(&given, Err(DriverError::Refused(said)) if *said == why));
    }
    let made = Zram::new();
    if swap().is_err() {
        skip(
            NAME,
            "the half about giving back needs zram or encrypted swap",
        );
        return;
    }
    frozen_and_asked().await.unwrap();
    drop(made);
}

/// Freezes an instance of 16 MB, asks it to give them back, and has it show all of them at its end. Answers what giving back did.
async fn frozen_and_asked() -> Result<Reclaimed, DriverError> {
    let mut world = World::new();
    let mut server = world.server().await;
    // In a variable of the shell, which has no children any more: pages that two share stay.
    let spec = world.spec(
        "x=$(head -c 16000000 /dev/zero | tr '\\0' x); echo there; trap 'echo ${#x}; exit 3' TERM; while :; do :; done",
    );
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    ready(&server, &id).await;
    let listed = server.driver.list().await.unwrap();
    let pid = listed[0].pid;
    let awake = server.driver.reclaim(&id).await;
    assert!(matches!(awake, Err(DriverError::Internal(_))), "{awake:?}");
    server.driver.freeze(&id).await.unwrap();
    stands_still(&server, &id).await;
    let limit = swap_limit(pid);
    assert!(limit.as_deref().is_none_or(|limit| limit == "0"));
    let given = server.driver.reclaim(&id).await;
    assert_eq!(swap_limit(pid), limit, "allowed only meanwhile");
    if let Ok(given) = &given {
        assert!(swapped_kib(pid) > 12 << 10, "{given:?}");
        assert!(given.after_bytes < given.before_bytes / 2, "{given:?}");
    }
    let expected = if given.is_ok() {
        Tier::Reclaimed
    } else {
        Tier::Frozen
    };
    assert_eq!(tier(&server, &id).await, expected);
    server.driver.thaw(&id).await.unwrap();
    assert_eq!(tier(&server, &id).await, Tier::Awake);
    let stop = server.driver.stop(id.clone(), Duration::from_secs(30));
    stop.await.unwrap();
    let (_, exit, lines) = server.exit().await;
    assert_eq!(exit, Exit::Code(3));
    assert_eq!(lines, ["there", "16000000"], "all of it came back");
    world.down();
    given
}
