//! What takes root is refused to a user's server in words, with what to do instead.

use std::process::Command;

use super::{Person, SAID};
use crate::harness::{Server, can_run, free_port};

#[test]
fn directories_of_the_host_and_gvisor_are_refused() {
    if !can_run("rootless::refused::directories_of_the_host_and_gvisor_are_refused") {
        return;
    }
    let person = Person::with_one_id();
    let output = Command::new(person.program())
        .args(["up", "--data-dir"])
        .arg(person.home().join("data"))
        .args(["--listen-api", &format!("127.0.0.1:{}", free_port())])
        .args(["--listen-http", &format!("127.0.0.1:{}", free_port())])
        .args(["--allow-host-dir", "/srv:rw"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for words in [
        "/srv",
        "can't be opened to services without root",
        "sudo utsuwa up",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }

    let mut server = Server::start_as(person.program(), &[]);
    server.expect_warning(SAID);
    server.expect_warning("gVisor");
    let deploy = ["deploy", "guest", "--image", "utsuwa.local/hello"];
    let gen1 = [&deploy[..], &["--execution-environment", "gen1"]].concat();
    let output = server.utsuwa(&gen1);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for words in [
        "needs a server that was started by root",
        "--execution-environment=gen2",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    server.deploy("guest", &["--execution-environment", "gen2"]);
    assert_eq!(server.get("guest", "/healthz").0, 200);
    server.finish();
}
