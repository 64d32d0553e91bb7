//! HTTPS behind a real proxy that passes connections through and says whose they are: haproxy, both versions of the PROXY
//! protocol.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Server, can_run, free_port, skip, tls, until};

/// Where the proxy's connections come from; everything else in the test comes from another address of the machine.
const PROXY: &str = "127.0.0.2";
const CLIENT: &str = "127.0.0.3";

struct Haproxy(Child);

impl Haproxy {
    fn start(config: &std::path::Path, ports: [u16; 2]) -> Self {
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(config)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self(child);
        for port in ports {
            until("haproxy to listen", Duration::from_secs(10), || {
                std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
            });
        }
        proxy
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Asks hello at `port` for the headers that it got, over HTTPS as `CLIENT`.
fn headers(server: &Server, port: u16, version: &str) -> Result<Value, String> {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--interface", CLIENT, version])
        .arg("--cacert")
        .arg(server.data_dir().join("keys/services-ca.pem"))
        .args(["--resolve", &format!("seen.localhost:{port}:127.0.0.1")])
        .arg(format!("https://seen.localhost:{port}/headers"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).map_err(|_| said)
}

#[test]
fn a_client_is_known_through_a_proxy_that_passes_tls_on() {
    const NAME: &str = "proxied::a_client_is_known_through_a_proxy_that_passes_tls_on";
    if !can_run(NAME) {
        return;
    }
    if Command::new("haproxy").arg("-v").output().is_err() {
        return skip(
            NAME,
            "haproxy is not installed; scripts/deps.sh test installs it",
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("config.toml");
    std::fs::write(&settings, format!("proxy-protocol-https = [\"{PROXY}\"]\n")).unwrap();
    let mut server = Server::start(&["--config", &settings.to_string_lossy()]);
    server.expect_warning("closed connections of a proxy without a readable PROXY header");
    server.deploy("seen", &["--min-instances", "1"]);
    let config = dir.path().join("haproxy.conf");
    let ports = [free_port(), free_port()];
    let https = server.https;
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         listen first\n  bind 127.0.0.1:{}\n  server own {https} source {PROXY} send-proxy\n\
         listen second\n  bind 127.0.0.1:{}\n  server own {https} source {PROXY} send-proxy-v2\n",
        ports[0], ports[1],
    );
    std::fs::write(&config, text).unwrap();
    let proxy = Haproxy::start(&config, ports);
    for (port, version) in ports.into_iter().zip(["--http1.1", "--http2"]) {
        let seen = headers(&server, port, version).unwrap();
        assert_eq!(seen["x-forwarded-for"], CLIENT, "{seen}");
        assert_eq!(seen["x-forwarded-proto"], "https", "{seen}");
    }
    let journal = server
        .data_dir()
        .join("journal/demo/asia-northeast1/seen/journal.jsonl");
    until("both in the log", Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&journal).ok()?;
        let entries = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let known = entries.filter(|entry| entry["httpRequest"]["remoteIp"] == CLIENT);
        (known.count() == 2).then_some(())
    });

    // Whoever comes without a proxy says nothing and is served; and can't say that it is somebody else.
    let seen = headers(&server, https.port(), "--http1.1").unwrap();
    assert_eq!(seen["x-forwarded-for"], CLIENT, "{seen}");
    let pem = std::fs::read_to_string(server.data_dir().join("keys/services-ca.pem")).unwrap();
    let trusting = tls::trusting(&pem);
    let line = b"PROXY TCP4 203.0.113.7 127.0.0.1 5000 443\r\n";
    let greeted = |from: &str, line: &[u8]| {
        let from = SocketAddr::new(from.parse().unwrap(), 0);
        tls::connect_after(&trusting, https, "seen.localhost", (from, line)).is_ok()
    };
    assert!(greeted(PROXY, line), "the proxy may");
    assert!(!greeted(CLIENT, line), "others may not");
    // The proxy must say it, and in order.
    assert!(greeted(CLIENT, b""));
    assert!(!greeted(PROXY, b""));
    assert!(!greeted(PROXY, b"PROXY TCP4 203.0.113.7\r\n"));
    drop(proxy);
    server.finish();
}
