//! HTTPS by real clients: the local authority, restarts, and the way from plain HTTP.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Server, can_run, until};

/// What curl says of `https://HOST/PATH` at this server: its exit status, the body, and what `-w` asked for.
fn curl(server: &Server, host: &str, path: &str, more: &[&str]) -> (i32, String, String) {
    let ca = server.data_dir().join("keys/services-ca.pem");
    let port = server.https.port();
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert"])
        .arg(ca)
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
        .args(more)
        .arg(format!("https://{host}:{port}{path}"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// curl checks everything with the authority's certificate alone: both protocols, names that nobody serves, and the same
/// authority after the server was killed.
#[test]
fn curl_trusts_the_local_authority() {
    if !can_run("tls::curl_trusts_the_local_authority") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("hello", &[]);
    for (version, flag) in [("1.1", "--http1.1"), ("2", "--http2")] {
        let (code, body, said) = curl(
            &server,
            "hello.localhost",
            "/",
            &[flag, "-w", "\n%{http_version} %{http_code}"],
        );
        assert_eq!(code, 0, "{said}");
        assert!(body.ends_with(&format!("\n{version} 200")), "{body}");
    }
    let (code, _, said) = curl(&server, "nobody.localhost", "/", &[]);
    assert_eq!(code, 35, "{said}");
    assert!(said.contains("unrecognized name"), "{said}");
    let described = server.ok(&["services", "describe", "hello"]);
    assert!(
        described.contains(&format!("https://hello.localhost:{}", server.https.port())),
        "{described}"
    );

    let ca = server.data_dir().join("keys/services-ca.pem");
    let before = std::fs::read(&ca).unwrap();
    server.kill_9();
    server.up();
    assert_eq!(std::fs::read(&ca).unwrap(), before);
    let (code, _, said) = curl(&server, "hello.localhost", "/", &[]);
    assert_eq!(code, 0, "{said}");
    server.finish();
}

/// A server that takes another one's place refuses no connection of HTTPS, and breaks none that it accepted.
#[test]
fn a_new_server_refuses_no_handshake() {
    if !can_run("tls::a_new_server_refuses_no_handshake") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("hello", &["--min-instances", "1"]);
    let ca = server.data_dir().join("keys/services-ca.pem");
    let pem = std::fs::read_to_string(ca).unwrap();
    let address = server.https;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, pem) = (Arc::clone(&stop), pem.clone());
            let work = move || {
                let config = crate::harness::tls::trusting(&pem);
                let mut done = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    let mut stream =
                        crate::harness::tls::connect(&config, address, "hello.localhost")
                            .map_err(|error| format!("handshake after {done}: {error}"))?;
                    let request =
                        "GET / HTTP/1.1\r\nhost: hello.localhost\r\nconnection: close\r\n\r\n";
                    let mut answer = Vec::new();
                    stream
                        .write_all(request.as_bytes())
                        .and_then(|()| stream.read_to_end(&mut answer))
                        .map_err(|error| format!("request after {done}: {error}"))?;
                    if !answer.starts_with(b"HTTP/1.1 200") {
                        return Err(format!("{}", String::from_utf8_lossy(&answer)));
                    }
                    done += 1;
                }
                Ok::<u32, String>(done)
            };
            std::thread::Builder::new().spawn(work).unwrap()
        })
        .collect();
    for _ in 0..3 {
        server.replace();
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let done = client.join().unwrap().unwrap();
        assert!(done > 0);
    }
    server.finish();
}

/// With the redirect on, plain HTTP leads to HTTPS, the addresses shown are https://, and instances reach each other by them.
#[test]
fn plain_http_leads_to_https_where_it_is_asked_for() {
    if !can_run("tls::plain_http_leads_to_https_where_it_is_asked_for") {
        return;
    }
    let server = Server::start(&["--https-redirect"]);
    let args = [
        "deploy",
        "hello",
        "--allow-unauthenticated",
        "--image",
        "utsuwa.local/hello",
    ];
    let printed = server.ok(&args);
    let url = format!("https://hello.localhost:{}", server.https.port());
    assert!(printed.contains(&url), "{printed}");
    let output = Command::new("curl")
        .args([
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{redirect_url}",
        ])
        .args(["-H", "Host: hello.localhost"])
        .arg(format!("http://{}/a?b", server.http))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("302 {url}/a?b")
    );
    let (code, body, said) = curl(&server, "hello.localhost", "/", &["-w", "\n%{http_code}"]);
    assert!(code == 0 && body.ends_with("200"), "{said}{body}");
    server.finish();
}

/// Certificates of the operator's own: read again when they change, kept when the new ones are of no use, and no connection
/// notices.
#[test]
fn own_certificates_are_replaced_under_open_connections() {
    let name = "tls::own_certificates_are_replaced_under_open_connections";
    if !can_run(name) {
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix("utsuwa-own-")
        .tempdir_in("/var/tmp")
        .unwrap();
    std::fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let make = |subject: &str| {
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-nodes",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args([
                "-keyout", "key.new", "-out", "cert.new", "-days", "30", "-subj", subject,
            ])
            .args(["-addext", "subjectAltName=DNS:hello.localhost"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        for file in ["key", "cert"] {
            let at = |ending: &str| dir.path().join(format!("{file}.{ending}"));
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            std::fs::set_permissions(at("new"), mode).unwrap();
            std::fs::rename(at("new"), at("pem")).unwrap();
        }
    };
    make("/CN=first");
    let file = dir.path().join("certificates.toml");
    let text = format!(
        "[\"hello.localhost\"]\ncertificate-file = \"{0}/cert.pem\"\nkey-file = \"{0}/key.pem\"\n",
        dir.path().display()
    );
    std::fs::write(&file, text).unwrap();
    let mut server = Server::start(&["--certificates-file", &file.to_string_lossy()]);
    server.deploy("hello", &["--min-instances", "1"]);
    let subject = |server: &Server| {
        let (code, _, said) = curl(server, "hello.localhost", "/", &["-kv"]);
        assert_eq!(code, 0, "{said}");
        let line = said
            .lines()
            .find(|line| line.contains("subject:"))
            .unwrap_or_default();
        line.trim().to_owned()
    };
    assert!(subject(&server).ends_with("CN=first"));
    let pem = std::fs::read_to_string(server.data_dir().join("keys/services-ca.pem")).unwrap();
    let config = crate::harness::tls::trusting(&pem);
    // Under the domain's own name, for which nothing was given.
    let mut open = crate::harness::tls::connect(&config, server.https, "localhost").unwrap();

    make("/CN=second");
    until("the second", Duration::from_secs(20), || {
        subject(&server).ends_with("CN=second").then_some(())
    });
    server.expect_warning("the certificates can't be used");
    std::fs::write(dir.path().join("cert.pem"), "nonsense").unwrap();
    let hangup = Command::new("kill")
        .args(["-HUP", &server.pid().to_string()])
        .status();
    assert!(hangup.unwrap().success());
    until("the warning", Duration::from_secs(20), || {
        server
            .log()
            .contains("the certificates can't be used")
            .then_some(())
    });
    assert!(subject(&server).ends_with("CN=second"), "it stays in force");

    let request = "GET / HTTP/1.1\r\nhost: hello.localhost\r\nconnection: close\r\n\r\n";
    open.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    server.finish();
}
