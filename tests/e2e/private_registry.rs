//! A registry behind a password and a certificate of its own, opened by the option `registries-file`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bad_apps::Layout;
use crate::harness::{PASSWORD, Registry, Server, can_run, skip};

fn write_private(path: PathBuf, text: &str) -> PathBuf {
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn table(dir: &Path, registry: &Registry, password: &str) -> PathBuf {
    let secret = write_private(dir.join("password"), &format!("{password}\n"));
    let text = format!(
        "[{:?}]\nusername = 'deployer'\npassword-file = {secret:?}\nca-file = {:?}\n",
        registry.address.to_string(),
        registry.ca_file()
    );
    write_private(dir.join("registries.toml"), &text)
}

#[test]
fn a_registry_with_a_password_and_an_authority_of_its_own() {
    const NAME: &str = "private_registry::a_registry_with_a_password_and_an_authority_of_its_own";
    if !can_run(NAME) {
        return;
    }
    let Some(registry) = Registry::start_closed() else {
        return skip(NAME, "openssl is not installed");
    };
    let dir = tempfile::tempdir().unwrap();
    let archive = Layout::default().write(dir.path(), "app");
    let image = registry.push(&archive, "team/app:v1");
    let file = table(dir.path(), &registry, PASSWORD);
    let shown = file.to_string_lossy().into_owned();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("registries-file = {shown:?}\n")).unwrap();
    let flag = config.to_string_lossy().into_owned();

    let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args(["config", "show", "--config", &flag])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(&shown) && !said.contains(PASSWORD), "{said}");

    let mut server = Server::start(&["--config", &flag]);
    server.deploy("app", &["--image", &image]);
    assert_eq!(
        server.get("app", "/").0,
        404,
        "busybox has no page, and answers"
    );

    // It is read at the start. A wrong password, then none: the deploy says so, without it.
    for (password, words) in [
        (Some("wrong-word"), &["were refused", "registries-file"][..]),
        (None, &["https", "ca-file"][..]),
    ] {
        server.kill_9();
        match password {
            Some(password) => drop(table(dir.path(), &registry, password)),
            None => drop(write_private(file.clone(), "")),
        }
        server.up();
        server.expect_warning("can't be reached over https");
        server.expect_warning("failed to verify TLS certificate");
        let output = server.utsuwa(&["deploy", "app", "--image", &image]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing in: {said}");
        }
        assert!(!said.contains("wrong-word"), "{said}");
    }
    assert!(!server.log().contains(PASSWORD) && !server.log().contains("wrong-word"));
    server.finish();
}
