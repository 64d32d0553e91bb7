//! A real registry (Debian's docker-registry) on a free loopback port.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{free_port, until};

pub(crate) struct Registry {
    child: Child,
    _dir: tempfile::TempDir,
    keys: Option<tempfile::TempDir>,
    pub(crate) address: SocketAddr,
    /// For skopeo.
    credentials: Option<String>,
}

/// "s3cret-word", as the registry keeps it.
const HASHED: &str = "$2y$05$abcdefghijklmnopqrstuuEpHRRKIlpAGo.iP7Bpa.htQEJMAAnRe";
pub(crate) const PASSWORD: &str = "s3cret-word";

impl Registry {
    pub(crate) fn start() -> Self {
        Self::with("", None)
    }

    /// One that speaks TLS with a certificate of an authority of its own, and asks for user `deployer` and [`PASSWORD`].
    /// `None` without `openssl`.
    pub(crate) fn start_closed() -> Option<Self> {
        let keys = tempfile::tempdir_in("/var/tmp").unwrap();
        let place = |name: &str| keys.path().join(name);
        let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca \
                          -addext basicConstraints=critical,CA:TRUE && \
                      openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request -subj /CN=registry && \
                      printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' >extensions && \
                      openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions \
                          -out cert.pem";
        let made = Command::new("sh")
            .args(["-ec", script])
            .current_dir(keys.path())
            .output()
            .unwrap();
        if !made.status.success() {
            return None;
        }
        std::fs::write(place("htpasswd"), format!("deployer:{HASHED}\n")).unwrap();
        let more = format!(
            "  tls:\n    certificate: {}\n    key: {}\nauth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            place("cert.pem").display(),
            place("key.pem").display(),
            place("htpasswd").display()
        );
        let mut registry = Self::with(&more, Some(format!("deployer:{PASSWORD}")));
        // It reads the file of passwords again and again.
        registry.keys = Some(keys);
        Some(registry)
    }

    /// The authority of [`Registry::start_closed`].
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.keys.as_ref().unwrap().path().join("ca.pem")
    }

    fn with(more: &str, credentials: Option<String>) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let config = dir.path().join("config.yml");
        let root = dir.path().join("storage");
        std::fs::write(
            &config,
            format!("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nlog:\n  level: error\nhttp:\n  addr: {address}\n{more}", root.display()),
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the registry to listen", Duration::from_secs(20), || {
            TcpStream::connect(address).ok()
        });
        Self {
            child,
            _dir: dir,
            keys: None,
            address,
            credentials,
        }
    }

    /// Pushes an OCI archive with skopeo; answers the reference.
    pub(crate) fn push(&self, archive: &Path, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        let credentials = self.credentials.as_ref();
        let pushed = Command::new("skopeo")
            .arg("--insecure-policy")
            .args([
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                &format!("oci-archive:{}", archive.display()),
                &format!("docker://{reference}"),
            ])
            .args(credentials.map(|pair| format!("--dest-creds={pair}")))
            .output()
            .unwrap();
        assert!(
            pushed.status.success(),
            "skopeo: {}",
            String::from_utf8_lossy(&pushed.stderr)
        );
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
