//! A server of the benchmark's own: started on free ports with its own data directory, taken down at the end.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Settings, http};

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    program: PathBuf,
    pub data: PathBuf,
    pub api: SocketAddr,
    pub http: SocketAddr,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

impl Server {
    /// Starts a server and waits for its `ready` line.
    pub(crate) fn start(settings: &Settings, name: &str, more: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(settings, name, more, &[])
    }

    /// The same with settings that have no flag, by their environment variables.
    pub(crate) fn start_with(
        settings: &Settings,
        name: &str,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let data = settings.work.join(format!("data-{name}"));
        drop(std::fs::remove_dir_all(&data));
        let (api, web) = (free_port()?, free_port()?);
        let log = std::fs::File::create(settings.work.join(format!("server-{name}.log")))?;
        let mut child = Command::new(&settings.utsuwa)
            .arg("up")
            .args(["--data-dir", &data.to_string_lossy()])
            .args([
                "--listen-api",
                &format!("127.0.0.1:{api}"),
                "--listen-http",
                &format!("127.0.0.1:{web}"),
            ])
            .args(more)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("start the server")?;
        let lines = BufReader::new(child.stdout.take().context("the server's stdout")?).lines();
        for line in lines {
            if line.context("read the server's stdout")? == "ready" {
                return Ok(Self {
                    child,
                    program: settings.utsuwa.clone(),
                    data,
                    api: SocketAddr::from((Ipv4Addr::LOCALHOST, api)),
                    http: SocketAddr::from((Ipv4Addr::LOCALHOST, web)),
                });
            }
        }
        bail!(
            "the server ended before it was ready; see {}",
            settings.work.join(format!("server-{name}.log")).display()
        );
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the server; its keeper and all that runs stay.
    pub(crate) fn kill_only_the_server(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the server")?;
        self.child.wait().context("wait for the server")?;
        Ok(())
    }

    /// Gives the server an archive's image; answers its reference.
    pub(crate) fn load(&self, archive: &str) -> anyhow::Result<String> {
        let loaded = Command::new(&self.program)
            .args(["images", "load", archive])
            .args(["--api", &format!("http://{}", self.api)])
            .output()
            .context("run images load")?;
        if !loaded.status.success() {
            bail!("images load: {}", String::from_utf8_lossy(&loaded.stderr));
        }
        Ok(String::from_utf8(loaded.stdout)?.trim().to_owned())
    }

    /// Deploys a public service and waits until it serves; answers the time.
    pub(crate) fn deploy(
        &self,
        name: &str,
        image: &str,
        window: &str,
        memory: &str,
    ) -> anyhow::Result<Duration> {
        self.deploy_in(name, image, window, memory, None)
    }

    /// The same in an execution environment.
    pub(crate) fn deploy_in(
        &self,
        name: &str,
        image: &str,
        window: &str,
        memory: &str,
        environment: Option<&str>,
    ) -> anyhow::Result<Duration> {
        self.deploy_template(name, &serde_json::json!({
            "executionEnvironment": environment.unwrap_or("EXECUTION_ENVIRONMENT_UNSPECIFIED"),
            "annotations": {"autoscaling.knative.dev/window": window},
            "containers": [{"image": image, "resources": {"limits": {"memory": memory, "cpu": "1"}, "cpuIdle": true, "startupCpuBoost": true}}]}))
    }

    /// The same with a template of its own.
    pub(crate) fn deploy_template(
        &self,
        name: &str,
        template: &serde_json::Value,
    ) -> anyhow::Result<Duration> {
        let parent = "/run/v2/projects/demo/locations/asia-northeast1";
        let body = serde_json::json!({"invokerIamDisabled": true, "template": template});
        let started = Instant::now();
        let (status, answer) = http::send(
            self.api,
            "POST",
            &format!("{parent}/services?serviceId={name}"),
            &body.to_string(),
        )?;
        if status != 200 {
            bail!("deploy {name}: {status} {answer}");
        }
        self.done(serde_json::from_str(&answer)?)
            .with_context(|| format!("deploy {name}"))?;
        Ok(started.elapsed())
    }

    /// Deletes a service and waits until nothing of it runs.
    pub(crate) fn delete(&self, name: &str) -> anyhow::Result<()> {
        let path = format!("/run/v2/projects/demo/locations/asia-northeast1/services/{name}");
        let (status, answer) = http::send(self.api, "DELETE", &path, "")?;
        if status != 200 {
            bail!("delete {name}: {status} {answer}");
        }
        self.done(serde_json::from_str(&answer)?)
            .with_context(|| format!("delete {name}"))
    }

    /// Waits for an operation's end.
    fn done(&self, mut operation: serde_json::Value) -> anyhow::Result<()> {
        while operation["done"] != serde_json::Value::Bool(true) {
            let path = format!(
                "/run/v2/{}:wait",
                operation["name"].as_str().context("operation name")?
            );
            operation = serde_json::from_str(
                &http::send(self.api, "POST", &path, "{\"timeout\":\"30s\"}")?.1,
            )?;
        }
        if !operation["error"].is_null() {
            bail!("{}", operation["error"]);
        }
        Ok(())
    }

    /// State and process id of each instance of `name`.
    pub(crate) fn instances(&self, name: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let path =
            format!("/utsuwa/v1/projects/demo/locations/asia-northeast1/services/{name}:explain");
        let explained: serde_json::Value =
            serde_json::from_str(&http::get(self.api, "localhost", &path)?.1)?;
        Ok(explained["revisions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r["instances"].as_array())
            .flatten()
            .filter_map(|i| Some((i["state"].as_str()?.to_owned(), i["pid"].as_u64()?)))
            .collect())
    }

    /// Waits until none of `names` has an instance.
    pub(crate) fn until_asleep<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> anyhow::Result<()> {
        // Beyond the longest stable window that a series asks for.
        let deadline = Instant::now() + Duration::from_secs(420);
        for name in names {
            while !self.instances(name)?.is_empty() {
                if Instant::now() > deadline {
                    bail!("{name} does not fall asleep");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// One request to a service: the time to the last byte of its 200.
    pub(crate) fn call(&self, name: &str, path: &str) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let (status, body) = http::get(self.http, &format!("{name}.localhost"), path)?;
        if status != 200 {
            bail!("{name}{path}: {status} {body}");
        }
        Ok(started.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let down = Command::new(&self.program)
            .args(["down", "--data-dir"])
            .arg(&self.data)
            .output();
        if !down.as_ref().is_ok_and(|down| down.status.success()) {
            crate::say(&format!(
                "utsuwa down did not succeed for {}: {down:?}",
                self.data.display()
            ));
        }
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.data));
    }
}
