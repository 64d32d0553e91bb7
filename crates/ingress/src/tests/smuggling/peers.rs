//! nginx and haproxy beside us, with the same app behind them: what they make of the same bytes.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::super::scene::PATIENCE;
use super::recorder::{Got, recorder};

/// A proxy of somebody else's. It ends with this.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
    pub(crate) got: Arc<Got>,
    process: Child,
    _app: JoinSet<()>,
    _folder: TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself; nobody would do anything about it.
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

/// Ports that are free now.
fn ports() -> [SocketAddr; 2] {
    [(); 2]
        .map(|()| TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|listener| listener.local_addr().unwrap())
}

fn installed(program: &str) -> Option<String> {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .map(|folder| format!("{folder}/{program}"))
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
}

async fn start(
    name: &'static str,
    arguments: &[&str],
    config: impl Fn(&[SocketAddr; 2], SocketAddr, &str) -> String,
) -> Option<Peer> {
    let program = installed(name)?;
    let (app, got, tasks) = recorder().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let ports = ports();
    let text = config(&ports, app, &folder.path().display().to_string());
    std::fs::write(&file, text).unwrap();
    let process = Command::new(program)
        .args(arguments)
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(folder.path().join("said")).unwrap())
        .spawn()
        .unwrap();
    let peer = Peer {
        name,
        http1: ports[0],
        http2: ports[1],
        got,
        process,
        _app: tasks,
        _folder: folder,
    };
    let end = tokio::time::Instant::now() + PATIENCE;
    for port in ports {
        while TcpStream::connect(port).await.is_err() {
            let said = || std::fs::read_to_string(peer._folder.path().join("said"));
            assert!(tokio::time::Instant::now() < end, "{name}: {:?}", said());
            // A level, looked at again.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Some(peer)
}

/// `None`: it isn't installed.
pub(crate) async fn nginx() -> Option<Peer> {
    start("nginx", &["-e", "stderr", "-c"], |[http1, http2], app, folder| {
        format!(
            "daemon off; master_process off; user root; pid {folder}/pid; error_log {folder}/errors;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;\n\
             uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n\
             server {{ listen {http1}; listen {http2} http2;\n\
             location / {{ proxy_pass http://{app}; proxy_http_version 1.1; proxy_set_header Host $host; }} }} }}\n"
        )
    })
    .await
}

/// `None`: it isn't installed.
pub(crate) async fn haproxy() -> Option<Peer> {
    start("haproxy", &["-db", "-f"], |[http1, http2], app, _| {
        format!(
            "global\n  maxconn 1024\ndefaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  timeout connect 2s\n\
             frontend f\n  bind {http1}\n  bind {http2} proto h2\n  default_backend b\nbackend b\n  server s {app}\n"
        )
    })
    .await
}
