//! Bad input: a clear error that names the field or file and says what to do, and nothing lost or half done.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::harness::{PARENT, Server, can_run, skip, until};

/// A deploy that must be refused with exit status 1 and all of `words` in its message.
fn refused(server: &Server, args: &[&str], words: &[&str]) {
    let output = server.utsuwa(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    for word in words {
        assert!(
            said.contains(word),
            "{args:?}: {word:?} is missing in: {said}"
        );
    }
}

#[test]
fn wrong_fields_are_named() {
    if !can_run("bad_input::wrong_fields_are_named") {
        return;
    }
    let server = Server::start(&[]);
    let image = ["--image", "utsuwa.local/hello"];
    let deploy = |name: &'static str, more: &[&'static str]| -> Vec<&'static str> {
        [&["deploy", name][..], &image[..], more].concat()
    };
    refused(&server, &deploy("Bad_Name", &[]), &["Bad_Name"]);
    refused(
        &server,
        &deploy("a", &["--memory", "lots"]),
        &["memory", "lots"],
    );
    refused(&server, &deploy("a", &["--cpu", "900"]), &["cpu"]);
    refused(
        &server,
        &deploy("a", &["--set-env-vars", "PORT=1"]),
        &["PORT"],
    );
    refused(
        &server,
        &deploy("a", &["--min-instances", "5", "--max-instances", "2"]),
        &["min", "max"],
    );
    refused(
        &server,
        &deploy("a", &["--annotations", "autoscaling.knative.dev/window=1s"]),
        &["window", "6s"],
    );
    let (status, answer) = server.api_call(
        "POST",
        &format!("{PARENT}/services?serviceId=a"),
        &json!({"template": {"containers": [{"image": "utsuwa.local/hello"}]}, "traffic": [{"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 60}]}),
    );
    assert_eq!(
        (status, &answer["error"]["status"]),
        (400, &json!("INVALID_ARGUMENT")),
        "{answer}"
    );
    assert!(answer.to_string().contains("60"), "{answer}");
    let (_, listed) = server.api_get(&format!("{PARENT}/services"));
    assert_eq!(
        listed["services"].as_array().map_or(0, Vec::len),
        0,
        "nothing may be half made: {listed}"
    );
    server.finish();
}

#[test]
fn two_servers_on_one_data_directory() {
    if !can_run("bad_input::two_servers_on_one_data_directory") {
        return;
    }
    let server = Server::start(&[]);
    let beside = Server::start(&[]);
    beside.deploy("beside", &[]);
    assert_eq!(beside.get("beside", "/").0, 200);
    // The same directory at other addresses is a second server, not a restart.
    let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args([
            "up",
            "--listen-api",
            "127.0.0.1:0",
            "--listen-http",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(server.data_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("another server") && said.contains(&server.pid().to_string()),
        "{said}"
    );
    assert!(said.contains("hint: `utsuwa up --replace`"), "{said}");
    beside.finish_beside();
    server.finish();
}

#[test]
fn broken_configuration_and_taken_ports() {
    if !can_run("bad_input::broken_configuration_and_taken_ports") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let file = dir.path().join("broken.toml");
    std::fs::write(&file, "listen-api = \"0.0.0.0:99\"\ndomian = 1\n").unwrap();
    let (code, said) = run(&["config", "check", "--config", &file.to_string_lossy()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("broken.toml, line 2: domian") && said.contains("did you mean domain?"),
        "{said}"
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = dir.path().join("data");
    let (code, said) = run(&[
        "up",
        "--data-dir",
        &data.to_string_lossy(),
        "--listen-api",
        &address,
        "--listen-http",
        "127.0.0.1:0",
    ]);
    assert_eq!(code, Some(1), "{said}");
    let this = format!("(process {})", std::process::id());
    assert!(said.contains(&address) && said.contains(&this), "{said}");
    assert!(!data.exists(), "a start that fails leaves nothing");
    let (code, said) = run(&["services", "list", "--api", "http://127.0.0.1:1"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("127.0.0.1:1") && said.contains("utsuwa up"),
        "{said}"
    );
}

/// A start is refused, and a check says so before it, for what options name and what is in it; nothing is left of either.
#[test]
fn files_that_options_name_are_looked_at_first() {
    if !can_run("bad_input::files_that_options_name_are_looked_at_first") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let data = dir.path().join("data");
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("broken.toml"), "[\"a.example\"\n").unwrap();
    let table = format!(
        "[\"a.example\"]\ncertificate-file = \"{0}\"\nkey-file = \"{0}\"\n",
        at("none.pem")
    );
    std::fs::write(at("keyless.toml"), table).unwrap();
    let run = |command: &[&str], more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
            .args(command)
            .args(["--data-dir", &data.to_string_lossy()])
            .args([
                "--listen-api",
                "127.0.0.1:0",
                "--listen-http",
                "127.0.0.1:0",
            ])
            .args(["--listen-https", "127.0.0.1:0"])
            .args(more)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (none, broken, keyless) = (at("none.toml"), at("broken.toml"), at("keyless.toml"));
    let (authority, shown) = (at("none-ca.pem"), at("none-dir"));
    let acme = [
        "--acme-directory",
        "letsencrypt",
        "--acme-ca-file",
        &authority,
    ];
    for (flags, expected) in [
        (
            &["--certificates-file", &none][..],
            "none.toml: read it: No such file",
        ),
        (
            &["--certificates-file", &broken][..],
            "broken.toml: TOML parse error",
        ),
        (
            &["--certificates-file", &keyless][..],
            "none.pem: No such file",
        ),
        (&acme[..], "acme-ca-file: "),
        (&["--allow-host-dir", &shown][..], "--allow-host-dir"),
        (&["--public-address", "300.1.1.1"][..], "no IP address"),
    ] {
        let (code, said) = run(&["config", "check"], flags);
        assert_eq!(code, Some(2), "{flags:?}: {said}");
        assert!(said.contains(expected), "{flags:?}: {said}");
        let (code, said) = run(&["up"], flags);
        assert!(matches!(code, Some(1 | 2)), "{flags:?}: {said}");
        assert!(said.contains(expected), "{flags:?}: {said}");
        assert!(!said.contains("chgrp"), "{flags:?}: {said}");
        assert!(
            !data.exists(),
            "{flags:?}: a start that is refused leaves nothing"
        );
    }
}

/// Without nft no instance can have a network: said at once, not by the first deploy that never ends.
#[test]
fn a_machine_without_nftables() {
    if !can_run("bad_input::a_machine_without_nftables") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // Hidden from this process and its children only.
    let script = "for p in /usr/sbin/nft /sbin/nft $(command -v nft); do \
                  [ -e $p ] && mount --bind /dev/null $p; done; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(env!("CARGO_BIN_EXE_utsuwa"))
        .args([
            "up",
            "--listen-api",
            "127.0.0.1:0",
            "--listen-http",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(&data)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("nft") && said.contains("apt-get install nftables"),
        "{said}"
    );
    assert!(!data.exists(), "nothing was made before it was refused");
}

/// A keeper that lives on doesn't make a taken port a free one, also when it is the second address of `localhost`.
#[test]
fn a_port_taken_beside_a_living_keeper() {
    if !can_run("bad_input::a_port_taken_beside_a_living_keeper") {
        return;
    }
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        skip(
            "bad_input::a_port_taken_beside_a_living_keeper",
            "this machine has no ::1",
        );
        return;
    }
    let mut server = Server::start(&[]);
    server.kill_9();
    let taken = std::net::TcpListener::bind("[::1]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args(["up", "--listen-api", &server.api.to_string()])
        .args(["--listen-http", &format!("localhost:{port}")])
        .arg("--data-dir")
        .arg(server.data_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("[::1]:{port}")) && said.contains("--listen-http"),
        "{said}"
    );
    drop(taken);
    server.up();
    server.finish();
}

/// Of two that start at the same moment, the one that doesn't get the database leaves no trace of itself.
#[test]
fn the_loser_of_two_starts_does_not_name_itself() {
    if !can_run("bad_input::the_loser_of_two_starts_does_not_name_itself") {
        return;
    }
    let server = Server::start(&[]);
    let file = std::fs::read_dir("/run/utsuwa")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("server.pid"))
        .find(|path| {
            std::fs::read_to_string(path)
                .is_ok_and(|text| text.starts_with(&format!("{} ", server.pid())))
        })
        .unwrap();
    let named = std::fs::read_to_string(&file).unwrap();
    // What the other one sees that looked just before this one had written.
    std::fs::write(&file, "").unwrap();
    let said = refuses_to_start(&server);
    assert!(said.contains("database"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    std::fs::write(&file, named).unwrap();
    server.finish();
}

/// Runs one statement with Python's own SQLite and answers the first value; afterwards all is in the file, nothing in the
/// write-ahead log.
fn sql(file: &Path, statement: &str) -> String {
    let script = "import sqlite3, sys\n\
                  c = sqlite3.connect(sys.argv[1])\n\
                  row = c.execute(sys.argv[2]).fetchone()\n\
                  c.commit()\n\
                  c.execute('PRAGMA wal_checkpoint(TRUNCATE)')\n\
                  c.close()\n\
                  print(row[0] if row else '', end='')";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(file)
        .arg(statement)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Starts the server, which must refuse with exit status 1; answers what it said.
fn refuses_to_start(server: &Server) -> String {
    let before = server.log().len();
    let mut child = server.spawn();
    let status = until("the server to refuse", Duration::from_secs(20), || {
        child.try_wait().unwrap()
    });
    let said = server.log().split_off(before);
    assert_eq!(status.code(), Some(1), "{said}");
    said
}

#[test]
fn a_newer_or_unreadable_database_is_left_as_it_is() {
    if !can_run("bad_input::a_newer_or_unreadable_database_is_left_as_it_is") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("kept", &["--set-env-vars", "V=kept"]);
    server.kill_9();
    let file = server.data_dir().join("state/state.sqlite");
    let shown = file.display().to_string();

    let schema = sql(&file, "PRAGMA user_version");
    sql(&file, "PRAGMA user_version = 99");
    let newer = std::fs::read(&file).unwrap();
    let said = refuses_to_start(&server);
    for word in [shown.as_str(), "99", "newer version", "--data-dir"] {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    assert!(
        std::fs::read(&file).unwrap() == newer,
        "the database was changed"
    );

    let mut broken = newer.clone();
    broken[..64].fill(b'?');
    std::fs::write(&file, &broken).unwrap();
    let said = refuses_to_start(&server);
    for word in [shown.as_str(), "can't be read", "Restore a copy"] {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    assert!(
        std::fs::read(&file).unwrap() == broken,
        "the database was changed"
    );

    // With the right one back in its place everything serves again.
    std::fs::write(&file, &newer).unwrap();
    sql(&file, &format!("PRAGMA user_version = {schema}"));
    server.up();
    let (status, body) = server.get("kept", "/env");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("kept"), "{body}");
    server.finish();
}
