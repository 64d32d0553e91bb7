//! Deploys, splits, scaling, restarts and kills every few seconds, under load of every kind at once, by a client that never sends
//! anything twice: nothing may fail but what was inside something killed with −9, and that must be shown of each (`judge`).
//!
//! `UTSUWA_TEST_CHAOS_SECONDS` sets how long; `make soak` sets five minutes.

mod calls;
mod judge;
mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::harness::{Server, can_run, kill_9, skip, until};
use judge::{Kill, Victim, judge, ports_of};
use load::{Client, Kind, Outcome};

const SHORT: Duration = Duration::from_secs(30);
/// Between two blows.
const PAUSE: Duration = Duration::from_secs(2);
const LONG_SOCKETS: usize = 4;

/// What is done to the server while it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    Deploy(&'static str),
    Split,
    Latest,
    Grow,
    Shrink,
    /// The server starts again: another one takes its place with `up --replace`.
    Replace,
    KillInstance(&'static str),
    KillServer,
}

/// In this order: what is likely to break something comes within the short run.
const BLOWS: [Blow; 11] = [
    Blow::Replace,
    Blow::KillInstance("web"),
    Blow::Deploy("web"),
    Blow::Split,
    Blow::KillInstance("grpc"),
    Blow::Replace,
    Blow::Deploy("grpc"),
    Blow::Latest,
    Blow::Grow,
    Blow::Replace,
    Blow::Shrink,
];

#[test]
fn nothing_is_lost_but_what_was_in_a_killed_instance() {
    let lasts = std::env::var_os("UTSUWA_TEST_CHAOS_SECONDS")
        .and_then(|seconds| seconds.to_str()?.parse().ok())
        .map_or(SHORT, Duration::from_secs);
    storm(
        "chaos::nothing_is_lost_but_what_was_in_a_killed_instance",
        BLOWS.into_iter().cycle(),
        lasts,
    );
}

/// What no server can promise is shown to be all that is lost: the connections of the killed process. Whoever waited in the
/// kernel's queue, or comes while nobody serves, is answered by the next one.
#[test]
fn a_killed_server_loses_its_connections_only() {
    storm(
        "chaos::a_killed_server_loses_its_connections_only",
        [Blow::KillServer, Blow::Replace, Blow::KillServer].into_iter(),
        Duration::MAX,
    );
}

/// Strikes with `blows` under load until there are no more, or it `lasts` long enough.
fn storm(name: &str, blows: impl Iterator<Item = Blow>, lasts: Duration) {
    if !can_run(name) {
        return;
    }
    let Some(image) = std::env::var_os("UTSUWA_TEST_PROTOCOLS_IMAGE") else {
        return skip(
            name,
            "its image is not built; `make test` builds it (UTSUWA_TEST_PROTOCOLS_IMAGE)",
        );
    };
    let image = format!("oci-archive:{}", image.to_string_lossy());
    let mut world = World::new(&image);
    let client = Client::new(world.server.http);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut loads = tokio::task::JoinSet::new();
    for (kind, per_second) in [
        (Kind::Http, 40.0),
        (Kind::GrpcUnary, 15.0),
        (Kind::GrpcStream, 0.5),
        (Kind::Socket, 3.0),
    ] {
        loads.spawn_on(client.clone().arrivals(kind, per_second), runtime.handle());
    }
    for _ in 0..LONG_SOCKETS {
        loads.spawn_on(client.clone().stay(), runtime.handle());
    }
    let begun = Instant::now();
    for blow in blows {
        until_load_flows(&client, PAUSE);
        if begun.elapsed() >= lasts {
            break;
        }
        world.strike(blow);
    }
    until_load_flows(&client, Duration::ZERO);
    client
        .stop
        .store(true, std::sync::atomic::Ordering::Relaxed);
    runtime.block_on(async { while loads.join_next().await.is_some() {} });
    println!("{:.0?} of load", begun.elapsed());
    world.judge(&client.take());
    println!(
        "calls went on over a new connection {} times",
        client.moved()
    );
    world.finish();
}

fn until_load_flows(client: &Client, pause: Duration) {
    let (answered, next) = (client.answered(), Instant::now() + pause);
    until("load to flow", Duration::from_secs(30), || {
        (client.answered() > answered + 20 && Instant::now() >= next).then_some(())
    });
}

struct World {
    server: Server,
    image: String,
    deploys: BTreeMap<&'static str, u32>,
    kills: Vec<Kill>,
    /// Servers that made place and may still have streams.
    former: Vec<Child>,
    struck: Vec<Blow>,
}

impl World {
    fn new(image: &str) -> Self {
        let server = Server::start(&["--idle-timeout", "10s"]);
        let mut world = Self {
            server,
            image: image.to_owned(),
            deploys: BTreeMap::new(),
            kills: Vec::new(),
            former: Vec::new(),
            struck: Vec::new(),
        };
        world.deploy("web");
        world.deploy("grpc");
        world
    }

    fn deploy(&mut self, name: &'static str) {
        let count = self.deploys.entry(name).or_insert(0);
        *count += 1;
        let suffix = format!("n{count}");
        let mut flags = vec!["--image", &self.image, "--revision-suffix", &suffix];
        flags.extend([
            "--min-instances",
            "1",
            "--concurrency",
            "40",
            "--memory",
            "256Mi",
        ]);
        if name == "grpc" {
            flags.extend([
                "--use-http2",
                "--command",
                "python",
                "--args",
                "/app/grpc_app.py",
            ]);
        }
        self.server.deploy(name, &flags);
    }

    fn strike(&mut self, blow: Blow) {
        println!("{blow:?}");
        self.struck.push(blow);
        let server = &mut self.server;
        match blow {
            Blow::Deploy(name) => self.deploy(name),
            Blow::Split => {
                let newest = self.deploys["web"];
                let halves = format!("web-n{}=50,web-n{newest}=50", newest - 1);
                server.ok(&[
                    "services",
                    "update-traffic",
                    "web",
                    "--to-revisions",
                    &halves,
                ]);
            }
            Blow::Latest => {
                server.ok(&["services", "update-traffic", "web", "--to-latest"]);
            }
            // The service's own minimum: no new revision.
            Blow::Grow => {
                server.ok(&["deploy", "web", "--min", "2"]);
            }
            Blow::Shrink => {
                server.ok(&["deploy", "web", "--min", "0"]);
            }
            Blow::Replace => self.former.push(server.replace_beside()),
            Blow::KillInstance(name) => {
                let (id, pid) = server.busiest_instance(name);
                let kill = Kill::of(Victim::Instance(id), || kill_9(pid));
                self.kills.push(kill);
            }
            Blow::KillServer => {
                let pid = server.pid();
                // So that it accepts nothing between the look and its end.
                let stopped = Command::new("kill")
                    .args(["-STOP", &pid.to_string()])
                    .status();
                assert!(stopped.unwrap().success());
                let ports = ports_of(pid, server.http.port());
                let kill = Kill::of(Victim::Server(ports), || server.kill_9());
                self.kills.push(kill);
                server.up();
            }
        }
    }

    /// Each failure must have been inside what was killed.
    fn judge(&self, seen: &[Outcome]) {
        let verdict = judge(&self.server.data_dir(), &self.kills, seen);
        println!("{} requests, each sent once", seen.len());
        for kind in seen.iter().map(|o| o.kind).collect::<BTreeSet<_>>() {
            let mut took: Vec<Duration> = seen
                .iter()
                .filter(|outcome| outcome.kind == kind)
                .map(|outcome| outcome.ended - outcome.due)
                .collect();
            took.sort();
            println!(
                "{kind:?} to {}: {}, of which {} were inside what was killed; latency from when it was due: half within {:?}, all within {:?}",
                kind.service(),
                took.len(),
                verdict.excused.get(&kind).unwrap_or(&0),
                took[took.len() / 2],
                took[took.len() - 1],
            );
        }
        let mut struck = BTreeMap::new();
        for blow in &self.struck {
            *struck.entry(blow).or_insert(0) += 1;
        }
        println!("{struck:?}");
        assert_eq!(verdict.refused, 0, "{:#?}", verdict);
        assert!(
            verdict.lost.is_empty(),
            "after {:?}, kills {:#?}: lost {}\n{:#?}\n{}",
            self.struck,
            self.kills,
            verdict.lost.len(),
            verdict.lost,
            self.server.log()
        );
        assert!(!self.kills.is_empty(), "nothing was killed");
    }

    fn finish(mut self) {
        for mut old in self.former.drain(..) {
            let status = until(
                "a server that made place to end",
                Duration::from_secs(20),
                || old.try_wait().unwrap(),
            );
            assert!(status.success(), "{status}");
        }
        self.server.finish();
    }
}
