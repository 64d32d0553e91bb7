//! `docs/isolation.md` and the table in SECURITY.md: every attempt, what stops it, and how it went here and under podman.
//!
//! What the program's own table says is checked at every run. How attempts went is measured and written by
//! `UPDATE=1 scripts/with-inputs.sh target cargo nextest run -p utsuwa-daemon --test e2e the_page`, on a machine with podman.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::attempts::{deploy, make, table};
use super::gvisor::OF_ITS_OWN;
use super::images::{End, tricks};
use super::not_here::NOT_HERE;
use super::world::World;
use super::{Attempt, On, Verdict, gvisor_is_here, inputs};
use crate::harness::Server;
use crate::skip::here;

const BEGIN: &str = "<!-- made by the hostile suite: begin -->\n";
const END: &str = "<!-- made by the hostile suite: end -->\n";
const LIMITS: &str = "pids=2048&memory=256&inodes=65536&descriptors=25000";

type Verdicts = BTreeMap<String, Verdict>;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_page_tells_what_is_tried() {
    let Some(folder) = inputs(here!()) else {
        return;
    };
    let program = folder.join("hostile");
    let attempts = table(&program);
    if std::env::var_os("UPDATE").is_some() {
        write(&folder, &attempts);
    }
    let page = std::fs::read_to_string(repository().join("docs/isolation.md")).unwrap();
    let wanted: Vec<String> = attempts
        .iter()
        .map(row_begin)
        .chain(tricks().iter().map(|t| {
            format!(
                "| {} | {} | {} | {} |\n",
                t.name,
                t.what,
                t.cve,
                expected(&t.end)
            )
        }))
        .chain(of_its_own().lines().map(|line| format!("{line}\n")))
        .chain(cases(&attempts).lines().map(|line| format!("{line}\n")))
        .filter(|line| !page.contains(line.as_str()))
        .collect();
    assert!(
        wanted.is_empty(),
        "docs/isolation.md is stale; make it anew with UPDATE=1 (see this test's head). It lacks:\n{}",
        wanted.concat()
    );
    let rows = page
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| ---"));
    let known =
        attempts.len() + OF_ITS_OWN.len() + tricks().len() + cases(&attempts).lines().count();
    // Four headings beside them.
    assert_eq!(
        rows.count(),
        known + 4,
        "docs/isolation.md lists what is not tried"
    );
}

/// Of an attempt's line, what doesn't depend on where it was made.
fn row_begin(attempt: &Attempt) -> String {
    let walls = if attempt.walls.is_empty() {
        "nothing: a control".to_owned()
    } else {
        attempt.walls.join(", ")
    };
    format!(
        "| {} | {} | {} | {walls} |",
        attempt.name, attempt.what, attempt.cve
    )
}

fn expected(end: &End) -> &'static str {
    match end {
        End::Fails(_) => "the deploy is refused in words",
        End::Confined => "runs confined like any other",
        End::Either => "refused, or runs confined like any other",
    }
}

/// One line for each published case: the attempts with its mechanism, or why it has no place here.
fn cases(attempts: &[Attempt]) -> String {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let all = attempts
        .iter()
        .map(|a| (a.cve.clone(), a.name.clone()))
        .chain(
            tricks()
                .into_iter()
                .map(|t| (t.cve.to_owned(), t.name.to_owned())),
        );
    for (cves, name) in all {
        for cve in cves.split_whitespace() {
            found.entry(cve.to_owned()).or_default().push(name.clone());
        }
    }
    for (cve, why) in NOT_HERE {
        let before = found.insert((*cve).to_owned(), vec![format!("not tried: {why}")]);
        assert!(before.is_none(), "{cve} is tried after all");
    }
    let mut text = String::new();
    for (cve, names) in found {
        let _ = writeln!(text, "| {cve} | {} |", names.join(", "));
    }
    text
}

fn word(verdict: Option<&Verdict>) -> &'static str {
    match verdict.map(|v| v.outcome.as_str()) {
        Some("refused") => "refused",
        Some("contained") => "limited",
        Some("escaped") => "**through**",
        _ => "–",
    }
}

/// What it has got of gVisor is none of the host's.
fn word_on_gvisor(attempt: &Attempt, verdict: Option<&Verdict>) -> &'static str {
    let escaped = verdict.is_some_and(|verdict| verdict.outcome == "escaped");
    if escaped && On::Gvisor.may_let_through(&attempt.name) {
        "its own"
    } else {
        word(verdict)
    }
}

/// One line for each that may get through on gVisor.
fn of_its_own() -> String {
    OF_ITS_OWN
        .iter()
        .map(|(name, why)| format!("| {name} | {why} |\n"))
        .collect()
}

fn write(folder: &Path, attempts: &[Attempt]) {
    let program = folder.join("hostile");
    let on_gvisor = gvisor_is_here(here!()).then(|| {
        let world = World::new(&program);
        let server = Server::start(&[]);
        let verdicts = in_instances(&server, &world, folder, attempts, On::Gvisor);
        server.finish();
        drop(world);
        verdicts
    });
    let on_gvisor = on_gvisor.expect("the page has a column for gVisor");
    let world = World::new(&program);
    let server = Server::start(&[]);
    let ours = in_instances(&server, &world, folder, attempts, On::Launcher);
    let parameters = world.parameters(&server, "peer");
    let podman = under_podman(folder, &parameters);
    // Podman's bridge and tables stay until the made-up host is gone.
    server.finish_beside();
    drop(world);
    let peer = format!(
        "{}, {}, default settings",
        version("podman"),
        version("runc")
    );
    let rows = |wanted: &dyn Fn(&Attempt) -> bool| {
        attempts
            .iter()
            .filter(|a| wanted(a))
            .map(|a| {
                format!(
                    "{} {} | {} | {} |\n",
                    row_begin(a),
                    word(ours.get(&a.name)),
                    word_on_gvisor(a, on_gvisor.get(&a.name)),
                    word(podman.get(&a.name))
                )
            })
            .collect::<String>()
    };
    let heading = "| Attempt | What it does | Published cases | Each stops it by itself | Utsuwa | gen1 | podman |\n| --- | --- | --- | --- | --- | --- | --- |\n";
    let tricks: String = tricks()
        .iter()
        .map(|t| {
            format!(
                "| {} | {} | {} | {} |\n",
                t.name,
                t.what,
                t.cve,
                expected(&t.end)
            )
        })
        .collect();
    let page = format!(
        "{HEAD}\nMeasured with {peer}; {}; on {}.\n\n{heading}{}\n{GVISOR}{}\n{IMAGES}{tricks}\n{CASES}{}",
        version("runsc"),
        kernel(),
        rows(&|_| true),
        of_its_own(),
        cases(attempts)
    );
    std::fs::write(repository().join("docs/isolation.md"), page).unwrap();
    let through = |verdicts: &Verdicts, name: &str| {
        verdicts.get(name).is_some_and(|v| v.outcome == "escaped")
    };
    let differences = rows(&|a| through(&ours, &a.name) != through(&podman, &a.name));
    let count = attempts.iter().filter(|a| !a.walls.is_empty());
    let part = format!(
        "{} attempts and {} images are tried at every test run; none gets through. The attempts below end differently in a container \
         of podman, the stand-in for docker where only its client is there ({peer}). All of them, what stops each, and every \
         published case: [docs/isolation.md](docs/isolation.md).\n\n{heading}{differences}",
        count.count(),
        tricks.lines().count()
    );
    let file = repository().join("SECURITY.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (head, rest) = text.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    std::fs::write(&file, format!("{head}{BEGIN}{part}{END}{tail}")).unwrap();
}

/// How each goes in an instance.
fn in_instances(
    server: &Server,
    world: &World,
    folder: &Path,
    attempts: &[Attempt],
    on: On,
) -> Verdicts {
    deploy(server, folder, on);
    let parameters = world.parameters(server, "peer");
    let one = |attempt: &Attempt| {
        if attempt.is_bomb() {
            // The bombs' own test has asserted it.
            let outcome = if on.may_let_through(&attempt.name) {
                "escaped"
            } else {
                "contained"
            };
            return Verdict {
                outcome: outcome.to_owned(),
                detail: String::new(),
            };
        }
        let service = if attempt.name == "read-image" {
            "peer"
        } else {
            "hostile"
        };
        make(server, service, &attempt.name, &parameters)
    };
    attempts
        .iter()
        .map(|attempt| (attempt.name.clone(), one(attempt)))
        .collect()
}

/// The same program, as `podman run` confines it.
fn under_podman(folder: &Path, ours: &str) -> Verdicts {
    let dir = tempfile::Builder::new()
        .prefix("utsuwa-podman-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let podman = |args: &[&str]| {
        let output = Command::new("podman")
            .arg("--root")
            .arg(dir.path().join("root"))
            .arg("--runroot")
            .arg(dir.path().join("run"))
            .args(["--storage-driver", "vfs", "--runtime", "runc"])
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "podman {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    // Its defaults raise limits, which needs a capability that root may lack.
    let limits = [
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=4096:4096",
    ];
    let image = "localhost/hostile:latest";
    podman(&[
        "load",
        "--quiet",
        "--input",
        &folder.join("hostile.tar").to_string_lossy(),
    ]);
    let mut run = vec!["run", "--detach", "--name", "peer"];
    run.extend(limits);
    run.push(image);
    podman(&run);
    let peer = podman(&[
        "inspect",
        "--format",
        "{{.NetworkSettings.IPAddress}}",
        "peer",
    ]);
    let gateway = podman(&[
        "inspect",
        "--format",
        "{{.NetworkSettings.Gateway}}",
        "peer",
    ]);
    let parameters: Vec<String> = ours
        .split('&')
        .filter(|p| {
            !["peer=", "peer6=", "gateway="]
                .iter()
                .any(|b| p.starts_with(b))
        })
        .map(str::to_owned)
        .chain([format!("peer={peer}"), format!("gateway={gateway}")])
        .chain(LIMITS.split('&').map(str::to_owned))
        .collect();
    let mut run = vec!["run", "--rm"];
    run.extend(limits);
    run.extend([image, "all"]);
    run.extend(parameters.iter().map(String::as_str));
    let told = podman(&run);
    podman(&["rm", "--force", "--time", "0", "peer"]);
    let named = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let verdict = serde_json::from_value(value.clone()).unwrap();
        (value["name"].as_str().unwrap().to_owned(), verdict)
    };
    told.lines()
        .map(named)
        // These ask about two instances, and all ran in one container.
        .filter(|(name, _)| !["read-image", "shared-dev"].contains(&name.as_str()))
        .collect()
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .next()
        .unwrap_or(program)
        .replace(" version", "")
}

fn kernel() -> String {
    let output = Command::new("uname").args(["-sr"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // Builders' own suffixes say nothing to a reader.
    text.split('-').next().unwrap_or_default().to_owned()
}

const HEAD: &str = "# What programs try to get out of an instance, and what stops them

Made by the hostile suite; don't edit. How: the head of `tests/e2e/hostile/page.rs`.

A program (`tests/hostile`) runs as root in an instance and makes each attempt below, at every `make test`. The fourth column is its
own claim: each of these walls stops the attempt by itself. `make soak` checks it: a build that leaves walls out lets exactly those
attempts through whose walls are all missing. Attempts on what every build has (namespaces, the launcher's care at start) are made
outside of any sandbox as a control. `kernel` means that nothing of ours stands there: the kernel's own limit or a mended bug of it.

`refused`: it failed. `limited`: it got as much as its own limit allows. `through`: it succeeded, or passed the check that would have
stopped it. `its own` (gen1 alone): it succeeded in gVisor's kernel, which belongs to the instance; the second table says with what.
`–`: this kernel has nothing of the kind, or there was nothing to attack. Nothing is harmed by an attempt that gets
through: what would change the machine is opened and not written, or called so that it is refused after the check of rights.
";

const GVISOR: &str = "## What gets through on gVisor, and is no way out

The execution environment gen1 puts a kernel between the program and the host's: it answers these calls itself, from its own tables.
The same program, the same attempts; behind gVisor stand the walls above.

| Attempt | What it has got then |
| --- | --- |
";

const IMAGES: &str = "## Images that attack while they are started

| Image | What it does | Published cases | What comes of it |
| --- | --- | --- | --- |
";

const CASES: &str = "## Published escapes and host takeovers since 2019

runc, containerd, CRI-O, Docker with BuildKit, Kata, and the kernel's that were used from containers.

| Case | Tried by |
| --- | --- |
";
