//! Deploys, splits, scaling, restarts and kills every few seconds, under load of every kind at once, by a client that never sends
//! anything twice: nothing may fail but what was inside something killed with −9.
//!
//! `UTSUWA_TEST_CHAOS_SECONDS` sets how long; `make soak` sets five minutes.

mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::harness::{Server, can_run, kill_9, skip, until};
use load::{Client, Kind, Outcome};

const SHORT: Duration = Duration::from_secs(30);
/// Between two blows.
const PAUSE: Duration = Duration::from_secs(2);
/// How long before and after a kill −9 its victims may be told: what was sent into it a moment before, and a client that learns
/// late on a busy machine.
const BLAST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
const LONG_SOCKETS: usize = 4;

/// What is done to the server while it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Deploy(&'static str),
    Split,
    Latest,
    Grow,
    Shrink,
    /// Another server takes the place with `up --replace`.
    Replace,
    KillInstance(&'static str),
    KillServer,
}

/// In this order: what is likely to break something comes within the short run.
const BLOWS: [Blow; 12] = [
    Blow::Deploy("web"),
    Blow::Replace,
    Blow::Split,
    Blow::KillInstance("web"),
    Blow::Deploy("grpc"),
    Blow::Replace,
    Blow::KillInstance("grpc"),
    Blow::Latest,
    Blow::KillServer,
    Blow::Grow,
    Blow::Replace,
    Blow::Shrink,
];

/// Something killed with −9.
#[derive(Debug)]
struct Kill {
    at: Instant,
    /// `None`: the server.
    service: Option<&'static str>,
}

#[test]
fn nothing_is_lost_but_what_was_killed() {
    const NAME: &str = "chaos::nothing_is_lost_but_what_was_killed";
    if !can_run(NAME) {
        return;
    }
    let Some(image) = std::env::var_os("UTSUWA_TEST_PROTOCOLS_IMAGE") else {
        return skip(
            NAME,
            "its image is not built; `make test` builds it (UTSUWA_TEST_PROTOCOLS_IMAGE)",
        );
    };
    let image = format!("oci-archive:{}", image.to_string_lossy());
    let lasts = std::env::var_os("UTSUWA_TEST_CHAOS_SECONDS")
        .and_then(|seconds| seconds.to_str()?.parse().ok())
        .map_or(SHORT, Duration::from_secs);
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
    let mut blows = BLOWS.iter().cycle();
    while begun.elapsed() < lasts {
        let answered = client.answered();
        let next = Instant::now() + PAUSE;
        until(
            "load to flow between two blows",
            Duration::from_secs(30),
            || (client.answered() > answered + 20 && Instant::now() >= next).then_some(()),
        );
        if let Some(blow) = blows.next() {
            world.strike(*blow);
        }
    }
    let answered = client.answered();
    until(
        "load to flow after the last",
        Duration::from_secs(30),
        || (client.answered() > answered + 20).then_some(()),
    );
    client
        .stop
        .store(true, std::sync::atomic::Ordering::Relaxed);
    runtime.block_on(async { while loads.join_next().await.is_some() {} });
    world.judge(&client.take());
    world.finish();
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
                let pids = server.instance_pids(name);
                let Some(pid) = pids.iter().find(|pid| **pid != 0) else {
                    return;
                };
                let at = Instant::now();
                self.kills.push(Kill {
                    at,
                    service: Some(name),
                });
                kill_9(u32::try_from(*pid).unwrap());
            }
            Blow::KillServer => {
                self.kills.push(Kill {
                    at: Instant::now(),
                    service: None,
                });
                server.kill_9();
                server.up();
            }
        }
    }

    /// Each failure must have been inside what was killed.
    fn judge(&self, seen: &[Outcome]) {
        let mut lost: Vec<&Outcome> = Vec::new();
        for kind in seen.iter().map(|o| o.kind).collect::<BTreeSet<_>>() {
            let mut all: Vec<&Outcome> = seen.iter().filter(|o| o.kind == kind).collect();
            all.sort_by_key(|outcome| outcome.ended - outcome.due);
            let failed = all.iter().filter(|outcome| outcome.result.is_err());
            let worst = all.last().map(|outcome| outcome.ended - outcome.due);
            let middle = all
                .get(all.len() / 2)
                .map(|outcome| outcome.ended - outcome.due);
            println!(
                "{kind:?}: {} of {} failed; latency from when it was due: half within {middle:?}, all within {worst:?}",
                failed.clone().count(),
                all.len()
            );
            lost.extend(failed.filter(|outcome| !self.was_killed(outcome)));
        }
        assert!(
            lost.is_empty(),
            "after {:?}, kills {:?}: lost {lost:#?}\n{}",
            self.struck,
            self.kills,
            self.server.log()
        );
        let refused =
            |o: &&Outcome| matches!(&o.result, Err(why) if why.contains("ConnectionRefused"));
        assert_eq!(seen.iter().find(refused).map(|o| o.kind), None, "refused");
    }

    fn was_killed(&self, outcome: &Outcome) -> bool {
        let service = match outcome.kind {
            Kind::Http | Kind::Socket | Kind::LongSocket => "web",
            Kind::GrpcUnary | Kind::GrpcStream => "grpc",
        };
        self.kills.iter().any(|kill| {
            kill.service.is_none_or(|killed| killed == service)
                && outcome.due <= kill.at + BLAST.0
                && (kill.at..kill.at + BLAST.1).contains(&outcome.ended)
        })
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
