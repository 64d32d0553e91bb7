//! What happens while one server makes place for the next: nothing of it is lost, and nothing stays.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Server, can_run, kill_9, try_exchange, until};

/// Until the old server has begun to make place.
fn until_asked(log: &std::path::Path) {
    until("the server to be asked", Duration::from_secs(20), || {
        std::fs::read_to_string(log)
            .unwrap_or_default()
            .contains("another server waits for this one's place")
            .then_some(())
    });
}

#[test]
fn an_end_in_the_meantime_is_told_once() {
    if !can_run("handover::an_end_in_the_meantime_is_told_once") {
        return;
    }
    let mut server = Server::start(&["--idle-timeout", "1s"]);
    server.deploy("mortal", &["--min-instances", "1"]);
    server.deploy("slow", &["--set-env-vars", "HELLO_START=sleep:3000"]);
    server.until_instances("mortal", 1);
    server.until_instances("slow", 0);
    let pid = u32::try_from(server.instance_pids("mortal")[0]).unwrap();
    let (address, log) = (server.http, server.log_path());
    let mut old = std::thread::scope(|scope| {
        // The place is not given up before it is answered.
        let waits = scope.spawn(move || {
            let raw = "GET / HTTP/1.1\r\nhost: slow.localhost\r\nconnection: close\r\n\r\n";
            try_exchange(address, raw)
        });
        until("the slow one to start", Duration::from_secs(20), || {
            (!server.instance_states("slow").is_empty()).then_some(())
        });
        scope.spawn(move || {
            until_asked(&log);
            kill_9(pid);
        });
        let old = server.replace_beside();
        assert_eq!(waits.join().unwrap().unwrap().0, 200);
        old
    });
    assert!(old.wait().unwrap().success());
    let told = || server.ok(&["logs", "mortal"]).matches("signal 9").count();
    until("the end to be told", Duration::from_secs(10), || {
        (told() > 0).then_some(())
    });
    server.until_instances("mortal", 1);
    assert_eq!(told(), 1, "{}", server.ok(&["logs", "mortal"]));
    server.finish();
}

#[test]
fn what_goes_on_in_an_earlier_server_ends_with_down() {
    if !can_run("handover::what_goes_on_in_an_earlier_server_ends_with_down") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("long", &[]);
    let address = server.http;
    std::thread::scope(|scope| {
        let waits = scope.spawn(move || {
            let raw =
                "GET /sleep?ms=100000 HTTP/1.1\r\nhost: long.localhost\r\nconnection: close\r\n\r\n";
            try_exchange(address, raw)
        });
        until("the request to be inside", Duration::from_secs(20), || {
            let explained = server.explain("long");
            let revisions = explained["revisions"].as_array()?;
            let inside = |revision: &serde_json::Value| revision["inFlight"].as_u64() > Some(0);
            revisions.iter().any(inside).then_some(())
        });
        let mut old = server.replace_beside();
        assert!(old.try_wait().unwrap().is_none(), "it has a request");
        server.expect_warning("cut off");
        server.finish();
        assert!(old.try_wait().unwrap().is_some(), "it outlived `down`");
        let answer = waits.join().unwrap();
        assert!(answer.is_err() || answer.unwrap().0 != 200, "it was cut");
    });
}

/// One connection of a client that asks now and then, through every way a server makes place: the client never connects anew.
#[test]
fn a_kept_connection_outlives_its_servers() {
    if !can_run("handover::a_kept_connection_outlives_its_servers") {
        return;
    }
    let mut server = Server::start(&["--idle-timeout", "1s"]);
    server.deploy("kept", &[]);
    let mut stream = BufReader::new(TcpStream::connect(server.http).unwrap());
    let patience = Duration::from_secs(20);
    stream.get_ref().set_read_timeout(Some(patience)).unwrap();
    ask(&mut stream);
    answer(&mut stream);
    // Another takes the place.
    for _ in 0..2 {
        assert!(server.replace().success());
        ask(&mut stream);
        answer(&mut stream);
    }
    // It ends, nobody comes for a while, and the client asks meanwhile.
    let ends = Command::new("kill").arg(server.pid().to_string()).status();
    assert!(ends.unwrap().success());
    server.wait_end();
    ask(&mut stream);
    server.up();
    answer(&mut stream);
    // The queue is the keeper's, and a killed keeper leaves it to the next one.
    let keeper = server.keeper_pid().unwrap();
    server.expect_warning("keeper");
    kill_9(keeper);
    until("another keeper", patience, || {
        server.keeper_pid().filter(|pid| *pid != keeper)
    });
    until("the service to answer", patience, || {
        (server.get("kept", "/").0 == 200).then_some(())
    });
    assert!(server.replace().success());
    ask(&mut stream);
    answer(&mut stream);
    // With everything it ends, too.
    server.finish();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
}

fn ask(stream: &mut BufReader<TcpStream>) {
    let ask = "GET /env HTTP/1.1\r\nhost: kept.localhost\r\n\r\n";
    stream.get_mut().write_all(ask.as_bytes()).unwrap();
}

/// Reads one answer, which leaves the connection as it is.
fn answer(stream: &mut BufReader<TcpStream>) {
    let mut length = None;
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "it was closed");
        let line = line.trim_end().to_lowercase();
        if line.starts_with("http/") {
            assert!(line.ends_with("200 ok"), "{line}");
        }
        assert_ne!(line, "connection: close");
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = Some(value.parse().unwrap());
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length.expect("a length")];
    stream.read_exact(&mut body).unwrap();
}
