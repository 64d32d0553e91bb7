//! What a person sees who types: progress, listings, suggestions, refusals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bad_apps::Layout;
use crate::harness::{PARENT, Registry, Server, can_run, until};

/// What a connection may carry before the gate holds it: more than any manifest, less than the layer.
const FREE_BYTES: usize = 200_000;

/// Stands before a registry and holds what is larger than [`FREE_BYTES`] until it is opened.
struct Gate {
    address: SocketAddr,
    open: Arc<AtomicBool>,
}

impl Gate {
    fn before(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(AtomicBool::new(false));
        let gate = Arc::clone(&open);
        run(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(registry).unwrap();
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                run(move || pass(from, to, usize::MAX, &AtomicBool::new(true)));
                let gate = Arc::clone(&gate);
                run(move || pass(server, client, FREE_BYTES, &gate));
            }
        });
        Self { address, open }
    }

    fn open(&self) {
        self.open.store(true, Ordering::Release);
    }
}

/// Runs until its connections end, which they do with the test's process at the latest.
fn run(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name("gate".to_owned());
    drop(thread.spawn(work).unwrap());
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut free: usize, gate: &AtomicBool) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        free = free.saturating_sub(count);
        if free == 0 {
            until("the gate to open", Duration::from_secs(30), || {
                gate.load(Ordering::Acquire).then_some(())
            });
        }
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    drop(to.shutdown(std::net::Shutdown::Write));
}

#[test]
fn a_pull_is_shown_to_whoever_waits_for_it() {
    if !can_run("cli::a_pull_is_shown_to_whoever_waits_for_it") {
        return;
    }
    let registry = Registry::start();
    let gate = Gate::before(registry.address);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let archive = Layout::default().write(dir.path(), "app");
    registry.push(&archive, "team/app:v1");
    let server = Server::start(&["--insecure-registry", &gate.address.to_string()]);
    let mut deploy = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args(["deploy", "app", "--no-allow-unauthenticated"])
        .args(["--image", &format!("{}/team/app:v1", gate.address)])
        .args(["--api", &format!("http://{}", server.api)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(deploy.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    loop {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no progress: {said:?}"))
            .unwrap();
        said.push(line.clone());
        if line.starts_with("Pulling the image: ") && line.ends_with(", 0 of 1 layers done") {
            break;
        }
    }

    // What gcloud polls says the same, and the stored words are written once, not for each byte.
    let messages = |service: &Value, list: &str| -> Vec<String> {
        service[list]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let v1 = "/run/apis/serving.knative.dev/v1/namespaces/demo/services/app";
    let told = until("gcloud's view to tell it", Duration::from_secs(10), || {
        let told = messages(&server.api_get(v1).1, "status");
        told.iter()
            .any(|m| m.contains("Pulling the image: 0.") && m.contains("0 of 1 layers done."))
            .then_some(told)
    });
    let (_, before) = server.api_get(&format!("{PARENT}/services/app"));
    assert!(
        before["terminalCondition"]["message"]
            .as_str()
            .unwrap()
            .starts_with("Pulling the image: 0."),
        "{before}"
    );
    assert!(!told.is_empty());
    gate.open();
    said.extend(lines.map(Result::unwrap));
    let output = deploy.wait_with_output().unwrap();
    assert!(output.status.success(), "{said:?}");
    assert!(
        said.iter().any(|l| l.contains("has been deployed")),
        "{said:?}"
    );
    server.finish();
}

/// Runs a command that must fail with `status`, saying all of `words`.
fn fails(server: &Server, status: i32, args: &[&str], words: &[&str]) {
    let output = server.utsuwa(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    for word in words {
        assert!(
            said.contains(word),
            "{args:?}: {word:?} is missing in: {said}"
        );
    }
}

#[test]
fn mistakes_are_told_with_what_was_meant() {
    if !can_run("cli::mistakes_are_told_with_what_was_meant") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("hello", &["--tag", "blue"]);
    let meant = &["did you mean hello?"][..];
    fails(&server, 1, &["services", "describe", "helo"], meant);
    fails(&server, 1, &["services", "delete", "helo", "-q"], meant);
    fails(&server, 1, &["logs", "hell"], meant);
    fails(
        &server,
        1,
        &["revisions", "list", "--service", "helo"],
        meant,
    );
    fails(
        &server,
        1,
        &["services", "update-traffic", "hlelo", "--to-latest"],
        meant,
    );
    fails(&server, 2, &["deploy", "helo"], meant);
    fails(
        &server,
        1,
        &["logs", "other", "--region", "europe-west1"],
        &["there are no services", "europe-west1"],
    );
    fails(
        &server,
        2,
        &["deploy", "hello", "--vpc-connector", "x"],
        &["--vpc-connector", "nothing was changed", "--allow-egress"],
    );
    fails(
        &server,
        2,
        &["deploy", "hello", "--service-account=x"],
        &["--service-account", "no effect"],
    );

    let afar = [
        "deploy",
        "afar",
        "--image",
        "utsuwa.local/hello",
        "--region",
        "europe-west1",
        "--no-allow-unauthenticated",
    ];
    let first =
        "This is the first service of region [europe-west1]; the server's own is [asia-northeast1]";
    fails(&server, 0, &afar, &[first]);
    let again = server.utsuwa(&afar);
    assert!(again.status.success());
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!said.contains("the first service"), "{said}");
    // The nearest name here would be another service's.
    let there = &["afar is in region europe-west1: say --region europe-west1"][..];
    fails(&server, 1, &["services", "describe", "afar"], there);
    fails(&server, 1, &["logs", "afar"], there);
    fails(&server, 2, &["deploy", "afar"], there);
    for (flag, value, why) in [
        ("--concurrency", "0", "must be 1 to 1000, or `default`"),
        ("--max-instances", "0", "at least 1 is needed"),
        ("--timeout", "2h", "at most 3600 s (60 min)"),
    ] {
        fails(&server, 2, &["deploy", "hello", flag, value], &[flag, why]);
    }
    fails(
        &server,
        1,
        &["deploy", "hello", "--labels", "Team=x"],
        &["error: --labels Team: only", "lower-case"],
    );
    let here = server.ok(&["services", "list", "--region", "asia-northeast1"]);
    assert!(!here.contains("afar"), "{here}");
    let listed = server.ok(&["services", "list"]);
    assert!(
        listed.contains("afar") && listed.contains("europe-west1"),
        "{listed}"
    );
    for word in ["✔", "SERVICE", "hello", "asia-northeast1", "anonymous"] {
        assert!(listed.contains(word), "{word} is missing in: {listed}");
    }
    let listed = server.ok(&["revisions", "list"]);
    for word in ["✔", "ACTIVE", "hello-00001-", "100%", "blue", "anonymous"] {
        assert!(listed.contains(word), "{word} is missing in: {listed}");
    }
    let running = server.ok(&["config", "show", "--running", "--format", "json"]);
    let running: Value = serde_json::from_str(&running).unwrap();
    let of = |name: &str| {
        let rows = running.as_array().unwrap();
        let row = rows.iter().find(|r| r["option"] == name).unwrap();
        (row["value"].clone(), row["source"].clone())
    };
    assert_eq!(
        of("listen-api"),
        (json!(server.api.to_string()), json!("flag --listen-api"))
    );
    assert_eq!(of("idle-timeout"), (json!("15m"), json!("default")));
    server.finish();
}

#[test]
fn the_shell_gets_back_what_it_had() {
    if !can_run("cli::the_shell_gets_back_what_it_had") {
        return;
    }
    let server = Server::start(&[]);
    let program = env!("CARGO_BIN_EXE_utsuwa");
    let api = format!("http://{}", server.api);
    let script = format!(
        "export CLOUDSDK_CORE_PROJECT='my own' CLOUDSDK_API_ENDPOINT_OVERRIDES_RUN=https://mine/ UTSUWA_API={api}\n\
         env | sort > before\n\
         eval \"$({program} env)\"; eval \"$({program} env --no-tls)\"\n\
         [ \"$CLOUDSDK_CORE_PROJECT\" = demo ]; [ \"$CLOUDSDK_API_ENDPOINT_OVERRIDES_RUN\" = http://run.googleapis.com/ ]\n\
         [ -z \"${{CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE-}}\" ]\n\
         eval \"$({program} env)\"; kept=$CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE; [ -s \"$kept\" ]\n\
         eval \"$({program} env --unset)\"\n\
         env | sort > after; diff before after; [ -s \"$kept\" ]\n\
         eval \"$({program} env --unset)\"\n\
         env | sort > after; diff before after"
    );
    let home = tempfile::tempdir().unwrap();
    let output = Command::new("bash")
        .args(["-euc", &script])
        .env("HOME", home.path())
        .env_remove("XDG_CACHE_HOME")
        .current_dir(home.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    server.finish();
}
