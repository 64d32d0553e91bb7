//! What strangers send to a whole server: nothing wakes, and the log says what came.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::{Server, can_run, until};

const PATIENCE: Duration = Duration::from_secs(20);

fn raw(server: &Server, text: &str) -> String {
    let mut stream = TcpStream::connect(server.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn scanners_and_malformed_requests_wake_nothing() {
    if !can_run("attacks::scanners_and_malformed_requests_wake_nothing") {
        return;
    }
    let server = Server::start(&["--idle-timeout", "1s"]);
    server.deploy("shy", &["--refuse-scanners", "--waiting-page"]);
    server.until_instances("shy", 0);
    for path in [
        "/.env",
        "/wp-login.php",
        "/.git/config",
        "/WP-ADMIN/setup-config.php",
    ] {
        let (status, head, _) = server.request(
            "shy",
            &format!("GET {path} HTTP/1.1\r\nhost: shy.localhost\r\nconnection: close\r\n\r\n"),
        );
        assert_eq!(status, 404, "{head}");
        assert!(head.contains("reason=scanner"), "{head}");
    }
    for request in [
        "GET / HTTP/1.1\r\nhost: shy.localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nhost: shy.localhost\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nhost: shy.localhost\r\n\r\n",
    ] {
        let answer = raw(&server, request);
        assert!(answer.starts_with("HTTP/1.1 400"), "{request:?}: {answer}");
    }
    assert_eq!(server.instance_pids("shy"), Vec::<u64>::new());
    until("the refusals in the log", PATIENCE, || {
        let log = server.ok(&["logs", "shy"]);
        (log.matches("scanners ask for").count() == 4).then_some(())
    });
    // It wakes for everybody else, and a quick start needs no page.
    let browser =
        "GET / HTTP/1.1\r\nhost: shy.localhost\r\naccept: text/html\r\nconnection: close\r\n\r\n";
    let (status, head, _) = server.request("shy", browser);
    assert_eq!(status, 200, "{head}");
    // What was said stays until it is taken back.
    server.deploy("shy", &["--no-refuse-scanners"]);
    until("the app to be asked", PATIENCE, || {
        let request = "GET /.env HTTP/1.1\r\nhost: shy.localhost\r\nconnection: close\r\n\r\n";
        let (_, head, _) = server.request("shy", request);
        (!head.contains("x-utsuwa-answered-by")).then_some(())
    });
    let wrong = server.utsuwa(&[
        "deploy",
        "shy",
        "--quiet",
        "--annotations",
        "utsuwa.local/waiting-page=perhaps",
    ]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        !wrong.status.success() && said.contains("write \"true\" or \"false\""),
        "{said}"
    );
    server.finish();
}
