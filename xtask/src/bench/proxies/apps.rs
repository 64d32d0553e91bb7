//! What stands behind the proxies: the sample `hello`, and an app that takes bodies over HTTP/2 and holds WebSockets. Peers reach
//! both as plain processes; ours has them in instances.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::super::server::{Server, free_port};
use super::super::{Settings, programs};
use super::{pin, quietly, until_answers};

/// The service that takes bodies over HTTP/2.
pub(super) const TAKES: &str = "takes";
/// The service that holds WebSockets.
pub(super) const HOLDS: &str = "holds";

/// The plain processes.
pub(super) struct Apps {
    running: Vec<Child>,
    /// Of hello.
    pub(super) hello: u16,
    /// Of the other one.
    pub(super) other: u16,
    /// Where they and the load run.
    pub(super) cpu: usize,
    program: PathBuf,
}

impl Apps {
    pub(super) fn start(settings: &Settings) -> anyhow::Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("app/main.rs");
        let program = settings.work.join("app");
        programs::compile(&source, &program)?;
        let mut apps = Self {
            running: Vec::new(),
            hello: free_port()?,
            other: free_port()?,
            cpu: std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1),
            program,
        };
        let hello = programs::hello(settings)?.root.join("hello");
        for (program, port) in [(hello, apps.hello), (apps.program.clone(), apps.other)] {
            let child = Command::new("taskset")
                .args(["-c", &apps.cpu.to_string()])
                .arg(&program)
                .env_clear()
                .env("PORT", port.to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .with_context(|| format!("start {}", program.display()))?;
            apps.running.push(child);
            until_answers(port)?;
        }
        Ok(apps)
    }

    /// The same two in `server`, as three services.
    pub(super) fn deploy(&self, server: &Server, settings: &Settings) -> anyhow::Result<()> {
        let image = server.load(&format!(
            "docker-archive:{}",
            self.pack(settings)?.display()
        ))?;
        let hello = "utsuwa.local/hello";
        for (name, image, port, instances) in [
            ("http", hello, "http1", 1),
            (TAKES, image.as_str(), "h2c", 1),
            // 1,000 each, the most that Cloud Run lets an instance have.
            (HOLDS, image.as_str(), "http1", 3),
        ] {
            server.deploy_template(
                name,
                &serde_json::json!({
                    "scaling": {"minInstanceCount": instances, "maxInstanceCount": instances},
                    "maxInstanceRequestConcurrency": 1000,
                    "containers": [{"image": image, "ports": [{"name": port, "containerPort": 8080}],
                        "resources": {"limits": {"memory": "1Gi", "cpu": "2"}, "cpuIdle": false}}]
                }),
            )?;
            for pid in all(server, name, instances)? {
                pin(pid, self.cpu).with_context(|| format!("pin an instance of {name}"))?;
            }
        }
        Ok(())
    }

    /// An image of the program alone, as `docker save` writes one.
    fn pack(&self, settings: &Settings) -> anyhow::Result<PathBuf> {
        let folder = settings.work.join("app-image");
        std::fs::create_dir_all(&folder)?;
        let within = |name: &str| folder.join(name).display().to_string();
        let parent = settings.work.display().to_string();
        let layer = within("layer.tar");
        quietly(Command::new("tar").args(["-C", &parent, "-cf", &layer, "app"]))?;
        let summed = Command::new("sha256sum").arg(&layer).output()?;
        let text = String::from_utf8(summed.stdout)?;
        let Some(digest) = text.split_whitespace().next() else {
            bail!("sha256sum said nothing of {layer}");
        };
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": ["/app"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        });
        let manifest = serde_json::json!([
            {"Config": "config.json", "RepoTags": ["bench-app:latest"], "Layers": ["layer.tar"]}
        ]);
        std::fs::write(folder.join("config.json"), config.to_string())?;
        std::fs::write(folder.join("manifest.json"), manifest.to_string())?;
        let archive = settings.work.join("app.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&folder).arg("-cf").arg(&archive);
        quietly(tar.args(["manifest.json", "config.json", "layer.tar"]))?;
        Ok(archive)
    }
}

/// The processes of a service's instances, once there are so many: a deploy is done with the first.
fn all(server: &Server, name: &str, wanted: usize) -> anyhow::Result<Vec<u32>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let instances = server.instances(name)?;
        let running = instances.iter().filter(|(_, pid)| *pid != 0);
        let pids = running.map(|(_, pid)| u32::try_from(*pid));
        let pids = pids.collect::<Result<Vec<u32>, _>>()?;
        if pids.len() >= wanted {
            return Ok(pids);
        }
        if Instant::now() > deadline {
            bail!(
                "{name} has {} of {wanted} instances: {instances:?}",
                pids.len()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Apps {
    fn drop(&mut self) {
        for child in &mut self.running {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
