//! Nobody takes what others live on: descriptors, and what was kept of a service that is gone.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::harness::{Server, can_run, until};

/// With so many open files one instance may have 128 connections to services (an eighth, halved).
pub(crate) const OPEN_FILES: u64 = 2_048;
const OWN: usize = 128;
/// Where every instance finds the services of its server.
const INSIDE: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

pub(crate) fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Asks for `host` once and keeps the connection; the head of the answer, empty for a reset.
pub(crate) fn ask(address: SocketAddr, host: &str) -> (Option<TcpStream>, String) {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(5)) else {
        return (None, String::new());
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut answer = vec![0; 4096];
    let length = stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.read(&mut answer))
        .unwrap_or(0);
    answer.truncate(length);
    (Some(stream), String::from_utf8_lossy(&answer).into_owned())
}

/// A server with [`OPEN_FILES`].
pub(crate) fn limited() -> Server {
    let mut server = Server::start(&[]);
    server.kill_9();
    // Beside the data directory, so that it is there as long as the server may have to be taken down.
    let program = server.log_path().with_file_name("limited");
    let script = format!(
        "#!/bin/sh\nexec prlimit --nofile={OPEN_FILES}:{OPEN_FILES} {} \"$@\"\n",
        env!("CARGO_BIN_EXE_utsuwa")
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    server.use_program(&program);
    server.up();
    server
}

#[test]
fn an_instance_cannot_take_the_servers_descriptors() {
    if !can_run("limits::an_instance_cannot_take_the_servers_descriptors") {
        return;
    }
    let server = limited();
    server.deploy("greedy", &["--min-instances", "1"]);
    server.deploy("other", &["--min-instances", "1"]);
    server.until_instances("greedy", 1);
    server.until_instances("other", 1);
    let before = open_files(server.pid());
    let netns = File::open(format!(
        "/proc/{}/ns/net",
        server.instance_pids("greedy")[0]
    ))
    .unwrap();
    let address = SocketAddr::from((INSIDE, server.http.port()));

    let (kept, refused) = std::thread::scope(|scope| {
        // Only that thread is in the instance's network.
        let greedy = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let (mut kept, mut refused) = (Vec::new(), 0);
            for number in 0..5 * OWN {
                let (stream, answer) = ask(address, "other.localhost");
                if answer.starts_with("HTTP/1.1 200") {
                    kept.push(stream);
                } else {
                    assert!(
                        answer.is_empty() || answer.starts_with("HTTP/1.1 429"),
                        "{number}: {answer}"
                    );
                    refused += 1;
                }
            }
            (kept, refused)
        });
        while !greedy.is_finished() {
            assert_eq!(
                server.get("other", "/").0,
                200,
                "others are served meanwhile"
            );
        }
        greedy.join().unwrap()
    });
    assert_eq!((kept.len(), refused), (OWN, 4 * OWN));
    let files = open_files(server.pid());
    assert!(
        files <= before + 2 * OWN + 64,
        "{before} before, now {files}"
    );
    println!(
        "open files of the server: {before} before, {files} with all that one instance may have"
    );
    drop(kept);
    std::thread::scope(|scope| {
        let again = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            until("places to be free again", Duration::from_secs(20), || {
                let (_, answer) = ask(address, "other.localhost");
                answer.starts_with("HTTP/1.1 200").then_some(())
            });
        });
        again.join().unwrap();
    });
    let told = until("the log to tell", Duration::from_secs(10), || {
        let log = server.ok(&["logs", "greedy", "--tail", "100"]);
        log.contains("as many connections to services open")
            .then_some(log)
    });
    assert_eq!(
        told.matches("as many connections to services open").count(),
        1,
        "{told}"
    );
    server.finish();
}

/// An HTTP/2 connection with `count` requests for `path` under way, written by hand: nothing here needs its answers.
fn streams(address: SocketAddr, host: &str, path: &str, count: u32) -> TcpStream {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    // HPACK: GET and http from the static table, :path and :authority as literals that are not remembered.
    let literal = |name: u8, value: &str| {
        [
            &[name, u8::try_from(value.len()).unwrap()],
            value.as_bytes(),
        ]
        .concat()
    };
    let head = [vec![0x82, 0x86], literal(0x04, path), literal(0x01, host)].concat();
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(0x4, 0, 0, &[]));
    for number in 0..count {
        // END_STREAM and END_HEADERS.
        sent.extend(frame(0x1, 0x5, 2 * number + 1, &head));
    }
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    stream.write_all(&sent).unwrap();
    stream
}

#[test]
fn a_client_with_many_streams_cannot_take_the_servers_descriptors() {
    if !can_run("limits::a_client_with_many_streams_cannot_take_the_servers_descriptors") {
        return;
    }
    let mut server = limited();
    server.expect_warning("refused requests");
    // Room for all of them, were there no other limit.
    server.deploy("slow", &["--min-instances", "1", "--concurrency", "1000"]);
    server.deploy("other", &["--min-instances", "1"]);
    server.until_instances("slow", 1);
    server.until_instances("other", 1);
    let before = open_files(server.pid());
    // Eight times 240 requests that take half a minute: with a socket each, nearly all open files there are.
    let greedy: Vec<TcpStream> = (0..8)
        .map(|_| streams(server.http, "slow.localhost", "/sleep?ms=30000", 240))
        .collect();
    until("refusals to be told", Duration::from_secs(20), || {
        server.log().contains("refused requests").then_some(())
    });
    until("the service's log to tell", Duration::from_secs(20), || {
        let log = server.ok(&["logs", "slow", "--tail", "1000"]);
        log.contains("its share of what this server can hold")
            .then_some(())
    });
    for _ in 0..50 {
        assert_eq!(server.get("other", "/").0, 200, "others are served");
    }
    let files = open_files(server.pid());
    println!("open files of the server: {before} before, {files} with eight times 240 streams");
    // Fourteen of sixty-four for requests of clients.
    let public = usize::try_from(OPEN_FILES / 64 * 14).unwrap();
    assert!(
        files <= before + public + 64,
        "{before} before, now {files}"
    );
    assert!(
        files > before + public / 2,
        "the requests were under way: {before} before, now {files}"
    );
    drop(greedy);
    until("sockets to be closed", Duration::from_secs(20), || {
        (open_files(server.pid()) <= before + 140).then_some(())
    });
    server.finish();
}

#[test]
fn want_of_descriptors_ends_nothing() {
    if !can_run("limits::want_of_descriptors_ends_nothing") {
        return;
    }
    let mut server = Server::start(&[]);
    server.expect_warning("open files");
    server.expect_warning("Too many open files");
    server.expect_warning("no free descriptors here");
    server.deploy("hello", &["--min-instances", "1"]);
    server.until_instances("hello", 1);
    let limit = |files: u64| {
        // As the server's own user: limits of a stranger's process take a capability that root may lack.
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let id = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().split_whitespace().next().unwrap().to_owned()
        };
        let done = Command::new("setpriv")
            .args(["--reuid", &id("Uid:"), "--regid", &id("Gid:")])
            .args(["--clear-groups", "prlimit"])
            .args(["--pid", &server.pid().to_string()])
            .arg(format!("--nofile={files}:"))
            .status();
        assert!(done.unwrap().success());
    };
    limit(open_files(server.pid()) as u64 + 30);
    let idle: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(server.http).unwrap())
        .collect();
    let said = || {
        server
            .log()
            .matches("accept client connections; they wait")
            .count()
    };
    until("the lack to be told", Duration::from_secs(10), || {
        (said() > 0).then_some(())
    });
    drop(idle);
    until("the service to answer", Duration::from_secs(20), || {
        (server.get("hello", "/").0 == 200).then_some(())
    });
    assert!(said() <= 2, "told again and again: {}", said());
    limit(4_096);
    assert_eq!(server.get("hello", "/").0, 200);
    server.finish();
}

#[test]
fn a_service_does_not_see_what_another_of_its_name_wrote() {
    if !can_run("limits::a_service_does_not_see_what_another_of_its_name_wrote") {
        return;
    }
    let server = Server::start(&[]);
    let places = ["logs", "journal"].map(|kind| server.data_dir().join(kind).join("demo"));
    server.deploy("again", &[]);
    assert_eq!(
        server
            .get("again", "/log?severity=INFO&message=the-former-one")
            .0,
        200
    );
    until("the line to be stored", Duration::from_secs(10), || {
        let log = server.ok(&["logs", "again", "--tail", "100"]);
        (log.contains("the-former-one") && log.contains("GET http")).then_some(())
    });
    assert!(places.iter().all(|place| place.exists()), "{places:?}");
    server.ok(&["services", "delete", "again", "--quiet"]);
    until("the service to be gone", Duration::from_secs(30), || {
        let path = format!("{}/services/again", crate::harness::PARENT);
        (server.api_get(&path).0 == 404).then_some(())
    });
    server.deploy("again", &[]);
    assert_eq!(
        server
            .get("again", "/log?severity=INFO&message=the-new-one")
            .0,
        200
    );
    let log = until("the line to be stored", Duration::from_secs(10), || {
        let log = server.ok(&["logs", "again", "--tail", "100"]);
        log.contains("the-new-one").then_some(log)
    });
    assert!(!log.contains("the-former-one"), "{log}");

    // The end of the last instance is told when its service is gone: that goes too.
    server.ok(&["services", "delete", "again", "--quiet"]);
    until("nothing to be kept", Duration::from_secs(60), || {
        places.iter().all(|place| !place.exists()).then_some(())
    });
    server.finish();
}
