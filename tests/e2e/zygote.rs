//! Starts prepared ahead: an app that wakes from its zygote is the app as it always starts, only sooner.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Server, can_run, kill_9, skip, until};

/// Tells all that a program sees of how it was started, and what chance gives it.
const SHOWS: &str = "
import http.server, json, logging, os, random, signal, ssl, sys, threading, time
def same():
    env = sorted(n for n in os.environ if not n.startswith('K_'))
    return [sys.path, sys.argv, env, [getattr(f, '__name__', type(f).__name__) for f in sys.meta_path], os.getcwd(), os.getpid(), __name__,
            [t.name for t in threading.enumerate()][:1], str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            'sitecustomize' in sys.modules, sorted(int(n) for n in os.listdir('/proc/self/fd'))]
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        chance = [random.random(), ssl.RAND_bytes(8).hex(), hash('x')]
        # Seconds since the logging module began, as it tells the time.
        log = time.time() - logging._startTime
        body = json.dumps({'same': same(), 'chance': chance, 'log': log, 'ready': READY}).encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(('', int(os.environ['PORT'])), H)
READY = time.monotonic()
server.serve_forever()
";

fn flask_image(test: &str) -> Option<String> {
    if !can_run(test) {
        return None;
    }
    let Some(archive) = std::env::var_os("UTSUWA_TEST_FLASK_IMAGE").map(PathBuf::from) else {
        skip(
            test,
            "its image is not built; `make test` builds it (UTSUWA_TEST_FLASK_IMAGE)",
        );
        return None;
    };
    Some(format!("oci-archive:{}", archive.display()))
}

fn why(server: &Server, name: &str) -> String {
    server.ok(&["services", "describe", name, "--why"])
}

/// Waits until it sleeps and one is parked.
fn until_parked(server: &Server, name: &str) {
    until(
        &format!("{name} to be parked"),
        Duration::from_secs(60),
        || {
            let parked = why(server, name).contains("zygote: 1 of 1 parked");
            (parked && server.instance_pids(name).is_empty()).then_some(())
        },
    );
}

/// Calls a sleeping service: its answer, and whether the instance that gave it had been parked.
fn woken(server: &Server, name: &str, path: &str) -> (String, bool) {
    let asked = Instant::now();
    let (status, body) = server.get(name, path);
    println!("{name} woken in {:?}", asked.elapsed());
    assert_eq!(status, 200, "{body}\n{}", server.log());
    let explained = server.explain(name);
    let id = explained["revisions"][0]["instances"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let log = server.log();
    let parked = log
        .lines()
        .any(|line| line.contains("park an instance") && line.contains(&id));
    (body, parked)
}

#[test]
fn a_program_that_goes_on_is_as_it_always_starts() {
    let Some(image) = flask_image("zygote::a_program_that_goes_on_is_as_it_always_starts") else {
        return;
    };
    let mut server = Server::start(&["--idle-timeout", "2s"]);
    let code = format!("^@^CODE={SHOWS}@PYTHONPATH=/srv");
    let common = [
        "--image",
        &image,
        "--command",
        "python3",
        "--args=-c,import os; exec(os.environ['CODE'])",
        "--set-env-vars",
        &code,
    ];
    server.deploy("plain", &common);
    server.deploy("ahead", &[&common[..], &["--zygote"]].concat());
    let answer = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let plain = answer(&server.get("plain", "/").1);
    assert_eq!(server.get("ahead", "/").0, 200);
    let mut chances = vec![plain["chance"].clone()];
    for _ in 0..2 {
        until_parked(&server, "ahead");
        let (body, parked) = woken(&server, "ahead", "/");
        assert!(parked, "{}", server.log());
        let shown = answer(&body);
        assert_eq!(shown["same"], plain["same"]);
        assert!(
            shown["log"].as_f64().unwrap() < 5.0,
            "it began when it went on: {shown}"
        );
        chances.push(shown["chance"].clone());
    }
    for (index, chance) in chances.iter().enumerate() {
        for other in &chances[..index] {
            for kind in 0..3 {
                assert_ne!(chance[kind], other[kind], "{chances:?}");
            }
        }
    }

    // Whoever dies meanwhile, it is answered, and there is a parked one again.
    until_parked(&server, "ahead");
    server.kill_9();
    server.up();
    let (_, parked) = woken(&server, "ahead", "/");
    assert!(
        !parked,
        "that one was stopped: the new server knows nothing of it"
    );
    until_parked(&server, "ahead");
    server.expect_warning("keeper");
    kill_9(server.keeper_pid().unwrap());
    let (_, parked) = woken(&server, "ahead", "/");
    assert!(parked, "{}", server.log());
    until_parked(&server, "ahead");
    // `down` finds it, too.
    server.finish();
}

#[test]
fn the_flask_app_wakes_from_its_zygote() {
    let Some(image) = flask_image("zygote::the_flask_app_wakes_from_its_zygote") else {
        return;
    };
    let server = Server::start(&["--idle-timeout", "2s"]);
    server.deploy(
        "chat",
        &[
            "--image",
            &image,
            "--zygote",
            "--set-env-vars",
            "OPENAI_API_KEY=none",
        ],
    );
    let first = server.get("chat", "/health");
    assert_eq!((first.0, first.1.trim()), (200, "{\"status\":\"ok\"}"));
    until_parked(&server, "chat");
    let (body, parked) = woken(&server, "chat", "/health");
    assert!(parked, "{}", server.log());
    assert_eq!(body, first.1);
    // The new revision has its own, and without the wish there is none.
    server.deploy("chat", &["--image", &image, "--no-zygote"]);
    until("nothing to be parked", Duration::from_secs(60), || {
        (!why(&server, "chat").contains("zygote")).then_some(())
    });
    assert_eq!(server.get("chat", "/health"), first);
    server.finish();
}

#[test]
fn what_can_not_be_parked_starts_as_always_and_says_why() {
    if !can_run("zygote::what_can_not_be_parked_starts_as_always_and_says_why") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("other", &["--zygote"]);
    assert_eq!(server.get("other", "/").0, 200);
    until("the reason", Duration::from_secs(20), || {
        why(&server, "other")
            .contains("is not Python")
            .then_some(())
    });
    let wrong = server.utsuwa(&[
        "deploy",
        "other",
        "--quiet",
        "--annotations",
        "utsuwa.local/zygote=perhaps",
    ]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        !wrong.status.success() && said.contains("write \"true\" or \"false\""),
        "{said}"
    );
    server.finish();
}
