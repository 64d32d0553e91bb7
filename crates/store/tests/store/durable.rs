//! What was acknowledged is there after a kill and on a full disk. A test of this binary starts the binary again, to be killed.

use super::*;

/// Run by `acknowledged_writes_survive_kill_9` in a process of its own: eight writers at once (so that commits are shared)
/// write until they are killed, and say what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes() {
    let Some(dir) = std::env::var_os("UTSUWA_STORE_TEST_DIR") else {
        return;
    };
    let store = Store::open(std::path::Path::new(&dir)).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0.. {
                create(&store, &format!("demo/r/w{writer}-s{n}"), n).await;
                eprintln!("acknowledged demo/r/w{writer}-s{n}");
            }
        });
    }
    while writers.join_next().await.is_some() {}
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let data = dir.path().join(round.to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durable::child_that_writes", "--nocapture"])
            .env("UTSUWA_STORE_TEST_DIR", &data)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut acknowledged = Vec::new();
        for line in lines {
            // The last line may be cut off: then it doesn't say which write it was.
            let Ok(line) = line else { break };
            if let Some(written) = line.strip_prefix("acknowledged ") {
                acknowledged.push(written.to_owned());
            }
            // Killed at different places; what is still in the pipe afterwards was acknowledged too.
            if acknowledged.len() == 60 + round * 37 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        acknowledged.pop();
        let store = Store::open(&data).unwrap();
        assert!(acknowledged.len() >= 59);
        for written in &acknowledged {
            assert!(
                store.service(&key(written)).unwrap().is_some(),
                "{written} was acknowledged"
            );
            let op = store
                .operation(&format!(
                    "op-{written}-{}",
                    written.rsplit_once('s').unwrap().1
                ))
                .unwrap();
            assert!(op.is_some(), "the operation of {written} came with it");
        }
    }
}

/// A real small file system: the write fails as a whole with the typed error, what was there stays, and after room was
/// made everything goes on. Needs root for the mount; elsewhere it is skipped by name.
#[tokio::test]
async fn a_full_disk_is_an_error_and_nothing_is_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "utsuwa-store-test"])
        .arg(dir.path())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        crate::skip::skip(crate::skip::here!(), "can't mount a tmpfs here");
        return;
    }
    let outcome = fill(dir.path()).await;
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    outcome.unwrap();
}

async fn fill(dir: &std::path::Path) -> Result<(), String> {
    let check = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
    let store = Store::open(dir).map_err(|e| e.to_string())?;
    let mut made = 0;
    let error = loop {
        let mut next = service(&format!("demo/r/s{made}"), made);
        next.spec.description = "x".repeat(8_000);
        let op = operation(&next, &format!("op{made}"), OperationKind::Create);
        match store.create_service(next, op).await {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
        check(made < 1_000, "the disk never got full")?;
    };
    check(
        matches!(error, StoreError::DiskFull { .. }),
        &format!("expected DiskFull, got {error:?}"),
    )?;
    let kept = store.all_service_keys().map_err(|e| e.to_string())?.len();
    check(
        i64::try_from(kept) == Ok(made),
        &format!("{kept} services after {made} acknowledgements"),
    )?;
    let none = store
        .operation(&format!("op{made}"))
        .map_err(|e| e.to_string())?;
    check(
        none.is_none(),
        "the refused service left its operation behind",
    )?;
    drop(store);
    let grown = Command::new("mount")
        .args(["-o", "remount,size=16m"])
        .arg(dir)
        .status()
        .map_err(|e| e.to_string())?;
    check(grown.success(), "remount")?;
    let store = Store::open(dir).map_err(|e| e.to_string())?;
    check(
        i64::try_from(store.all_service_keys().map_err(|e| e.to_string())?.len()) == Ok(made),
        "after reopening",
    )?;
    create(&store, "demo/r/room-again", 1).await;
    Ok(())
}
