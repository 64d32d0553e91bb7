//! Connections that wait for their client's next request have the open files that nobody else needs, and give them back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::harness::{can_run, until};
use crate::limits::{OPEN_FILES, ask, limited, open_files};

/// More than the server may have open files.
const MANY: usize = 2_400;
/// Requests at once, each of which needs two.
const AT_ONCE: usize = 200;

/// How many connections the server has that came in at this port.
fn connections(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let ours = table.lines().filter(|line| {
        let mut words = line.split_whitespace().skip(1);
        // Established.
        words.next().is_some_and(|own| own.ends_with(&local)) && words.nth(1) == Some("01")
    });
    ours.count()
}

/// Whether the server has closed it.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    stream.peek(&mut [0]).is_ok_and(|read| read == 0)
}

#[test]
fn idle_connections_have_what_is_left_and_make_way() {
    if !can_run("idle::idle_connections_have_what_is_left_and_make_way") {
        return;
    }
    let server = limited();
    server.deploy("slow", &["--min-instances", "1", "--concurrency", "1000"]);
    server.deploy("other", &["--min-instances", "1"]);
    server.until_instances("slow", 1);
    server.until_instances("other", 1);
    // This process needs one for each, too.
    let own = std::process::id().to_string();
    let raised = Command::new("prlimit")
        .args(["--pid", &own, "--nofile=8192:"])
        .status();
    assert!(raised.unwrap().success());
    // Not all files: the server keeps more sandboxes, each with some, the longer nothing starts.
    let open = || connections(server.http.port());
    // Forty-eight sixty-fourths: all that is shared out, but for forwards to the host.
    let all = usize::try_from(OPEN_FILES / 64 * 48).unwrap();

    let mut kept: Vec<TcpStream> = Vec::new();
    for number in 0..MANY {
        let (stream, answer) = ask(server.http, "other.localhost");
        assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer:?}");
        kept.extend(stream);
    }
    let held = open();
    let files = open_files(server.pid());
    println!("{held} connections stayed of {MANY}; {files} open files");
    assert!(held <= all, "{held}");
    // Three times what connections that aren't idle may have.
    assert!(held >= all * 3 / 4, "{held}");
    let closed = kept.iter().filter(|stream| is_closed(stream)).count();
    assert!(is_closed(&kept[0]) && !is_closed(&kept[MANY - 1]));
    assert!(
        kept[..closed].iter().all(is_closed),
        "the longest idle go first"
    );

    // Who needs the room gets it.
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..AT_ONCE)
            .map(|_| scope.spawn(|| server.get("slow", "/sleep?ms=2000").0))
            .collect();
        for _ in 0..20 {
            assert_eq!(server.get("other", "/").0, 200, "others are served");
        }
        for asked in asked {
            assert_eq!(asked.join().unwrap(), 200);
        }
    });
    assert!(open() <= all, "{}", open());
    let more = kept.iter().filter(|stream| is_closed(stream)).count();
    assert!(more > closed, "some made way: {closed} before, {more} now");

    // One that was not asked to close goes on.
    let mut last = kept.pop().unwrap();
    last.set_nonblocking(false).unwrap();
    last.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    last.write_all(b"GET / HTTP/1.1\r\nhost: other.localhost\r\n\r\n")
        .unwrap();
    let mut answer = [0; 12];
    last.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop((kept, last));
    until("connections to be closed", Duration::from_secs(20), || {
        (open() < 10).then_some(())
    });
    server.finish();
}
