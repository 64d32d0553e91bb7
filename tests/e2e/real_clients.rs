//! Clients that people use, unchanged: curl, nghttp2's tools, Google's gRPC for Python, `websockets`, Node's fetch.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{Server, can_run, skip};

/// The apps of `tests/images/protocols`, deployed; `None` says why not.
pub(crate) fn served(test: &str, grpc: bool) -> Option<Server> {
    if !can_run(test) {
        return None;
    }
    let Some(image) = std::env::var_os("UTSUWA_TEST_PROTOCOLS_IMAGE") else {
        skip(
            test,
            "its image is not built; `make test` builds it (UTSUWA_TEST_PROTOCOLS_IMAGE)",
        );
        return None;
    };
    let image = format!("oci-archive:{}", image.to_string_lossy());
    let server = Server::start(&[]);
    let mut flags = vec!["--image", &image, "--memory", "512Mi"];
    if grpc {
        flags.extend([
            "--use-http2",
            "--command",
            "python",
            "--args",
            "/app/grpc_app.py",
        ]);
    }
    server.deploy("app", &flags);
    Some(server)
}

/// Whether `program` is here; else `test` is left out by name.
pub(crate) fn has(test: &str, program: &str) -> bool {
    let found = Command::new(program).arg("--version").output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        skip(
            test,
            &format!("{program} is not installed; scripts/deps.sh test installs it"),
        );
    }
    found
}

fn client(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/clients")
        .join(file)
}

fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a client, which must end well; answers what it printed.
fn run(server: &Server, command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        said(&output),
        server.log()
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn curl() {
    const NAME: &str = "real_clients::curl";
    if !has(NAME, "curl") {
        return;
    }
    let Some(server) = served(NAME, false) else {
        return;
    };
    let port = server.http.port();
    let curl = |args: &[&str], path: &str| {
        let mut command = Command::new("curl");
        command.args([
            "-sS",
            "--max-time",
            "60",
            "--connect-to",
            &format!("app.localhost:80:127.0.0.1:{port}"),
        ]);
        run(
            &server,
            command
                .args(args)
                .arg(format!("http://app.localhost{path}")),
        )
    };
    let code = ["-o", "/dev/null", "-w", "%{http_version} %{http_code}"];
    for (flag, version) in [
        ("--http1.0", "1"),
        ("--http1.1", "1.1"),
        ("--http2-prior-knowledge", "2"),
    ] {
        assert!(curl(&[flag], "/").starts_with("hello from app-"), "{flag}");
        let told = curl(&[&[flag], &code[..]].concat(), "/");
        assert!(
            told.ends_with(" 200") && (version == "1" || told == format!("{version} 200")),
            "{flag}: {told}"
        );
        // Unknown length both ways, over each of them.
        assert_eq!(
            curl(&[flag, "--data-binary", "back and forth"], "/echo"),
            "back and forth"
        );
        assert_eq!(curl(&[flag, "-r", "0-3"], "/range").len(), 4, "{flag}");
        let place =
            curl(&[flag, "-r", "-2", "-o", "/dev/null", "-D", "-"], "/range").to_lowercase();
        assert!(
            place.contains(" 206") && place.contains("bytes 1048574-1048575/1048576"),
            "{place}"
        );
        let head = curl(&[flag, "--head"], "/range").to_lowercase();
        assert!(head.contains("content-length: 1048576"), "{head}");
        let events = curl(&[flag, "-N"], "/events?count=3");
        assert_eq!(events.matches("data: event").count(), 3, "{events}");
    }
    // 100-continue: asked for by curl itself, and an answer that comes instead of it.
    let expects = [
        "--http1.1",
        "-H",
        "expect: 100-continue",
        "--expect100-timeout",
        "30",
    ];
    let body = ["--data-binary", "five!"];
    assert!(curl(&[&expects[..], &body].concat(), "/digest").starts_with("5 "));
    assert_eq!(
        curl(&[&expects[..], &body, &code].concat(), "/refuse"),
        "1.1 403"
    );
    // 32 MiB and a byte are too much for HTTP/1.1 apps.
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len((32 << 20) + 1).unwrap();
    let upload = format!("@{}", large.path().display());
    assert_eq!(
        curl(
            &[&["--http1.1", "--data-binary", &upload], &code[..]].concat(),
            "/digest"
        ),
        "1.1 413"
    );
    large.as_file().set_len(32 << 20).unwrap();
    assert!(curl(&["--data-binary", &upload], "/digest").starts_with("33554432 "));
    server.finish();
}

#[test]
fn nghttp2_s_tools() {
    const NAME: &str = "real_clients::nghttp2_s_tools";
    if !has(NAME, "nghttp") || !has(NAME, "h2load") {
        return;
    }
    let Some(server) = served(NAME, false) else {
        return;
    };
    let url = format!("http://{}/", server.http);
    let mut nghttp = Command::new("nghttp");
    let settings = run(
        &server,
        nghttp.args(["-nv", "-H:authority: app.localhost", &url]),
    );
    assert!(
        settings.contains("SETTINGS_ENABLE_CONNECT_PROTOCOL(0x08):1"),
        "{settings}"
    );
    assert!(settings.contains(":status: 200"), "{settings}");
    let mut h2load = Command::new("h2load");
    h2load.args([
        "-n",
        "500",
        "-c",
        "4",
        "-m",
        "10",
        "-H",
        ":authority: app.localhost",
    ]);
    let told = run(&server, h2load.arg(&url));
    assert!(
        told.contains("500 succeeded, 0 failed, 0 errored"),
        "{told}"
    );
    server.finish();
}

/// The Python of the test inputs; `None` says why not.
fn python(test: &str) -> Option<Command> {
    let found = std::env::var_os("UTSUWA_TEST_PYTHON").map(Command::new);
    if found.is_none() {
        skip(
            test,
            "Google's and other clients for Python are not installed (UTSUWA_TEST_PYTHON)",
        );
    }
    found
}

#[test]
fn grpcio() {
    const NAME: &str = "real_clients::grpcio";
    let Some(mut python) = python(NAME) else {
        return;
    };
    let Some(server) = served(NAME, true) else {
        return;
    };
    python
        .arg(client("grpc_client.py"))
        .arg(server.http.to_string());
    let told = run(&server, python.arg("app.localhost"));
    assert!(told.contains("all well"), "{told}");
    server.finish();
}

#[test]
fn websockets() {
    const NAME: &str = "real_clients::websockets";
    let Some(mut python) = python(NAME) else {
        return;
    };
    let Some(server) = served(NAME, false) else {
        return;
    };
    python
        .arg(client("websockets_client.py"))
        .arg(server.http.to_string());
    let told = run(&server, python.arg("app.localhost"));
    assert!(told.contains("all well"), "{told}");
    server.finish();
}

#[test]
fn node_s_fetch() {
    const NAME: &str = "real_clients::node_s_fetch";
    if !has(NAME, "node") {
        return;
    }
    let Some(server) = served(NAME, false) else {
        return;
    };
    let mut node = Command::new("node");
    node.arg(client("node_client.mjs"));
    let told = run(
        &server,
        node.arg(format!("http://app.localhost:{}", server.http.port())),
    );
    assert!(told.contains("all well"), "{told}");
    server.finish();
}
