//! Helper processes killed in the middle of what they do for somebody who waits (those of instances: `keeper_killed` of the runtime).

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::bad_images::{changed, image};
use crate::harness::{Server, can_run, kill_9, processes, until};
use crate::skip::here;

/// Unpacking the image takes longer than finding the process that does it.
const LARGE: &str = "for d in range(60):\n for f in range(1000): add(f'srv/{d + 1}/{f + 1}')";

fn unpacker() -> Option<u32> {
    let all = processes();
    let found = all
        .iter()
        .find(|(_, words)| words.len() > 3 && words[1..3] == ["internal", "unpack"]);
    found.map(|(pid, _)| *pid)
}

/// Another one begins anew, and the deploy that waits for it succeeds; half a layer is no layer.
#[test]
fn an_unpacker_killed_in_the_middle() {
    if !can_run(here!()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&[]);
    server.expect_warning("unpack a layer again");
    let few = image(dir.path(), "few", ":", "set -- /srv/60/*; echo $#");
    let many = changed(&few, dir.path(), "many", LARGE);
    let deploy = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args([
            "deploy",
            "many",
            "--allow-unauthenticated",
            "--image",
            &many,
        ])
        .args(["--api", &format!("http://{}", server.api)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let victim = until("the unpacker", Duration::from_secs(60), unpacker);
    kill_9(victim);
    let output = deploy.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{}", server.log());
    assert!(server.log().contains("it ended without an answer"));
    server.until_public("many");
    assert_eq!(server.get("many", "/"), (200, "1000\n".to_owned()));
    let layers = server.data_dir().join("images/layers");
    let halves = || {
        let all = std::fs::read_dir(&layers).unwrap().flatten();
        all.filter(|entry| entry.file_name().to_string_lossy().contains(".partial"))
            .count()
    };
    until("no half of a layer", Duration::from_secs(10), || {
        (halves() == 0).then_some(())
    });
    server.finish();
}
