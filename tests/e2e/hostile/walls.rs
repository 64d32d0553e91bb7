//! Walls removed, each set of them that the table names: exactly the attempts that nothing else stops get through.
//!
//! With a build that leaves walls out (`crates/runtime/src/sandbox/walls.rs`), made by `scripts/missing-walls.sh`; `make soak`
//! runs it. It shows both that every attempt can succeed and that the table's column of walls is true.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::attempts::{deploy, make, table};
use super::images::overwrite_launcher;
use super::world::World;
use super::{Attempt, On, Verdict, inputs};
use crate::harness::{Server, skip};
use crate::skip::here;

/// The walls that such a build can leave out.
pub(super) const REMOVABLE: [&str; 6] = [
    "user-namespace",
    "seccomp",
    "capabilities",
    "masks",
    "cgroup",
    "egress",
];
/// Not in the program's table: an image of its own.
const LAUNCHER: &str = "overwrite-launcher";
/// Limits far below a machine's, so that a bomb without one is soon seen.
const LIMITS: &str = "pids=2048&memory=256&inodes=65536&descriptors=25000&log=1";

#[test]
fn removed_walls_let_exactly_their_attempts_through() {
    let Some(folder) = inputs(here!()) else {
        return;
    };
    let Some(weak) = std::env::var_os("UTSUWA_TEST_MISSING_WALLS").map(PathBuf::from) else {
        skip(
            here!(),
            "needs the build without walls: scripts/missing-walls.sh makes it, make soak runs it",
        );
        return;
    };
    let program = folder.join("hostile");
    let attempts = table(&program);
    let removable = |a: &&Attempt| {
        !a.walls.is_empty() && a.walls.iter().all(|w| REMOVABLE.contains(&w.as_str()))
    };
    let mut sets: BTreeSet<BTreeSet<&str>> = REMOVABLE.map(|w| BTreeSet::from([w])).into();
    for attempt in attempts.iter().filter(removable) {
        sets.insert(attempt.walls.iter().map(String::as_str).collect());
    }
    let mut wrong = Vec::new();
    let mut proven = BTreeSet::new();
    let mut unprovable = BTreeMap::new();
    for missing in &sets {
        let verdicts = without(&weak, missing, &folder, &attempts);
        for (attempt, verdict) in &verdicts {
            let through = verdict.outcome == "escaped";
            let own: BTreeSet<&str> = attempt.walls.iter().map(String::as_str).collect();
            let line = format!(
                "without {missing:?}: {} ({own:?}): {} {}",
                attempt.name, verdict.outcome, verdict.detail
            );
            if verdict.outcome == "broken" {
                wrong.push(line);
                continue;
            }
            match (own.is_subset(missing), through) {
                (true, true) => {
                    proven.insert(attempt.name.clone());
                }
                // Perhaps this host lets nobody do it, with or without a sandbox.
                (true, false) if held_back_anyway(&program, &attempt.name, verdict) => {
                    unprovable.insert(attempt.name.clone(), verdict.detail.clone());
                }
                (false, false) => {}
                // Who is root of the host owns its files: no capability is asked for.
                (false, true)
                    if missing.contains("user-namespace")
                        && own.difference(missing).eq(&["capabilities"]) => {}
                _ => wrong.push(line),
            }
        }
        println!("without {missing:?}: {} attempts tried", verdicts.len());
    }
    for (name, why) in &unprovable {
        println!("this host lets nobody do it: {name}: {why}");
    }
    println!(
        "{} attempts got through where their walls were missing",
        proven.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A program that finds nothing it needs would else pass as one that nobody lets through.
    assert!(
        proven.len() >= 4 * unprovable.len(),
        "{} attempts are proven, {} can't be",
        proven.len(),
        unprovable.len()
    );
    for wall in REMOVABLE {
        assert!(
            attempts
                .iter()
                .any(|a| a.walls == [wall] && proven.contains(&a.name)),
            "no attempt proves the wall {wall} alone"
        );
    }
}

/// All attempts that a build can be wrong about, in instances without those walls.
fn without(
    weak: &Path,
    missing: &BTreeSet<&str>,
    folder: &Path,
    attempts: &[Attempt],
) -> Vec<(Attempt, Verdict)> {
    let program = folder.join("hostile");
    let world = World::new(&program);
    let dir = tempfile::tempdir().unwrap();
    let list: Vec<&str> = missing.iter().copied().collect();
    let server = weak_server(weak, &list, dir.path());
    deploy(&server, folder, On::Launcher);
    let parameters = format!("{}&{LIMITS}", world.parameters(&server, "peer"));
    let mut verdicts: Vec<(Attempt, Verdict)> = attempts
        .iter()
        // Without limits there is nothing to contain a bomb but the bomb.
        .filter(|a| !a.is_bomb() || a.walls.iter().all(|w| missing.contains(w.as_str())))
        .filter(|a| !a.walls.is_empty() && a.name != "read-image")
        .map(|a| (a.clone(), make(&server, "hostile", &a.name, &parameters)))
        .collect();
    let tricks = tempfile::tempdir_in("/var/tmp").unwrap();
    if let Some(outcome) = overwrite_launcher(&server, folder, tricks.path()) {
        let attempt = Attempt {
            name: LAUNCHER.to_owned(),
            what: String::new(),
            cve: String::new(),
            walls: vec!["user-namespace".to_owned()],
        };
        let detail = String::new();
        verdicts.push((attempt, Verdict { outcome, detail }));
    }
    server.finish();
    drop(world);
    verdicts
}

/// A server whose instances lack the walls `missing`; how it is started lies in `directory`.
pub(super) fn weak_server(weak: &Path, missing: &[&str], directory: &Path) -> Server {
    let start = directory.join("utsuwa");
    let script = format!(
        "#!/bin/sh\nUTSUWA_MISSING_WALLS={} exec {} \"$@\"\n",
        missing.join(","),
        weak.display()
    );
    std::fs::write(&start, script).unwrap();
    std::fs::set_permissions(&start, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut server = Server::start_as(&start, &[]);
    server.expect_warning("hostile");
    server.expect_warning("missing-walls");
    assert!(
        server
            .log()
            .contains("this build has the feature missing-walls"),
        "a weak build says so: {}",
        server.log()
    );
    server
}

/// Whether the same attempt fails on the host itself too, as its root and outside of any sandbox. In a mount and network
/// namespace, for what it may change.
fn held_back_anyway(program: &Path, name: &str, inside: &Verdict) -> bool {
    if inside.outcome == "absent" {
        return true;
    }
    let output = Command::new("unshare")
        .args(["--mount", "--net"])
        .arg(program)
        .args(["try", name])
        .args(LIMITS.split('&'))
        .output()
        .unwrap();
    let bare: Verdict = serde_json::from_slice(&output.stdout).unwrap();
    bare.outcome != "escaped"
}
