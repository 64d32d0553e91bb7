//! The same attempts from a further container of an instance: it shares network and users with the app and has every wall of its own.
//!
//! The ingress reaches only the app, so the requests are made from within the instance's network.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;

use super::attempts::{deploy, make, table};
use super::walls::{REMOVABLE, weak_server};
use super::world::World;
use super::{Attempt, On, Verdict, inputs};
use crate::harness::{PARENT, Server, skip, until};
use crate::skip::here;

const SERVICE: &str = "beside";
const PORT: u16 = 7000;
/// An attempt ends after ten seconds by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// A service whose app is the sample and whose sidecar is the hostile program.
struct Sidecar {
    app: u64,
    network: File,
}

impl Sidecar {
    fn deploy(server: &Server, folder: &Path) -> Self {
        let archive = format!("oci-archive:{}", folder.join("hostile.tar").display());
        let image = server.ok(&["images", "load", &archive]).trim().to_owned();
        server.deploy(SERVICE, &[]);
        let template = json!({
            "scaling": {"minInstanceCount": 1, "maxInstanceCount": 1},
            "containers": [
                {
                    "name": "side", "image": image, "env": [{"name": "PORT", "value": PORT.to_string()}],
                    "resources": {"limits": {"cpu": "1", "memory": "256Mi"}},
                    "startupProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1, "failureThreshold": 60},
                },
                {
                    "name": "app", "image": "utsuwa.local/hello", "ports": [{"containerPort": 9000}], "dependsOn": ["side"],
                    // No request through the ingress keeps it awake: as one that is throttled it would be frozen in the middle.
                    "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "cpuIdle": false},
                },
            ],
        });
        let path = format!("{PARENT}/services/{SERVICE}");
        let (status, operation) = server.api_call("PATCH", &path, &json!({ "template": template }));
        assert_eq!(status, 200, "{operation}");
        let name = operation["name"].as_str().unwrap().to_owned();
        let done = until("the deploy to be done", Duration::from_secs(60), || {
            let (_, answer) = server.api_get(&format!("/run/v2/{name}"));
            (answer["done"] == json!(true)).then_some(answer)
        });
        assert!(done["error"].is_null(), "{done}");
        let app = until("the one instance", Duration::from_secs(20), || match server
            .instance_pids(SERVICE)[..]
        {
            [app] if server.get(SERVICE, "/env").1.contains("9000") => Some(app),
            _ => None,
        });
        let network = File::open(format!("/proc/{app}/ns/net")).unwrap();
        Self { app, network }
    }

    /// Has an attempt made there.
    fn make(&self, name: &str, parameters: &str) -> Verdict {
        let asked = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                write!(stream, "GET /try/{name}?{parameters} HTTP/1.1\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                std::io::Result::Ok(answer)
            });
            asking.join().unwrap()
        });
        let broken = |detail: String| Verdict {
            outcome: "broken".to_owned(),
            detail,
        };
        match asked {
            Ok(answer) => {
                let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                serde_json::from_str(body).unwrap_or_else(|_| broken(answer.clone()))
            }
            Err(error) => broken(error.to_string()),
        }
    }

    /// No attempt has ended the instance.
    fn still_runs(&self, server: &Server) {
        assert_eq!(server.instance_pids(SERVICE), [self.app]);
        assert_eq!(server.get(SERVICE, "/healthz").0, 200);
    }
}

/// What takes a moment, and needs no other instance to be looked from.
fn attempts(program: &Path) -> Vec<Attempt> {
    let mut all = table(program);
    all.retain(|attempt| !attempt.is_bomb() && attempt.name != "read-image");
    all
}

#[test]
fn none_gets_out_of_a_sidecar() {
    let Some(folder) = inputs(here!()) else {
        return;
    };
    let program = folder.join("hostile");
    let world = World::new(&program);
    let server = Server::start(&[]);
    deploy(&server, &folder, On::Launcher);
    let sidecar = Sidecar::deploy(&server, &folder);
    let parameters = world.parameters(&server, "peer");
    let mut through = Vec::new();
    let all = attempts(&program);
    for attempt in &all {
        let Verdict { outcome, detail } = sidecar.make(&attempt.name, &parameters);
        let stands = ["refused", "contained", "absent"].contains(&outcome.as_str());
        // What has no wall is a control: it says that the suite can tell.
        if stands == attempt.walls.is_empty() {
            through.push(format!("{} {outcome} {detail}", attempt.name));
        }
    }
    println!("{} attempts", all.len());
    assert!(through.is_empty(), "{}", through.join("\n"));
    sidecar.still_runs(&server);
    server.finish();
    drop(world);
}

/// Without the walls a sidecar is as open as any container.
#[test]
fn removed_walls_let_the_same_attempts_out_of_a_sidecar() {
    let Some(folder) = inputs(here!()) else {
        return;
    };
    let Some(weak) = std::env::var_os("UTSUWA_TEST_MISSING_WALLS").map(PathBuf::from) else {
        skip(
            here!(),
            "needs the build without walls: scripts/missing-walls.sh makes it, make soak runs it",
        );
        return;
    };
    let program = folder.join("hostile");
    let world = World::new(&program);
    let directory = tempfile::tempdir().unwrap();
    let server = weak_server(&weak, &REMOVABLE, directory.path());
    deploy(&server, &folder, On::Launcher);
    let sidecar = Sidecar::deploy(&server, &folder);
    let parameters = world.parameters(&server, "peer");
    let (mut both, mut wrong) = (0, Vec::new());
    for attempt in attempts(&program) {
        let alone = make(&server, "hostile", &attempt.name, &parameters);
        let beside = sidecar.make(&attempt.name, &parameters);
        match (&*alone.outcome, &*beside.outcome) {
            ("escaped", "escaped") => both += 1,
            (alone, beside) if alone == beside => {}
            _ => wrong.push(format!("{}: {alone:?} {beside:?}", attempt.name)),
        }
    }
    println!("{both} attempts got through from both");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(both >= 100, "{both}");
    server.finish();
    drop(world);
}
