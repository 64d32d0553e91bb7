//! A real registry (Debian's docker-registry) on a free loopback port.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{free_port, until};

pub(crate) struct Registry {
    child: Child,
    _dir: tempfile::TempDir,
    pub(crate) address: SocketAddr,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let config = dir.path().join("config.yml");
        let root = dir.path().join("storage");
        std::fs::write(
            &config,
            format!("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\nlog:\n  level: error\n", root.display()),
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
            address,
        }
    }

    /// Pushes an OCI archive with skopeo; answers the reference.
    pub(crate) fn push(&self, archive: &Path, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        let pushed = Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                &format!("oci-archive:{}", archive.display()),
                &format!("docker://{reference}"),
            ])
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
