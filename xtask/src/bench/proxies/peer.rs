//! The proxies that are compared, each with the least configuration that does the same work.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::super::server::{Server, free_port};
use super::super::{Settings, rest};
use super::apps::{Apps, TAKES};
use super::{Spoken, quietly, until_answers};

/// A certificate for everybody, and where peers keep their files.
pub(super) struct Work {
    folder: PathBuf,
}

impl Work {
    pub(super) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let folder = settings.work.join("proxies");
        std::fs::create_dir_all(&folder)?;
        let work = Self { folder };
        let (key, certificate) = (work.file("key.pem"), work.file("certificate.pem"));
        quietly(
            Command::new("openssl")
                .args(["req", "-x509", "-nodes", "-days", "7", "-newkey", "ec"])
                .args([
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-subj",
                    "/CN=http.localhost",
                ])
                .args(["-addext", "subjectAltName=DNS:http.localhost"])
                .arg("-keyout")
                .arg(&key)
                .arg("-out")
                .arg(&certificate),
        )?;
        let both = std::fs::read_to_string(&certificate)? + &std::fs::read_to_string(&key)?;
        std::fs::write(work.file("both.pem"), both)?;
        Ok(work)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// nginx as it is when nobody says how it should pass bodies on: it stores requests, and answers as far as it has room. Its other
/// row streams both, as the others do, since event streams and gRPC can't be served in another way.
pub(super) const BUFFERED: &str = "nginx-buffered";

/// Where load goes.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub spoken: Spoken,
    pub port: u16,
}

/// One proxy, running.
pub(super) struct Proxy {
    pub name: &'static str,
    child: Option<Child>,
    /// Path of the program whose processes count, and the one that started them.
    program: PathBuf,
    first: u32,
    targets: Vec<Target>,
}

impl Proxy {
    /// Our server, which speaks TLS on port `https`.
    pub(super) fn utsuwa(server: &Server, https: u16) -> anyhow::Result<Self> {
        let port = server.http.port();
        let ports = [
            (Spoken::Http1, port),
            (Spoken::H2c, port),
            (Spoken::Tls, https),
        ];
        let targets = ports.map(|(spoken, port)| Target { spoken, port }).into();
        Ok(Self {
            name: "utsuwa",
            child: None,
            program: std::fs::read_link(format!("/proc/{}/exe", server.pid()))?,
            first: server.pid(),
            targets,
        })
    }

    pub(super) fn peers(work: &Work, apps: &Apps) -> anyhow::Result<Vec<Self>> {
        let mut peers = Vec::new();
        for name in ["nginx", BUFFERED, "haproxy", "caddy"] {
            match Self::peer(name, work, apps) {
                Ok(peer) => peers.push(peer),
                Err(error) => crate::say(&format!("{name} can't run: {error:#}")),
            }
        }
        Ok(peers)
    }

    fn peer(name: &'static str, work: &Work, apps: &Apps) -> anyhow::Result<Self> {
        let ports = [free_port()?, free_port()?, free_port()?];
        let folder = work.folder.display();
        let config = work.file(&format!("{name}.conf"));
        let text = match name {
            "nginx" | BUFFERED => nginx(name, &folder.to_string(), ports, apps),
            "haproxy" => haproxy(&folder.to_string(), ports, apps),
            _ => caddy(&folder.to_string(), ports, apps.hello),
        };
        std::fs::write(&config, text)?;
        let child = start(name, &config, &work.folder)?;
        let first = child.id();
        let proxy = Self {
            name,
            child: Some(child),
            program: PathBuf::new(),
            first,
            targets: Spoken::ALL
                .into_iter()
                .zip(ports)
                .map(|(spoken, port)| Target { spoken, port })
                .collect(),
        };
        until_answers(ports[0]).with_context(|| format!("see {folder}/{name}.log"))?;
        Ok(proxy)
    }

    pub(super) fn target(&self, spoken: Spoken) -> Option<Target> {
        self.targets.iter().find(|t| t.spoken == spoken).cloned()
    }

    pub(super) fn port(&self) -> u16 {
        self.targets[0].port
    }

    /// All its processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        if self.child.is_none() {
            // Ours, less the sandboxes that wait to become instances of others: they do nothing here.
            let all = rest::ours(self.first, &self.program.to_string_lossy()).unwrap_or_default();
            return all
                .into_iter()
                .filter(|(_, role)| !role.contains("sandbox"))
                .map(|(pid, _)| pid)
                .collect();
        }
        let mut pids = vec![self.first];
        let list = format!("/proc/{0}/task/{0}/children", self.first);
        let children = std::fs::read_to_string(list).unwrap_or_default();
        pids.extend(
            children
                .split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
        pids
    }

    /// The process that holds the connections.
    pub(super) fn holder(&self) -> u32 {
        if self.child.is_none() {
            self.first
        } else {
            self.pids().last().copied().unwrap_or(self.first)
        }
    }

    /// User and system time of all of them.
    pub(super) fn cpu(&self) -> Duration {
        self.pids().into_iter().map(cpu_of).sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // Workers end with their master, which must be asked for that.
        drop(Command::new("kill").arg(child.id().to_string()).status());
        let deadline = Instant::now() + Duration::from_secs(3);
        while child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(child.kill());
        drop(child.wait());
    }
}

/// Of one process, from its clock ticks of 10 ms; threads that have ended are in it.
fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything: state is the third field, utime the fourteenth.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

fn start(name: &str, config: &Path, folder: &Path) -> anyhow::Result<Child> {
    let log = File::create(folder.join(format!("{name}.log")))?;
    let program = if name == BUFFERED { "nginx" } else { name };
    let mut command = Command::new(program);
    match program {
        "nginx" => command.arg("-c").arg(config).arg("-p").arg(folder),
        "haproxy" => command.arg("-db").arg("-f").arg(config),
        _ => command
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(config)
            .env("HOME", folder)
            .env("GOMAXPROCS", "1"),
    };
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {name}"))
}

fn nginx(name: &str, folder: &str, [plain, h2c, tls]: [u16; 3], apps: &Apps) -> String {
    let Apps { hello, other, .. } = apps;
    let buffering = match name {
        BUFFERED => "",
        _ => "proxy_request_buffering off; proxy_buffering off;",
    };
    format!(
        "daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log {folder}/{name}.err; user root;
events {{ worker_connections 16000; }}
http {{
  access_log {folder}/{name}.access combined buffer=64k flush=1s;
  client_body_temp_path {folder}/{name}.body; proxy_temp_path {folder}/{name}.temp; client_max_body_size 0;
  fastcgi_temp_path {folder}/{name}.f; uwsgi_temp_path {folder}/{name}.u; scgi_temp_path {folder}/{name}.s;
  keepalive_requests 1000000000; keepalive_timeout 600s;
  upstream app {{ server 127.0.0.1:{hello}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{plain} backlog=4096; listen 127.0.0.1:{h2c} http2; listen 127.0.0.1:{tls} ssl http2;
    ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/key.pem;
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
      {buffering}
    }}
    location = /{TAKES} {{ grpc_pass grpc://127.0.0.1:{other}; }}
    location = /socket {{
      proxy_pass http://127.0.0.1:{other}; proxy_http_version 1.1; proxy_read_timeout 600s; proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection Upgrade;
    }}
  }}
}}
"
    )
}

fn haproxy(folder: &str, [plain, h2c, tls]: [u16; 3], apps: &Apps) -> String {
    let Apps { hello, other, .. } = apps;
    format!(
        "global
  maxconn 10500
  no strict-limits
  nbthread 1
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  option forwardfor
  http-reuse always
  timeout client 600s
  timeout server 600s
  timeout connect 5s
frontend plain
  bind 127.0.0.1:{plain} backlog 4096
  use_backend holds if {{ path /socket }}
  default_backend app
frontend h2c
  bind 127.0.0.1:{h2c} proto h2
  use_backend takes if {{ path /{TAKES} }}
  default_backend app
frontend tls
  bind 127.0.0.1:{tls} ssl crt {folder}/both.pem alpn h2,http/1.1
  default_backend app
backend app
  http-request set-header X-Forwarded-Proto http
  server app 127.0.0.1:{hello} pool-max-conn 1024
backend takes
  server app 127.0.0.1:{other} proto h2
backend holds
  timeout tunnel 600s
  server app 127.0.0.1:{other}
"
    )
}

fn caddy(folder: &str, [plain, h2c, tls]: [u16; 3], upstream: u16) -> String {
    let site = format!(
        "  log {{\n    output file {folder}/caddy.access\n  }}\n  reverse_proxy 127.0.0.1:{upstream}\n"
    );
    format!(
        "{{
  admin off
  auto_https off
  storage file_system {folder}/caddy
  servers {{
    protocols h1 h2 h2c
  }}
}}
http://:{plain} {{
{site}}}
http://:{h2c} {{
{site}}}
https://:{tls} {{
  tls {folder}/certificate.pem {folder}/key.pem
{site}}}
"
    )
}
