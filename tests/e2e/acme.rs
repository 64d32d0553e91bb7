//! Certificates by ACME, from Debian's pebble: both kinds of check, renewal, and failures in words.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Server, can_run, free_port, skip, tls, until};

const DOMAIN: &str = "www.example.com";
/// Seconds that a certificate is valid: renewed after two thirds of them.
const LIFE: u32 = 45;

/// An authority and the names it resolves, all of them to this machine.
struct Pebble {
    dir: tempfile::TempDir,
    port: u16,
    management: u16,
    children: Vec<Child>,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Pebble {
    /// Its files and ports. Nothing runs yet.
    fn prepare() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("utsuwa-acme-")
            .tempdir_in("/var/tmp")
            .unwrap();
        // The server's user reads the authority's file.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let openssl = |args: &[&str]| {
            let output = Command::new("openssl")
                .args(args)
                .current_dir(dir.path())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "openssl {args:?}: {said}");
        };
        let new = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        let ca = [
            "req",
            "-x509",
            "-keyout",
            "ca-key.pem",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=test",
            "-days",
            "2",
        ];
        openssl(&[&ca[..], &new[..]].concat());
        let leaf = [
            "req",
            "-keyout",
            "key.pem",
            "-out",
            "leaf.csr",
            "-subj",
            "/CN=pebble",
        ];
        openssl(&[&leaf[..], &new[..]].concat());
        std::fs::write(dir.path().join("san"), "subjectAltName=IP:127.0.0.1").unwrap();
        openssl(&[
            "x509",
            "-req",
            "-in",
            "leaf.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-out",
            "cert.pem",
            "-days",
            "2",
            "-extfile",
            "san",
        ]);
        std::fs::set_permissions(dir.path().join("ca.pem"), PermissionsExt::from_mode(0o644))
            .unwrap();
        Self {
            dir,
            port: free_port(),
            management: free_port(),
            children: Vec::new(),
        }
    }

    /// What a server needs to ask it.
    fn flags(&self, check: &str) -> Vec<String> {
        [
            "--acme-directory",
            &format!("https://127.0.0.1:{}/dir", self.port),
            "--acme-ca-file",
            &self.dir.path().join("ca.pem").to_string_lossy(),
            "--acme-contact",
            "ops@example.com",
            "--acme-challenge",
            check,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Runs it; it checks domains at these ports.
    fn start(&mut self, http: u16, https: u16) {
        let (dns, chall) = (free_port(), free_port());
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.management),
            "certificate": "cert.pem", "privateKey": "key.pem",
            "httpPort": http, "tlsPort": https,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "certificateValidityPeriod": LIFE,
        }});
        std::fs::write(self.dir.path().join("config.json"), config.to_string()).unwrap();
        let spawn = |program: &str, args: &[String], dir: &Path| {
            let log = std::fs::File::create(dir.join(format!("{program}.log"))).unwrap();
            Command::new(program)
                .args(args)
                .current_dir(dir)
                .env("PEBBLE_VA_NOSLEEP", "1")
                // Every order is checked, also those of renewals.
                .env("PEBBLE_AUTHZREUSE", "0")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap()
        };
        let names = [
            "-dns01",
            &format!("127.0.0.1:{dns}"),
            "-management",
            &format!("127.0.0.1:{chall}"),
            "-defaultIPv6",
            "",
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
        ]
        .map(str::to_owned);
        let authority = [
            "-config",
            "config.json",
            "-dnsserver",
            &format!("127.0.0.1:{dns}"),
        ]
        .map(str::to_owned);
        for (program, args) in [
            ("pebble-challtestsrv", &names[..]),
            ("pebble", &authority[..]),
        ] {
            self.children.push(spawn(program, args, self.dir.path()));
        }
        for port in [self.port, self.management, chall] {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            until("pebble to listen", Duration::from_secs(10), || {
                std::net::TcpStream::connect(address).ok()
            });
        }
    }

    /// The certificate that clients of what it issues trust.
    fn root(&self) -> String {
        let output = Command::new("curl")
            .args([
                "-sSk",
                &format!("https://127.0.0.1:{}/roots/0", self.management),
            ])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn can_ask(name: &str) -> bool {
    let has = |program: &str| {
        Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    for program in ["pebble", "pebble-challtestsrv", "openssl"] {
        if !has(program) {
            skip(name, &format!("{program} is not installed"));
            return false;
        }
    }
    true
}

/// The mapping, as `gcloud` would read it.
fn mapping(server: &Server) -> Value {
    let path = format!("/run/v1/projects/demo/locations/asia-northeast1/domainmappings/{DOMAIN}");
    let output = Command::new("curl")
        .args(["-sS", &format!("http://{}{path}", server.api)])
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn condition(mapping: &Value, kind: &str) -> Option<(String, String)> {
    let all = mapping["status"]["conditions"].as_array()?;
    let found = all.iter().find(|c| c["type"] == kind)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("message")))
}

fn until_ready(server: &Server) {
    until("the certificate", Duration::from_secs(60), || {
        let (state, _) = condition(&mapping(server), "Ready")?;
        (state == "True").then_some(())
    });
}

/// From nothing to a renewed certificate, by one kind of check.
fn issue_and_renew(name: &str, check: &str) {
    if !can_run(name) || !can_ask(name) {
        return;
    }
    let mut pebble = Pebble::prepare();
    let flags = pebble.flags(check);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut server = Server::start(&flags);
    pebble.start(server.http.port(), server.https.port());
    server.deploy("hello", &["--min-instances", "1"]);
    server.ok(&["domains", "map", DOMAIN, "--service", "hello"]);
    until_ready(&server);

    let config = tls::trusting(&pebble.root());
    let leaf = |server: &Server| {
        let stream = tls::connect(&config, server.https, DOMAIN).unwrap();
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let first = leaf(&server);
    // It outlives the process.
    server.kill_9();
    server.up();
    assert_eq!(leaf(&server), first);
    let mut open = tls::connect(&config, server.https, DOMAIN).unwrap();
    until("its renewal", Duration::from_secs(u64::from(LIFE)), || {
        (leaf(&server) != first).then_some(())
    });
    // The connection from before goes on.
    let request = format!("GET / HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\n\r\n");
    open.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));

    let issued = server.data_dir().join(format!("keys/issued/{DOMAIN}.pem"));
    let mode = std::fs::metadata(&issued).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    server.ok(&["domains", "unmap", DOMAIN, "--quiet"]);
    until("its end", Duration::from_secs(10), || {
        (!issued.exists()).then_some(())
    });
    assert!(tls::connect(&config, server.https, DOMAIN).is_err());
    server.finish();
}

#[test]
fn a_certificate_by_http_is_issued_and_renewed() {
    issue_and_renew(
        "acme::a_certificate_by_http_is_issued_and_renewed",
        "http-01",
    );
}

#[test]
fn a_certificate_by_handshake_is_issued_and_renewed() {
    issue_and_renew(
        "acme::a_certificate_by_handshake_is_issued_and_renewed",
        "tls-alpn-01",
    );
}

/// An authority that isn't there, then one that can't reach the domain: said, with what to do, and the domain is served meanwhile.
#[test]
fn a_failure_is_told_in_words() {
    let name = "acme::a_failure_is_told_in_words";
    if !can_run(name) || !can_ask(name) {
        return;
    }
    let mut pebble = Pebble::prepare();
    let flags = pebble.flags("http-01");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = Server::start(&flags);
    server.deploy("hello", &[]);
    server.ok(&["domains", "map", DOMAIN, "--service", "hello"]);
    let told = |words: &str| {
        until(words, Duration::from_secs(60), || {
            let mapping = mapping(&server);
            let (_, message) = condition(&mapping, "CertificateProvisioned")?;
            message.contains(words).then_some(mapping)
        })
    };
    let mapping = told("could not be asked");
    assert_eq!(condition(&mapping, "Ready").unwrap().0, "False");
    let kinds = mapping["status"]["resourceRecords"].as_array().unwrap();
    assert!(!kinds.is_empty(), "{mapping}");
    let output = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H"])
        .args([
            &format!("Host: {DOMAIN}"),
            &format!("http://{}/", server.http),
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200");
    // Nothing listens where this one looks. Mapped anew, it is asked at once.
    pebble.start(free_port(), free_port());
    server.ok(&["domains", "unmap", DOMAIN, "--quiet"]);
    server.ok(&["domains", "map", DOMAIN, "--service", "hello"]);
    let mapping = told("did not find this server");
    let (_, message) = condition(&mapping, "CertificateProvisioned").unwrap();
    assert!(message.contains("port 80"), "{message}");
    let described = server.ok(&["domains", "describe", DOMAIN]);
    assert!(described.contains("port 80"), "{described}");
    server.finish();
}
