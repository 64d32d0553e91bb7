//! Servers and keepers of different versions.

use futures_util::FutureExt;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use utsuwa_runtime::keeper::{end_server, protocol::VERSION};
use utsuwa_runtime::spawner::protocol::Channel;

use super::busybox::possible;
use super::keeper_world::{PATIENCE, World};

/// A server that speaks `version` and nothing else.
fn server_of(world: &World, version: u32) -> Channel {
    let channel = world.connect();
    let hello = json!({"hello": {
        "version": version, "build": "another", "data_id": world.config.id, "kind": "server",
    }});
    channel.send(&hello, &[]).unwrap();
    let (welcome, _) = channel.receive::<Value>().unwrap().unwrap();
    assert_eq!(welcome["welcome"]["version"], version);
    channel
}

/// What came to a server until its keeper answered for the last time.
fn told(channel: &Channel) -> Vec<Value> {
    let ask = json!({"request": {"id": 1, "op": "status"}});
    channel.send(&ask, &[]).unwrap();
    let packets = std::iter::from_fn(|| Some(channel.receive::<Value>().unwrap()?.0));
    packets
        .take_while(|packet| packet["reply"]["id"] != 1)
        .collect()
}

/// One of the version before would take what it doesn't know for a broken connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_asked_to_make_place_in_its_own_version() {
    if !possible("a_server_is_asked_to_make_place_in_its_own_version") {
        return;
    }
    let world = World::new();
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let leaves = |channel: &Channel| {
        let all = told(channel);
        all.iter()
            .filter(|packet| packet.get("leave").is_some())
            .count()
    };

    let ours = server_of(&world, VERSION);
    end_server(&world.config.id).unwrap();
    assert_eq!(leaves(&ours), 1);
    drop(ours);

    let before = server_of(&world, 1);
    end_server(&world.config.id).unwrap();
    assert_eq!(leaves(&before), 0);
    let signalled = tokio::time::timeout(PATIENCE, terminate.recv()).await;
    assert_eq!(signalled.expect("a signal in time"), Some(()));
    // Asking again changes nothing: a second signal would mean at once. Another one shows that none is on its way.
    let mut later = signal(SignalKind::window_change()).unwrap();
    end_server(&world.config.id).unwrap();
    kill_process(getpid(), Signal::WINCH).unwrap();
    later.recv().await.unwrap();
    assert!(terminate.recv().now_or_never().is_none(), "signalled twice");
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_another_version_is_answered() {
    if !possible("a_client_of_another_version_is_answered") {
        return;
    }
    let world = World::new();
    let hello = |version: u32, oldest: u32| {
        json!({"hello": {
            "version": version, "oldest": oldest, "build": "later", "data_id": world.config.id, "kind": "visitor",
            "something_new": true,
        }})
    };
    let refused = world.speak(&[hello(VERSION + 1, VERSION + 1)]);
    let reason = refused[0]["refused"]["reason"].as_str().unwrap();
    assert!(reason.contains("speaks protocol"), "{reason}");
    assert_eq!(refused.len(), 1, "the connection ended");
    let answers = world.speak(&[
        hello(VERSION + 1, VERSION),
        json!({"request": {"id": 7, "op": {"levitate": {"height": 3}}}}),
        json!({"request": {"id": 8, "op": {"stop": {"identity": "x"}}}}),
        json!({"request": {"id": 9, "op": "status"}}),
    ]);
    assert_eq!(answers[0]["welcome"]["version"], VERSION);
    let of = |index: usize| &answers[index]["reply"]["result"]["Err"]["not_understood"]["op"];
    assert_eq!((of(1), of(2)), (&json!("levitate"), &json!("stop")));
    let status = &answers[3]["reply"]["result"]["Ok"]["status"];
    assert!(status["pid"].is_u64(), "the session goes on: {answers:?}");
    world.down();
}
