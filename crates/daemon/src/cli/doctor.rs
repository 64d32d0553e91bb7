//! `utsuwa doctor`: what this machine can and can't do, and the command that would fix it.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::{Value, json};
use utsuwa_runtime::privilege::is_root;
use utsuwa_runtime::rootless::lacks;
use utsuwa_runtime::sandbox::cgroup::freezer;
use utsuwa_runtime::sandbox::probe::{CgroupMode, probe};
use utsuwa_runtime::sandbox::reclaim::swap;

use super::ClientArgs;
use super::words::shell_quote;
use crate::client::Failure;
use crate::output::{Format, items, line};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Data directory to look at [default: the running server's, else the one that `utsuwa up` would use]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// The data directory that is looked at, and why this one.
struct Data {
    dir: PathBuf,
    whose: &'static str,
}

impl Data {
    /// The one that was named, else the running server's, else that of the configuration here.
    fn choose(named: Option<&Path>, running: Option<PathBuf>) -> Self {
        let (dir, whose) = match (named, running) {
            (Some(dir), _) => (dir.to_owned(), "named by --data-dir"),
            (None, Some(dir)) => (dir, "the running server's"),
            (None, None) => {
                let data = super::configured_data_dir(None);
                // What is wrong with the configuration, `utsuwa config check` tells.
                let dir = data.unwrap_or_else(|_| PathBuf::from("/var/lib/utsuwa"));
                (dir, "a server started here would use it")
            }
        };
        Self { dir, whose }
    }

    /// As far as it is there.
    fn place(&self) -> &Path {
        let mut above = self.dir.ancestors();
        above.find(|p| p.exists()).unwrap_or_else(|| Path::new("/"))
    }

    fn shown(&self) -> String {
        let missing = if self.dir.exists() {
            ""
        } else {
            ", not made yet"
        };
        format!("{} ({}{missing})", self.dir.display(), self.whose)
    }
}

/// One finding: `ok`, `note` (works, but less) or `bad` (instances can't run).
#[derive(Clone)]
struct Finding {
    state: &'static str,
    what: String,
    says: String,
}

pub(crate) fn run(args: &DoctorArgs, client: &ClientArgs) -> Result<(), Failure> {
    let (server, running) = server(client);
    let data = Data::choose(args.data_dir.as_deref(), running);
    let mut findings = kernel(&data);
    findings.extend(if is_root() {
        idle().to_vec()
    } else {
        of_user()
    });
    findings.push(tool(
        "nft",
        "instances can't reach the internet without it",
        "apt-get install nftables",
    ));
    findings.push(gvisor());
    findings.push(names());
    findings.push(server);
    findings.extend(trust(&data));
    findings.push(disk(&data));
    findings.push(files());
    let bad = findings.iter().filter(|f| f.state == "bad").count();
    if client.format == Format::Table {
        for finding in &findings {
            line(&format!(
                "{:<4}  {:<22} {}",
                finding.state, finding.what, finding.says
            ));
        }
        line("");
        line(&match bad {
            0 => "This machine can run instances.".to_owned(),
            1 => "1 thing must be fixed before instances can run.".to_owned(),
            n => format!("{n} things must be fixed before instances can run."),
        });
    } else {
        let all: Vec<Value> = findings
            .iter()
            .map(|f| json!({"state": f.state, "what": f.what, "says": f.says}))
            .collect();
        items(&client.format, &all, &[])?;
    }
    if bad == 0 {
        Ok(())
    } else {
        Err(Failure::failed("this machine can't run instances yet"))
    }
}

/// Whether this machine takes certificates of the served domain. Nothing is said where nobody can know.
fn trust(data: &Data) -> Option<Finding> {
    let trusted = super::trust::is_trusted(&data.dir)?;
    Some(if trusted {
        finding("ok", "https", "this machine trusts the local authority")
    } else {
        finding(
            "note",
            "https",
            format!(
                "served with a local authority that this machine doesn't trust: {}",
                trust_command(&data.dir)
            ),
        )
    })
}

/// With the directory always: without it the command takes its own configuration's, which under sudo may be another server's.
fn trust_command(data: &Path) -> String {
    format!(
        "sudo utsuwa trust --data-dir {}",
        shell_quote(&data.display().to_string())
    )
}

fn finding(state: &'static str, what: &str, says: impl Into<String>) -> Finding {
    Finding {
        state,
        what: what.to_owned(),
        says: says.into(),
    }
}

fn kernel(data: &Data) -> Vec<Finding> {
    let features = probe();
    let mode = match features.cgroup {
        CgroupMode::V2 => "v2",
        CgroupMode::V1 => "v1",
        CgroupMode::Hybrid => "v1 controllers beside an empty v2",
        CgroupMode::None => "none",
    };
    let mut all = vec![finding(
        "ok",
        "kernel",
        format!("Linux {}, cgroup {mode}", features.kernel),
    )];
    let required: Vec<&str> = features.lacking().iter().map(|(name, _)| *name).collect();
    for (name, feature) in features.all() {
        all.push(match feature {
            Ok(()) => finding("ok", name, "there"),
            Err(missing) if required.contains(&name) => finding("bad", name, missing.to_string()),
            Err(missing) => finding("note", name, missing.to_string()),
        });
    }
    let shown = data.shown();
    all.push(match features.idmapped_overlay_on(data.place()) {
        Ok(()) => finding(
            "ok",
            "data directory",
            format!("{shown}: layers need no copies"),
        ),
        Err(missing) => finding("note", "data directory", format!("{shown}: {missing}")),
    });
    all
}

/// As root: what idle instances can be spared.
fn idle() -> [Finding; 3] {
    [
        finding("ok", "root", "yes; the server itself gives it up"),
        match freezer() {
            Ok(()) => finding("ok", "CPU of the idle", "taken away between requests"),
            Err(why) => finding("note", "CPU of the idle", format!("kept: {why}")),
        },
        match swap() {
            Ok(device) => {
                let says = format!("given back to {device} after a minute");
                finding("ok", "memory of the idle", says)
            }
            Err(why) => finding("note", "memory of the idle", format!("kept: {why}")),
        },
    ]
}

/// What an ordinary user's server can use.
fn of_user() -> Vec<Finding> {
    let says = "no: `utsuwa up` runs in namespaces of your own, which is weaker; in full with sudo utsuwa up";
    let mut all = vec![finding("note", "root", says)];
    all.extend(lacks::all().into_iter().map(|found| match found.feature {
        Ok(()) => finding("ok", found.what, "there"),
        Err(missing) if found.required => finding("bad", found.what, missing.to_string()),
        Err(missing) => finding("note", found.what, missing.to_string()),
    }));
    all
}

fn tool(name: &'static str, why: &str, fix: &str) -> Finding {
    let there = [
        name.to_owned(),
        format!("/usr/sbin/{name}"),
        format!("/sbin/{name}"),
    ]
    .iter()
    .any(|p| {
        Command::new(p)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    });
    if there {
        finding("ok", name, "installed")
    } else {
        finding("bad", name, format!("not installed: {why}; {fix}"))
    }
}

/// Whether services can have the execution environment gen1.
fn gvisor() -> Finding {
    use utsuwa_runtime::sandbox::gvisor::{INSTALL, installed, try_out};
    if !is_root() {
        let says = "--execution-environment=gen1 needs a server that root started";
        return finding("note", "gVisor", says.to_owned());
    }
    match installed().and_then(|()| try_out()) {
        Ok(says) => finding("ok", "gVisor", format!("{says}: gen1 is there")),
        Err(why) => {
            let says = format!("{why}; --execution-environment=gen1 is refused; {INSTALL}");
            finding("note", "gVisor", says)
        }
    }
}

/// Whether programs that ask the C library find `*.localhost`; curl and browsers do so by themselves.
fn names() -> Finding {
    match ("hello.localhost", 80).to_socket_addrs() {
        Ok(addresses) if addresses.clone().all(|a| a.ip().is_loopback()) && addresses.len() > 0 => {
            finding("ok", "*.localhost", "resolves everywhere on this machine")
        }
        _ => finding(
            "note",
            "*.localhost",
            "resolves in curl and browsers only; other programs need a Host header, or: apt-get install libnss-myhostname",
        ),
    }
}

/// Where the server that answers keeps its data.
pub(super) fn running_data_dir(client: &ClientArgs) -> Option<PathBuf> {
    server(client).1
}

/// The directory that is looked at where `named` was typed and the server that answers has its data in `running`.
#[cfg(test)]
pub(super) fn looked_at(named: Option<&Path>, running: Option<PathBuf>) -> PathBuf {
    Data::choose(named, running).dir
}

/// Whether the server answers, and its data directory.
fn server(client: &ClientArgs) -> (Finding, Option<PathBuf>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let asked = runtime.map(|r| {
        r.block_on(async {
            let api = client.connect().await?;
            // An older server answers without.
            let configuration = api.get("/utsuwa/v1/config").await;
            Ok::<_, Failure>((api, configuration.ok()))
        })
    });
    match asked {
        Ok(Ok((api, configuration))) => {
            let says = format!(
                "answers at {} (project {}, region {})",
                client.api, api.project, api.region
            );
            let dir = configuration.as_ref().and_then(data_dir_of);
            (finding("ok", "server", says), dir)
        }
        Ok(Err(failure)) => {
            let says = format!("{failure}; start it with: utsuwa up");
            (finding("note", "server", says), None)
        }
        Err(error) => {
            let says = format!("could not be asked: {error}");
            (finding("note", "server", says), None)
        }
    }
}

/// The data directory in a server's answer about its configuration. One that is not absolute means nothing here.
fn data_dir_of(configuration: &Value) -> Option<PathBuf> {
    let options = configuration["options"].as_array()?;
    let option = options.iter().find(|o| o["option"] == "data-dir")?;
    let dir = PathBuf::from(option["value"].as_str()?);
    dir.is_absolute().then_some(dir)
}

fn disk(data: &Data) -> Finding {
    let place = data.place();
    match rustix::fs::statvfs(place) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let state = if free < 1 << 30 { "note" } else { "ok" };
            finding(
                state,
                "disk",
                format!("{} MiB free at {}", free >> 20, place.display()),
            )
        }
        Err(error) => finding("note", "disk", format!("{}: {error}", place.display())),
    }
}

fn files() -> Finding {
    let text = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let hard = text
        .lines()
        .find(|l| l.starts_with("Max open files"))
        .and_then(|l| l.split_whitespace().nth(4))
        .unwrap_or("?")
        .to_owned();
    let few = hard.parse::<u64>().is_ok_and(|n| n < 65_536);
    let says = format!("{hard} at most; an instance takes about 10");
    finding(if few { "note" } else { "ok" }, "open files", says)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_that_was_looked_for_is_the_one_to_be_trusted() {
        assert_eq!(
            trust_command(Path::new("/srv/my data")),
            "sudo utsuwa trust --data-dir '/srv/my data'"
        );
    }

    #[test]
    fn the_running_servers_directory_is_looked_at_unless_one_is_named() {
        let answer = json!({"options": [
            {"option": "domain", "value": "localhost"},
            {"option": "data-dir", "value": "/srv/utsuwa"},
        ]});
        let running = data_dir_of(&answer);
        assert_eq!(running.as_deref(), Some(Path::new("/srv/utsuwa")));
        let relative = json!({"options": [{"option": "data-dir", "value": "here"}]});
        assert_eq!(data_dir_of(&relative), None);

        let named = Data::choose(Some(Path::new("/named")), running.clone());
        assert_eq!(named.shown(), "/named (named by --data-dir, not made yet)");
        assert_eq!(named.place(), Path::new("/"));
        let of_server = Data::choose(None, running);
        assert!(
            of_server
                .shown()
                .starts_with("/srv/utsuwa (the running server's")
        );
        let here = Data::choose(None, None);
        assert!(here.shown().contains("a server started here would use it"));
    }
}
