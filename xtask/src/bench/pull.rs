//! Pull and unpack of the Flask image from a registry on loopback, against `podman pull` of the same.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::server::{Server, free_port};
use super::stats::{Series, table};
use super::{Settings, http};

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let Some(archive) = &settings.flask else {
        return Ok("\n## Pull: left out, the Flask image was not built\n".to_owned());
    };
    let registry = Registry::start(settings)?;
    let reference = format!("{}/flask-chat:latest", registry.address);
    let pushed = Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            &format!("oci-archive:{}", archive.display()),
            &format!("docker://{reference}"),
        ])
        .status()
        .context("run skopeo")?;
    if !pushed.success() {
        bail!("skopeo copy to the registry: {pushed}");
    }
    let (mut ours, mut podman) = (Series::default(), Series::default());
    let has_podman = super::peers::Peer::Podman.available();
    for round in 0..5 {
        if has_podman {
            podman.push(podman_pull(settings, &reference, round)?);
        }
        // A fresh data directory each time: nothing is cached. The figure is pull and unpack alone, as the server logs the deploy
        // without it: pulling is what a deploy of a cached image does not do.
        let server = Server::start(
            settings,
            "pull",
            &["--insecure-registry", &registry.address.to_string()],
        )?;
        let first = server.deploy("flask", &reference, "6s", "1Gi")?;
        let cached = server.deploy("flask-again", &reference, "6s", "1Gi")?;
        ours.push(first.saturating_sub(cached));
    }
    let row = |name: &str, s: &Series| {
        vec![
            name.to_owned(),
            format!("{:.0}", s.ms(50)),
            format!("{:.2}×", s.ms(50) / podman.ms(50)),
            s.len().to_string(),
        ]
    };
    let mut rows = vec![row("utsuwa (first deploy − deploy when cached)", &ours)];
    if has_podman {
        rows.push(row("podman pull", &podman));
    }
    Ok(format!(
        "\n## Pull and unpack of the Flask image (ms)\n{}",
        table(&["", "p50", "÷ podman", "n"], &rows)
    ))
}

fn podman_pull(settings: &Settings, reference: &str, round: usize) -> anyhow::Result<Duration> {
    let root = settings.work.join(format!("podman-{round}"));
    let storage = [
        format!("--root={}", root.display()),
        format!("--runroot={}-run", root.display()),
    ];
    let started = Instant::now();
    let pulled = Command::new("podman")
        .args(&storage)
        .args(["pull", "--quiet", "--tls-verify=false", reference])
        .stdout(Stdio::null())
        .status()?;
    let took = started.elapsed();
    drop(
        Command::new("podman")
            .args(&storage)
            .args(["system", "reset", "--force"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status(),
    );
    drop(std::fs::remove_dir_all(&root));
    if pulled.success() {
        Ok(took)
    } else {
        bail!("podman pull: {pulled}")
    }
}

/// Debian's docker-registry on a free loopback port.
#[derive(Debug)]
struct Registry {
    child: Child,
    address: SocketAddr,
}

impl Registry {
    fn start(settings: &Settings) -> anyhow::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let root = settings.work.join("registry");
        std::fs::create_dir_all(&root)?;
        let config = settings.work.join("registry.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\nlog:\n  level: error\n",
                root.display()
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start docker-registry")?;
        http::until_up(address, "/v2/", Instant::now(), || None)?;
        Ok(Self { child, address })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
