//! Against Debian's registry, filled by skopeo.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use utsuwa_runtime::image::{ErrorClass, LayerState};

use crate::fixture::{
    Compression, Image, Store, digest, image, is_root, noise, tar_of, write_layout,
};

struct Registry {
    process: Child,
    host: String,
    _directory: TempDir,
}

impl Registry {
    /// `None` where the program is missing.
    fn start(test: &str) -> Option<Self> {
        if !Path::new("/usr/bin/docker-registry").exists() || !Path::new("/usr/bin/skopeo").exists()
        {
            crate::skip::skip(test, "docker-registry or skopeo is not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            directory.path().join("data").display()
        );
        let file = directory.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let process = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::yield_now();
        }
        Some(Self {
            process,
            host: format!("127.0.0.1:{port}"),
            _directory: directory,
        })
    }

    fn push(&self, image: &Image, name: &str, options: &[&str]) {
        let directory = tempfile::tempdir().unwrap();
        write_layout(directory.path(), image, "t");
        let output = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
            ])
            .args(options)
            .arg(format!("oci:{}:t", directory.path().display()))
            .arg(format!("docker://{}/{name}", self.host))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn a_pushed_image_is_pulled_by_tag_and_by_digest() {
    let Some(registry) =
        Registry::start(crate::skip::here!()).filter(|_registry| is_root(crate::skip::here!()))
    else {
        return;
    };
    let base = tar_of(&[("bin/app", b"#!x"), ("data/noise", &noise(3 << 20))]);
    let top = tar_of(&[("etc/conf", b"v=1"), ("data/.wh.noise", b"")]);
    let plain = tar_of(&[("plain", b"yes")]);
    let pushed = image(&[
        (base, Compression::Gzip),
        (top, Compression::Zstd),
        (plain, Compression::None),
    ]);
    registry.push(&pushed, "team/app:v1", &[]);
    let gzip = image(&[(tar_of(&[("bin/app", b"#!x")]), Compression::Gzip)]);
    registry.push(&gzip, "team/docker:v1", &["--format", "v2s2"]);
    let store = Store::new(|settings| settings.registry.insecure = vec![registry.host.clone()]);
    let (sender, receiver) = tokio::sync::watch::channel(Default::default());
    let name = format!("{}/team/app:v1", registry.host);
    let found = store.store.ensure_reporting(&name, sender).await.unwrap();
    assert_eq!(found.reference, name);
    assert_eq!(found.layers.len(), 3);
    assert_eq!(
        (
            found.config.user.as_str(),
            found.config.working_dir.as_str()
        ),
        ("1000:1000", "/srv")
    );
    assert_eq!(
        std::fs::read(store.layer(&found.layers[0]).join("bin/app")).unwrap(),
        b"#!x"
    );
    assert_eq!(
        std::fs::read(store.layer(&found.layers[2]).join("plain")).unwrap(),
        b"yes"
    );
    let progress = receiver.borrow().clone();
    assert_eq!(progress.layers.len(), 3);
    assert!(
        progress
            .layers
            .iter()
            .all(|layer| layer.state == LayerState::Ready && layer.done_bytes == layer.total_bytes)
    );

    // Docker's format.
    let docker = store
        .store
        .ensure(&format!("{}/team/docker:v1", registry.host))
        .await
        .unwrap();
    assert_ne!(docker.manifest, digest(&gzip.manifest));
    assert_eq!(
        std::fs::read(store.layer(&docker.layers[0]).join("bin/app")).unwrap(),
        b"#!x"
    );
    store.store.close().await;
    store.assert_clean();

    // By digest, without the registry and at another start of the server: everything is here.
    let host = registry.host.clone();
    drop(registry);
    let reopened = Store::at(store.directory, |settings| {
        settings.registry.insecure = vec![host]
    });
    let again = reopened.store.ensure(&found.pinned).await.unwrap();
    assert_eq!(again.layers, found.layers);
    let error = reopened.store.ensure(&name).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable, "{error}");
    assert_eq!(
        reopened.store.ensure(&found.pinned).await.unwrap().manifest,
        found.manifest
    );
}

#[tokio::test]
async fn a_missing_tag_is_said_in_googles_words() {
    let Some(registry) = Registry::start(crate::skip::here!()) else {
        return;
    };
    let store = Store::new(|settings| settings.registry.insecure = vec!["127.0.0.1".to_owned()]);
    let name = format!("{}/team/none:v9", registry.host);
    let error = store.store.ensure(&name).await.unwrap_err();
    let said = error.to_string();
    assert!(
        said.starts_with(&format!("Image '{name}' not found. Its registry")),
        "{said}"
    );
    assert_eq!(error.class(), ErrorClass::NotFound);
}

#[tokio::test]
async fn plain_http_is_spoken_only_when_configured() {
    let Some(registry) = Registry::start(crate::skip::here!()) else {
        return;
    };
    let store = Store::new(|_settings| {});
    let error = store
        .store
        .ensure(&format!("{}/x", registry.host))
        .await
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert!(error.to_string().contains("insecure-registries"), "{error}");
}
