//! The real input: the Flask app of examples/flask-chat, its Dockerfile unchanged, from a real registry by tag.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::harness::{Registry, Server, can_run, skip, try_exchange, until};

/// The app's image; skips the test where it is not built or no instance can run.
fn archive(name: &str) -> Option<PathBuf> {
    if !can_run(name) {
        return None;
    }
    let archive = std::env::var_os("UTSUWA_TEST_FLASK_IMAGE").map(PathBuf::from);
    if archive.is_none() {
        skip(
            name,
            "its image is not built; `make test` builds it (UTSUWA_TEST_FLASK_IMAGE)",
        );
    }
    archive
}

#[test]
fn the_flask_app_serves_health_and_chat() {
    const NAME: &str = "flask::the_flask_app_serves_health_and_chat";
    let Some(archive) = archive(NAME) else {
        return;
    };
    let registry = Registry::start();
    let reference = registry.push(&archive, "demo/ai-backend:latest");
    let openai = FakeOpenAi::start();
    let server = Server::start(&[
        "--idle-timeout",
        "6s",
        "--insecure-registry",
        &registry.address.to_string(),
        "--allow-egress",
        &format!("host:{}", openai.port),
    ]);
    server.deploy(
        "ai-platform-tenant-a",
        &[
            "--image",
            &reference,
            "--memory",
            "1Gi",
            "--cpu",
            "1",
            "--timeout",
            "300",
            "--min-instances",
            "0",
            "--max-instances",
            "10",
            "--set-env-vars",
            &format!(
                "OPENAI_API_KEY=sk-test,OPENAI_BASE_URL=http://host.utsuwa.internal:{}/v1",
                openai.port
            ),
        ],
    );
    let (status, body) = server.get("ai-platform-tenant-a", "/health");
    assert_eq!((status, body.trim()), (200, "{\"status\":\"ok\"}"));

    server.until_instances("ai-platform-tenant-a", 0);
    let started = Instant::now();
    assert_eq!(server.get("ai-platform-tenant-a", "/health").0, 200);
    println!("flask woken from zero in {:?}", started.elapsed());

    let question = "{\"message\":\"good morning\"}";
    let (status, _, body) = server.request(
        "ai-platform-tenant-a",
        &format!(
            "POST /chat HTTP/1.1\r\nhost: ai-platform-tenant-a.localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{question}",
            question.len()
        ),
    );
    assert_eq!(
        status,
        200,
        "{body}\n{}",
        server.ok(&["logs", "ai-platform-tenant-a"])
    );
    assert!(body.contains("you said: good morning"), "{body}");
    server.finish();
}

#[test]
fn the_seeds_first_step_works_offline() {
    if !can_run("flask::the_seeds_first_step_works_offline") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy(
        "ai-platform-tenant-a",
        &[
            "--image",
            "gcr.io/cloudrun/hello",
            "--memory",
            "1Gi",
            "--cpu",
            "1",
            "--timeout",
            "300",
        ],
    );
    assert_eq!(server.get("ai-platform-tenant-a", "/").0, 200);
    server.finish();
}

/// What an instance has open to the host is not cut by an upgrade of the server it goes through.
#[test]
fn an_answer_of_the_host_arrives_over_a_change_of_servers() {
    const NAME: &str = "flask::an_answer_of_the_host_arrives_over_a_change_of_servers";
    let Some(archive) = archive(NAME) else {
        return;
    };
    let openai = FakeOpenAi::start();
    let rule = format!("host:{}", openai.port);
    let mut server = Server::start(&["--allow-egress", &rule]);
    let image = format!("docker-archive:{}", archive.display());
    let env = format!(
        "OPENAI_API_KEY=sk-test,OPENAI_BASE_URL=http://host.utsuwa.internal:{}/v1",
        openai.port
    );
    server.deploy("chat", &["--image", &image, "--set-env-vars", &env]);
    assert_eq!(server.get("chat", "/health").0, 200);
    let address = server.http;
    let held = openai.hold();
    let mut old = std::thread::scope(|scope| {
        let question = "{\"message\":\"still there?\"}";
        let raw = format!(
            "POST /chat HTTP/1.1\r\nhost: chat.localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{question}",
            question.len()
        );
        let waits = scope.spawn(move || try_exchange(address, &raw));
        until("the app to have asked", Duration::from_secs(30), || {
            (openai.asked.load(Ordering::Acquire) > 0).then_some(())
        });
        let old = server.replace_beside();
        drop(held);
        let (status, _, body) = waits.join().unwrap().unwrap();
        assert_eq!(status, 200, "{body}\n{}", server.ok(&["logs", "chat"]));
        assert!(body.contains("you said: still there?"), "{body}");
        old
    });
    assert!(old.wait().unwrap().success());
    server.finish();
}

/// A server on the host that answers chat completions in OpenAI's shape.
struct FakeOpenAi {
    port: u16,
    /// Questions so far.
    asked: Arc<AtomicUsize>,
    /// Nothing is answered while somebody else has it.
    gate: Arc<Mutex<()>>,
}

impl FakeOpenAi {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(())));
        let (count, open) = (Arc::clone(&asked), Arc::clone(&gate));
        // Ends with the test process.
        std::thread::Builder::new()
            .name("openai".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    answer(stream, &count, &open);
                }
            })
            .unwrap();
        until("the fake to listen", Duration::from_secs(5), || {
            std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
        });
        Self { port, asked, gate }
    }

    /// Questions wait until it is dropped.
    fn hold(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.gate.lock()
    }
}

fn answer(mut stream: std::net::TcpStream, count: &AtomicUsize, open: &Mutex<()>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
    count.fetch_add(1, Ordering::AcqRel);
    drop(open.lock());
    let text = format!(
        "you said: {}",
        asked["messages"][0]["content"].as_str().unwrap()
    );
    let reply = serde_json::json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
    .to_string();
    drop(write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{reply}",
        reply.len()
    ));
}
