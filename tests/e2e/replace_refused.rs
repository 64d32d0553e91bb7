//! An `up --replace` that could not serve is refused while the server before it still does, whose keeper stays what it is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Server, can_run};

/// What a start with `more` said that had to refuse to take the server's place.
fn refused(program: &Path, server: &Server, more: &[&str]) -> String {
    let output = Command::new(program)
        .args(["up", "--replace", "--data-dir"])
        .arg(server.data_dir())
        .args(["--listen-api", &server.api.to_string()])
        .args(["--listen-http", &server.http.to_string()])
        .args(["--listen-https", &server.https.to_string()])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// The database's schema number becomes `to`, written beside the server that has it open.
fn set_schema(server: &Server, to: &str) -> String {
    let script = "import sqlite3, sys\n\
                  c = sqlite3.connect(sys.argv[1], timeout=10)\n\
                  was = c.execute('PRAGMA user_version').fetchone()[0]\n\
                  c.execute('PRAGMA user_version = ' + sys.argv[2])\n\
                  c.commit()\n\
                  print(was, end='')";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(server.data_dir().join("state/state.sqlite"))
        .arg(to)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_server_before_goes_on_serving() {
    if !can_run("replace_refused::the_server_before_goes_on_serving") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("kept", &["--min-instances", "1"]);
    server.until_instances("kept", 1);
    // Another build, which would have the keeper become it.
    let dir = server.data_dir().parent().unwrap().to_owned();
    let other = dir.join("utsuwa-other");
    std::fs::copy(env!("CARGO_BIN_EXE_utsuwa"), &other).unwrap();
    let keeper = server.keeper_pid().unwrap();
    let program = || std::fs::read_link(format!("/proc/{keeper}/exe")).unwrap();
    let before = (program(), server.pid(), server.instance_pids("kept"));
    let goes_on = || {
        assert_eq!(server.get("kept", "/").0, 200);
        assert_eq!(server.keeper_pid(), Some(keeper));
        let now = (program(), server.pid(), server.instance_pids("kept"));
        assert_eq!(now, before);
        assert!(!server.log().contains("ending; "), "{}", server.log());
    };

    let said = refused(&other, &server, &["--domain", "other.example"]);
    assert!(
        said.contains("domain = \"other.example\"") && said.contains("\"localhost\""),
        "{said}"
    );
    goes_on();

    // Root can read it, the server's user can't.
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    let file = dir.join("certificates.toml");
    let table = format!(
        "[\"hello.localhost\"]\ncertificate-file = \"{0}/cert.pem\"\nkey-file = \"{0}/key.pem\"\n",
        dir.display()
    );
    std::fs::write(&file, table).unwrap();
    for (name, mode) in [("cert.pem", 0o644), ("key.pem", 0o600)] {
        let path = dir.join(name);
        std::fs::write(&path, "not looked at").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let flags = ["--certificates-file", &file.to_string_lossy()];
    let said = refused(&other, &server, &flags);
    assert!(
        said.contains("key.pem: Permission denied") && said.contains("hint: "),
        "{said}"
    );
    goes_on();

    let schema = set_schema(&server, "99");
    let said = refused(&other, &server, &[]);
    assert!(said.contains("newer version"), "{said}");
    goes_on();
    set_schema(&server, &schema);

    // A server that was broken into can put a pipe where root's programs look.
    let key = server.data_dir().join("keys/services-ca-key.pem");
    let aside = key.with_extension("aside");
    std::fs::rename(&key, &aside).unwrap();
    pipe(&key);
    let said = refused(&other, &server, &[]);
    assert!(said.contains("no answer within 10 s"), "{said}");
    goes_on();
    std::fs::rename(&aside, &key).unwrap();
    let folder = server.data_dir().join("leaving");
    std::fs::create_dir_all(&folder).unwrap();
    pipe(&folder.join("1"));
    server.finish();
}

fn pipe(at: &Path) {
    assert!(Command::new("mkfifo").arg(at).status().unwrap().success());
}

/// Root's `config check` reads the database as whom it belongs to: a link that a server was made to put there leads nowhere.
#[test]
fn config_check_makes_nothing_where_a_link_leads() {
    if !can_run("replace_refused::config_check_makes_nothing_where_a_link_leads") {
        return;
    }
    let mut server = Server::start(&[]);
    let ended = Command::new("kill").arg(server.pid().to_string()).status();
    assert!(ended.unwrap().success());
    server.wait_end();
    let roots = tempfile::tempdir().unwrap();
    let target = roots.path().join("made");
    // Who closes the database last takes its log of writes away.
    let schema = set_schema(&server, "99");
    set_schema(&server, &schema);
    let link = server.data_dir().join("state/state.sqlite-wal");
    assert!(!link.exists());
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let output = server.utsuwa(&[
        "config",
        "check",
        "--data-dir",
        &server.data_dir().to_string_lossy(),
    ]);
    assert!(output.status.success(), "{output:?}");
    assert!(!target.exists(), "root made what the link names");
    std::fs::remove_file(&link).unwrap();
    let output = server.utsuwa(&[
        "config",
        "check",
        "--domain",
        "other.example",
        "--data-dir",
        &server.data_dir().to_string_lossy(),
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && said.contains("other.example"),
        "{said}"
    );
    server.up();
    server.finish();
}
