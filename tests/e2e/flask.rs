//! The real input: the Flask app of examples/flask-chat, its Dockerfile unchanged, from a real registry by tag.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::{Registry, Server, can_run, skip, until};

#[test]
fn the_flask_app_serves_health_and_chat() {
    const NAME: &str = "flask::the_flask_app_serves_health_and_chat";
    if !can_run(NAME) {
        return;
    }
    let Some(archive) = std::env::var_os("UTSUWA_TEST_FLASK_IMAGE").map(PathBuf::from) else {
        return skip(
            NAME,
            "its image is not built; `make test` builds it (UTSUWA_TEST_FLASK_IMAGE)",
        );
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

/// A server on the host that answers chat completions in OpenAI's shape.
struct FakeOpenAi {
    port: u16,
}

impl FakeOpenAi {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        // Ends with the test process.
        std::thread::Builder::new()
            .name("openai".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    answer(stream);
                }
            })
            .unwrap();
        until("the fake to listen", Duration::from_secs(5), || {
            std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
        });
        Self { port }
    }
}

fn answer(mut stream: std::net::TcpStream) {
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
