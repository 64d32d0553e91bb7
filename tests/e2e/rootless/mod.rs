//! A server of an ordinary user: with ids of their own, with one id only, with the programs that lead out, and what `doctor` says.

mod person;
mod refused;
mod sessions;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use person::Outside;
pub(crate) use person::Person;

use crate::harness::{Server, can_run, free_port, kill_9, processes, skip, until};

/// What such a server always says about itself.
const SAID: &str = "without root: ";
/// What it says when its keeper was killed.
const AGAIN: &str = "the keeper's connection ended; connecting again";

fn real_uid(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

fn only_instance(server: &Server, service: &str) -> u32 {
    let pids = server.instance_pids(service);
    assert_eq!(pids.len(), 1, "{pids:?}\n{}", server.log());
    u32::try_from(pids[0]).unwrap()
}

/// Deploys, sleeps, wakes, loses server and keeper, makes place for another server: as root's does.
fn lives(server: &mut Server) {
    server.expect_warning(SAID);
    server.expect_warning(AGAIN);
    server.deploy("hello", &["--max-instances", "1"]);
    assert_eq!(server.get("hello", "/healthz").0, 200);
    let first = only_instance(server, "hello");
    server.until_instances("hello", 0);
    assert_eq!(server.get("hello", "/healthz").0, 200);
    let second = only_instance(server, "hello");
    assert_ne!(first, second, "it slept meanwhile");

    server.kill_9();
    server.up();
    assert_eq!(server.get("hello", "/healthz").0, 200);
    let keeper = server.keeper_pid().unwrap();
    kill_9(keeper);
    until("another keeper", Duration::from_secs(10), || {
        server.keeper_pid().filter(|pid| *pid != keeper)
    });
    assert_eq!(server.get("hello", "/healthz").0, 200);
    assert!(server.replace().success());
    assert_eq!(server.get("hello", "/healthz").0, 200);
}

/// Neither starts nor ends what is another user's.
fn root_is_refused(server: &Server) -> bool {
    ["up", "down"].into_iter().all(|command| {
        let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
            .arg(command)
            .args(["--data-dir", &server.data_dir().to_string_lossy()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        !output.status.success() && said.contains("another user's server")
    })
}

#[test]
fn a_user_with_ids_of_their_own_has_a_server() {
    const NAME: &str = "rootless::a_user_with_ids_of_their_own_has_a_server";
    if !can_run(NAME) {
        return;
    }
    let person = match Person::with_ids() {
        Ok(person) => person,
        Err(why) => return skip(NAME, &why),
    };
    let mut server = Server::start_as(person.program(), &["--idle-timeout", "2s"]);
    lives(&mut server);
    let (own, app) = (real_uid(server.pid()), only_instance(&server, "hello"));
    assert!(
        person.given().contains(&own) && own != real_uid(app),
        "the server's id is one of its own: {own}"
    );
    assert!(
        person.given().contains(&real_uid(app)),
        "so is the app's: {}",
        real_uid(app)
    );
    assert_eq!(real_uid(server.keeper_pid().unwrap()), person.uid);
    let limits = std::fs::read_to_string(format!("/proc/{app}/limits")).unwrap();
    let processes = limits.lines().find(|l| l.starts_with("Max processes"));
    assert!(processes.is_some_and(|l| l.contains(" 2048 ")), "{limits}");
    assert!(
        root_is_refused(&server),
        "root's server over a user's directory"
    );
    for weaker in [
        "services share one range of user ids",
        "no cgroup was delegated to you",
    ] {
        assert!(server.log().contains(weaker), "{}", server.log());
    }
    let runtime = PathBuf::from(format!("/tmp/utsuwa-{}", person.uid));
    assert!(runtime.exists());
    names_what_it_runs(&person, &server);
    server.finish();
    assert!(!runtime.exists(), "nothing of it is left");
}

/// `down` of the user's that finds nothing where it looks, and finds by their keepers what was meant.
fn names_what_it_runs(person: &Person, server: &Server) {
    let file = server.data_dir().with_file_name("other.toml");
    std::fs::write(&file, "data-dir = \"/nowhere\"\n").unwrap();
    let output = Command::new(person.program())
        .args(["down", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let to_type = format!("utsuwa down --data-dir {}", server.data_dir().display());
    assert!(said.contains(&to_type), "{said}");
}

#[test]
fn a_user_with_one_id_has_a_server() {
    const NAME: &str = "rootless::a_user_with_one_id_has_a_server";
    if !can_run(NAME) {
        return;
    }
    let person = Person::with_one_id();
    let mut server = Server::start_as(person.program(), &["--idle-timeout", "2s"]);
    lives(&mut server);
    let app = only_instance(&server, "hello");
    assert_eq!([real_uid(server.pid()), real_uid(app)], [person.uid; 2]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(
            status.contains(&format!("{set}:\t0000000000000000")),
            "{status}"
        );
    }
    assert!(
        server.log().contains("you have no subordinate ids"),
        "{}",
        server.log()
    );
    server.finish();
}

#[test]
fn instances_of_a_user_reach_what_they_may() {
    const NAME: &str = "rootless::instances_of_a_user_reach_what_they_may";
    if !can_run(NAME) {
        return;
    }
    let installed = |program: &str| std::path::Path::new("/usr/bin").join(program).exists();
    if !installed("pasta") && !installed("slirp4netns") {
        return skip(
            NAME,
            "neither pasta nor slirp4netns is installed: apt-get install passt",
        );
    }
    let person = Person::with_one_id();
    let outside = match Outside::make() {
        Ok(outside) => outside,
        Err(why) => return skip(NAME, &why),
    };
    let service = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = service.local_addr().unwrap().port();
    let allow = format!("host:{port}");
    let mut server = Server::start_as(person.program(), &["--allow-egress", &allow]);
    server.expect_warning(SAID);
    server.deploy("hello", &[]);
    let dial = |address: String| {
        server
            .get("hello", &format!("/egress?url=http://{address}/"))
            .1
    };

    let there = dial(outside.service());
    assert!(there.contains("connected"), "{there}\n{}", server.log());
    // 169.254.169.253 is `host.utsuwa.internal`.
    let opened = dial(format!("169.254.169.253:{port}"));
    assert!(opened.contains("connected"), "{opened}");
    for closed in [
        format!("{}:{port}", outside.host()),
        format!("127.0.0.1:{port}"),
        format!("{}:{}", outside.host(), server.api.port()),
        // Where these programs lead to the host's loopback unless told not to.
        format!("10.0.2.2:{port}"),
        format!("192.168.0.1:{port}"),
        "169.254.1.1:80".to_owned(),
    ] {
        let answer = dial(closed.clone());
        assert!(
            answer.contains("refused") || answer.contains("unreachable"),
            "{closed}: {answer}"
        );
    }
    until("the refusal to be told", Duration::from_secs(10), || {
        let lines = server.ok(&["logs", "hello"]);
        lines
            .contains("the host itself is closed to instances")
            .then_some(())
    });
    drop(service);
    server.finish();
}

#[test]
fn doctor_tells_a_user_what_they_lack() {
    const NAME: &str = "rootless::doctor_tells_a_user_what_they_lack";
    if !can_run(NAME) {
        return;
    }
    let person = Person::with_one_id();
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let output = Command::new(person.program())
        .args(["doctor", "--api", &nowhere])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let line = |what: &str| {
        said.lines()
            .find(|line| line.contains(what))
            .unwrap_or_else(|| panic!("no {what}: {said}"))
            .to_owned()
    };
    assert!(output.status.success(), "{said}");
    assert!(line("own user namespace").starts_with("ok"), "{said}");
    let ids = line("subordinate ids");
    assert!(
        ids.starts_with("note") && ids.contains("usermod --add-subuids"),
        "{ids}"
    );
    assert!(line("root  ").starts_with("note"), "{said}");
    assert!(
        line("delegated cgroup").contains("systemd-run --user"),
        "{said}"
    );
    let data = person.home().join(".local/share/utsuwa");
    assert!(
        line("data directory").contains(&*data.to_string_lossy()),
        "{said}"
    );
}

#[test]
fn what_a_user_can_not_have_is_refused() {
    const NAME: &str = "rootless::what_a_user_can_not_have_is_refused";
    if !can_run(NAME) {
        return;
    }
    let person = Person::with_one_id();
    let data = person.home().join("data");
    let up = |more: &[&str]| {
        let output = Command::new(person.program())
            .args(["up", "--data-dir", &data.to_string_lossy()])
            .args(["--listen-api", &format!("127.0.0.1:{}", free_port())])
            .args(more)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{more:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let http = format!("127.0.0.1:{}", free_port());
    let user = up(&["--listen-http", &http, "--user", "nobody"]);
    assert!(user.contains("only root can decide"), "{user}");
    let port = up(&["--listen-http", "127.0.0.1:81"]);
    assert!(port.contains("ports below 1024 are root's"), "{port}");
    let own = match Outside::make() {
        Ok(outside) => outside,
        Err(why) => return skip(NAME, &why),
    };
    let address = up(&[
        "--listen-http",
        &http,
        "--allow-egress",
        &format!("{}/32:80", own.host()),
    ]);
    assert!(address.contains("host:PORT"), "{address}");
    // Nothing of the three is left, not even what holds namespaces.
    let holds = |words: &[String]| {
        words.get(2).is_some_and(|word| word == "holder")
            && words
                .iter()
                .any(|word| word.contains(&*data.to_string_lossy()))
    };
    until(
        "what held namespaces to end",
        Duration::from_secs(10),
        || {
            let gone = !processes().iter().any(|(_, words)| holds(words));
            gone.then_some(())
        },
    );
    let runtime = format!("/tmp/utsuwa-{}", person.uid);
    assert!(!PathBuf::from(runtime).exists());
}
