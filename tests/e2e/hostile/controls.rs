//! Each attempt can succeed: where what stops it isn't there. For walls that every build has, that is outside of any sandbox.

use std::path::Path;
use std::process::Command;

use super::attempts::{deploy, make, make_bare, table};
use super::world::World;
use super::{On, Verdict, inputs};
use crate::harness::Server;
use crate::skip::here;

/// What only namespaces and the launcher's care stop gets through where there are none.
#[test]
fn the_same_program_gets_through_where_nothing_confines_it() {
    let Some(folder) = inputs(here!()) else {
        return;
    };
    let program = folder.join("hostile");
    let world = World::new(&program);
    let server = Server::start(&[]);
    deploy(&server, &folder, On::Launcher);
    let mut held_back = Vec::new();
    let of_birth = |walls: &[String]| walls.iter().any(|w| w == "namespaces" || w == "start");
    for attempt in table(&program).iter().filter(|a| of_birth(&a.walls)) {
        let verdict = match attempt.name.as_str() {
            // The launcher's part, done carelessly.
            "descriptors" => shell(&program, "exec 9</etc/passwd; exec \"$0\" try descriptors"),
            "groups" => shell(&program, "exec setpriv --groups 4 \"$0\" try groups"),
            "environment" => shell(&program, "UTSUWA_X=1 exec \"$0\" try environment"),
            "cwd" => shell(&program, "exec \"$0\" outside"),
            "image-device" => with_device(&folder),
            // Two of one instance, where the attempts are two instances.
            "write-image" => continue,
            "read-image" => {
                make(&server, "hostile", "write-image", "");
                make(&server, "hostile", "read-image", "")
            }
            name => make_bare(&program, name, &world.bare_parameters()),
        };
        println!(
            "{:20} {:9} {}",
            attempt.name, verdict.outcome, verdict.detail
        );
        // What this kernel doesn't have is no control, and no attempt either.
        if !["escaped", "absent"].contains(&verdict.outcome.as_str()) {
            held_back.push(format!("{}: {}", attempt.name, verdict.detail));
        }
    }
    assert!(held_back.is_empty(), "{}", held_back.join("\n"));
    server.finish();
    drop(world);
}

fn shell(program: &Path, script: &str) -> Verdict {
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(program)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{script}: {error}: {output:?}"))
}

/// The image unpacked by somebody who makes its devices.
fn with_device(folder: &Path) -> Verdict {
    let root = tempfile::Builder::new()
        .prefix("utsuwa-device-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let script = "mkdir \"$1/srv\" && mknod \"$1/srv/device\" c 1 5 && cp \"$0\" \"$1/hostile\" && exec chroot \"$1\" /hostile try image-device";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(folder.join("hostile"))
        .arg(root.path())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}
