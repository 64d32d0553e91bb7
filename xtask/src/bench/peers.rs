//! The peers: whatever is installed of crun, runc, runsc, bubblewrap, podman and docker, and the bare process. All run the same program
//! from the same root file system on the host's network, so that the probe reaches them at 127.0.0.1.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{http, server};

/// A program in a root file system.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub name: &'static str,
    pub root: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub path: &'static str,
    /// Needs nothing from its root file system.
    pub is_static: bool,
    /// OCI archive for podman and docker.
    pub archive: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Bare,
    Bubblewrap,
    Crun,
    Runc,
    Runsc,
    Podman,
    Docker,
}

impl Peer {
    pub(crate) const ALL: [Self; 7] = [
        Self::Bare,
        Self::Bubblewrap,
        Self::Crun,
        Self::Runc,
        Self::Runsc,
        Self::Podman,
        Self::Docker,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare process",
            Self::Bubblewrap => "bubblewrap, host network",
            Self::Crun => "crun, host network",
            Self::Runc => "runc, host network",
            Self::Runsc => "runsc (gVisor, ptrace), host network",
            Self::Podman => "podman run (runc), host network",
            Self::Docker => "docker run, host network",
        }
    }

    /// Whether it is installed and (docker) has an engine.
    pub(crate) fn available(self) -> bool {
        let answers = |program: &str, args: &[&str]| {
            Command::new(program)
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        };
        match self {
            Self::Bare => true,
            Self::Bubblewrap => answers("bwrap", &["--version"]),
            Self::Crun => answers("crun", &["--version"]),
            Self::Runc => answers("runc", &["--version"]),
            Self::Runsc => answers("runsc", &["--version"]),
            Self::Podman => answers("podman", &["--version"]),
            Self::Docker => answers("docker", &["version"]),
        }
    }

    /// Starts `app` and answers the time to its first 200.
    pub(crate) fn start(self, app: &App, work: &Path) -> anyhow::Result<Duration> {
        let port = server::free_port()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut env = app.env.clone();
        env.push(format!("PORT={port}"));
        let name = format!("utsuwa-bench-{}", std::process::id());
        let mut command = match self {
            Self::Bare => bare(app, &env),
            Self::Bubblewrap => bubblewrap(app, &env),
            Self::Crun | Self::Runc | Self::Runsc => oci(self.program(), app, &env, work, &name)?,
            Self::Podman | Self::Docker => engine(self.program(), app, port, &name),
        };
        // A file: nobody has to read it, so the program can't wait for us.
        let said = work.join("peer.stderr");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&said)?);
        let since = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", self.name()))?;
        let took = http::until_up(address, app.path, since, || {
            let status = child.try_wait().ok().flatten()?;
            let said = std::fs::read_to_string(&said).unwrap_or_default();
            Some(format!(
                "{status}; {}",
                said.trim().lines().last().unwrap_or_default()
            ))
        });
        self.end(&mut child, &name);
        took
    }

    /// Runs `app` until it ends by itself, which its environment must make it do, and removes what is left of it. Its command
    /// may be run again and again, and beside one with another `name`.
    pub(crate) fn to_the_end(self, app: &App, work: &Path, name: &str) -> anyhow::Result<Command> {
        let program = self.program();
        let mut command = match self {
            Self::Bare => bare(app, &app.env),
            Self::Bubblewrap => bubblewrap(app, &app.env),
            Self::Crun | Self::Runc | Self::Runsc => {
                let work = work.join(name);
                std::fs::create_dir_all(&work)?;
                oci(program, app, &app.env, &work, name)?
            }
            Self::Podman | Self::Docker => engine(program, app, 8080, name),
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Ok(command)
    }

    fn program(self) -> &'static str {
        match self {
            Self::Bare => "",
            Self::Bubblewrap => "bwrap",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Runsc => "runsc",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }

    /// Ends what was started here.
    fn end(self, child: &mut Child, name: &str) {
        let quiet = |program: &str, args: &[&str]| {
            drop(
                Command::new(program)
                    .args(args)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status(),
            );
        };
        match self {
            Self::Crun => quiet("crun", &["delete", "--force", name]),
            Self::Runc => quiet("runc", &["delete", "--force", name]),
            Self::Runsc => quiet("runsc", &["delete", "--force", name]),
            Self::Podman => quiet("podman", &["rm", "--force", "--time", "0", name]),
            Self::Docker => quiet("docker", &["rm", "--force", name]),
            Self::Bare | Self::Bubblewrap => {}
        }
        drop(child.kill());
        drop(child.wait());
    }
}

fn bare(app: &App, env: &[String]) -> Command {
    // A static program needs no chroot, and chroot(1) would cost one more exec: the bare figure is then the lowest there is.
    let mut command = if app.is_static {
        let mut command = Command::new(app.root.join(app.args[0].trim_start_matches('/')));
        command.args(&app.args[1..]);
        command
    } else {
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(&app.root).args(&app.args);
        command
    };
    command.env_clear().current_dir("/").process_group(0);
    for variable in env {
        if let Some((key, value)) = variable.split_once('=') {
            command.env(key, value);
        }
    }
    command
}

fn bubblewrap(app: &App, env: &[String]) -> Command {
    let mut command = Command::new("bwrap");
    command
        .args([
            "--unshare-all",
            "--share-net",
            "--die-with-parent",
            "--bind",
        ])
        .arg(&app.root)
        .args(["/", "--proc", "/proc", "--dev", "/dev", "--chdir", &app.cwd]);
    command.args(["--clearenv"]);
    for variable in env {
        if let Some((key, value)) = variable.split_once('=') {
            command.args(["--setenv", key, value]);
        }
    }
    command.args(&app.args);
    command
}

fn oci(
    program: &str,
    app: &App,
    env: &[String],
    work: &Path,
    name: &str,
) -> anyhow::Result<Command> {
    let bundle = work.join(format!("bundle-{program}-{}", app.name));
    std::fs::create_dir_all(&bundle)?;
    drop(std::fs::remove_file(bundle.join("config.json")));
    let made = Command::new(program)
        .arg("spec")
        .current_dir(&bundle)
        .status()?;
    if !made.success() {
        bail!("{program} spec: {made}");
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?;
    config["process"]["args"] = serde_json::json!(app.args);
    config["process"]["env"] = serde_json::json!(env);
    config["process"]["cwd"] = serde_json::json!(app.cwd);
    config["process"]["terminal"] = serde_json::json!(false);
    config["root"] = serde_json::json!({"path": app.root, "readonly": false});
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|n| n["type"] != "network");
    }
    std::fs::write(bundle.join("config.json"), config.to_string())?;
    let mut command = Command::new(program);
    if program == "crun" {
        // crun refuses v1 controllers beside a v2 tree; without cgroups it has less to do, which is in its favour.
        command.arg("--cgroup-manager=disabled");
    }
    if program == "runsc" {
        // Without cgroups it has less to do as well; the others are on the host's network.
        command.args(["--network=host", "--platform=ptrace", "--ignore-cgroups"]);
    }
    command.args(["run", "--bundle"]).arg(&bundle).arg(name);
    Ok(command)
}

fn engine(program: &str, app: &App, port: u16, name: &str) -> Command {
    let mut command = Command::new(program);
    if program == "podman" {
        // Its default, crun, refuses v1 controllers beside a v2 tree.
        command.args(["--runtime", "runc"]);
    }
    command.args([
        "run",
        "--rm",
        "--name",
        name,
        // Engines raise these by default, which isn't permitted everywhere; the program needs none raised.
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=4096:4096",
        "--network",
        "host",
        "--pull",
        "never",
        "--env",
        &format!("PORT={port}"),
    ]);
    for variable in &app.env {
        command.args(["--env", variable]);
    }
    command.arg(format!("localhost/utsuwa-bench-{}:latest", app.name));
    command
}

/// Gives podman the image it will run.
pub(crate) fn load_into_podman(app: &App) -> anyhow::Result<()> {
    let target = format!("localhost/utsuwa-bench-{}:latest", app.name);
    let quiet = |args: &[&str]| {
        Command::new("podman")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    if let Some(archive) = &app.archive {
        let copied = Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                &format!("oci-archive:{}", archive.display()),
                &format!("containers-storage:{target}"),
            ])
            .stdout(Stdio::null())
            .status()?;
        if !copied.success() {
            bail!("skopeo copy into podman's storage: {copied}");
        }
        return Ok(());
    }
    let tar = app.root.with_extension("tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&app.root)
        .arg("-cf")
        .arg(&tar)
        .arg(".")
        .status()?;
    let change = format!("ENTRYPOINT {}", serde_json::json!(app.args));
    if !packed.success()
        || !quiet(&[
            "import",
            "--change",
            &change,
            &tar.to_string_lossy(),
            &target,
        ])?
        .success()
    {
        bail!("podman import of {}", app.name);
    }
    Ok(())
}
