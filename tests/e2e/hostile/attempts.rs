//! Every attempt that takes no more than a moment: none may get through.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::world::World;
use super::{Attempt, On, Verdict, gvisor_is_here, inputs};
use crate::harness::{Server, skip, until};
use crate::rootless::Person;
use crate::skip::here;

/// The program's table.
pub(crate) fn table(program: &Path) -> Vec<Attempt> {
    let output = Command::new(program).arg("list").output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A service with the hostile program, and one beside it that is to be left alone, in the execution environment `on`.
pub(crate) fn deploy(server: &Server, folder: &Path, on: On) {
    let image = format!("oci-archive:{}", folder.join("hostile.tar").display());
    for name in ["hostile", "peer"] {
        let flags = [
            &[
                "--image",
                &image,
                "--min-instances",
                "1",
                "--max-instances",
                "1",
                "--memory",
                "256Mi",
            ][..],
            on.flags(),
        ]
        .concat();
        server.deploy(name, &flags);
        server.until_instances(name, 1);
    }
}

/// Has one made in an instance of `service`. Its end counts as the instance's limit.
pub(crate) fn make(server: &Server, service: &str, name: &str, parameters: &str) -> Verdict {
    let (status, body) = server.get(service, &format!("/try/{name}?{parameters}"));
    serde_json::from_str(&body).unwrap_or_else(|_| Verdict {
        outcome: "broken".to_owned(),
        detail: format!("{status} {body}"),
    })
}

/// The same on the host, without a sandbox.
pub(crate) fn make_bare(program: &Path, name: &str, parameters: &str) -> Verdict {
    let output = Command::new(program)
        .args(["try", name])
        .args(parameters.split('&'))
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn none_gets_out() {
    if let Some(folder) = inputs(here!()) {
        let world = World::new(&folder.join("hostile"));
        try_all(Server::start(&[]), &world, &folder, On::Launcher);
    }
}

#[test]
fn none_gets_out_of_gvisor() {
    if gvisor_is_here(here!())
        && let Some(folder) = inputs(here!())
    {
        let world = World::new(&folder.join("hostile"));
        try_all(Server::start(&[]), &world, &folder, On::Gvisor);
    }
}

/// The walls of an ordinary user's server are the same, made with less.
#[test]
fn none_gets_out_of_a_users_server() {
    let Some(folder) = inputs(here!()) else {
        return;
    };
    let person = match Person::with_ids() {
        Ok(person) => person,
        Err(why) => return skip(here!(), &why),
    };
    let world = World::new(&folder.join("hostile"));
    let mut server = Server::start_as(person.program(), &[]);
    server.expect_warning("without root: ");
    try_all(server, &world, &folder, On::Launcher);
}

fn try_all(server: Server, world: &World, folder: &Path, on: On) {
    let program = folder.join("hostile");
    deploy(&server, folder, on);
    let parameters = world.parameters(&server, "peer");
    let mut through = Vec::new();
    let mut tried = 0;
    for attempt in table(&program).iter().filter(|a| !a.is_bomb()) {
        // What one instance wrote must not be found in another.
        let service = if attempt.name == "read-image" {
            "peer"
        } else {
            "hostile"
        };
        let verdict = make(&server, service, &attempt.name, &parameters);
        let as_wanted = match verdict.outcome.as_str() {
            "escaped" => attempt.walls.is_empty() || on.may_let_through(&attempt.name),
            "refused" | "contained" | "absent" => !attempt.walls.is_empty(),
            _ => false,
        };
        let line = format!(
            "{} {:20} {:9} {}",
            if as_wanted { "ok  " } else { "FAIL" },
            attempt.name,
            verdict.outcome,
            verdict.detail
        );
        println!("{line}");
        tried += 1;
        if !as_wanted {
            through.push(line);
        }
    }
    println!("{tried} attempts");
    assert!(through.is_empty(), "{}", through.join("\n"));
    until("the peer to answer", Duration::from_secs(5), || {
        (server.get("peer", "/").0 == 200).then_some(())
    });
    server.finish();
}
