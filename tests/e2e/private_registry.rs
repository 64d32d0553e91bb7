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

/// A registry that asks for a password, a directory, and the name of an image that was pushed. `None`: test `name` is skipped.
fn closed_registry(name: &str) -> Option<(Registry, tempfile::TempDir, String)> {
    if !can_run(name) {
        return None;
    }
    let Some(registry) = Registry::start_closed() else {
        skip(name, "openssl is not installed");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let archive = Layout::default().write(dir.path(), "app");
    let image = registry.push(&archive, "team/app:v1");
    Some((registry, dir, image))
}

#[test]
fn a_registry_with_a_password_and_an_authority_of_its_own() {
    const NAME: &str = "private_registry::a_registry_with_a_password_and_an_authority_of_its_own";
    let Some((registry, dir, image)) = closed_registry(NAME) else {
        return;
    };
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

/// Starts the program with another home, as `sudo` and service managers do.
fn program_at_home(dir: &Path, home: &Path) -> PathBuf {
    let program = dir.join("utsuwa");
    let script = format!(
        "#!/bin/sh\nHOME='{}' exec '{}' \"$@\"\n",
        home.display(),
        env!("CARGO_BIN_EXE_utsuwa")
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn what_docker_login_wrote_opens_a_registry() {
    const NAME: &str = "private_registry::what_docker_login_wrote_opens_a_registry";
    let Some((registry, dir, image)) = closed_registry(NAME) else {
        return;
    };
    let address = registry.address.to_string();
    let authority = format!("[{address:?}]\nca-file = {:?}\n", registry.ca_file());
    let registries = write_private(dir.path().join("registries.toml"), &authority);
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("registries-file = {registries:?}\n")).unwrap();
    let flag = config.to_string_lossy().into_owned();
    let home = dir.path().join("home");
    std::fs::create_dir_all(home.join(".docker")).unwrap();
    // "deployer:s3cret-word".
    let auths = format!(
        "{{\"auths\":{{{address:?}:{{\"auth\":\"ZGVwbG95ZXI6czNjcmV0LXdvcmQ=\"}}}},\"credsStore\":\"desktop\"}}"
    );
    let docker = write_private(home.join(".docker/config.json"), &auths);

    let program = program_at_home(dir.path(), &home);
    let mut server = Server::start_as(&program, &["--config", &flag]);
    server.deploy("app", &["--image", &image]);

    // A helper isn't asked, and a broken file is no reason not to start: the deploy that needs it says so.
    let other = registry.push(
        &Layout::default().write(dir.path(), "other"),
        "team/other:v1",
    );
    let shown = docker.to_string_lossy().into_owned();
    for (content, words) in [
        (
            "{\"credsStore\":\"desktop\"}",
            ["docker-credential-desktop", "docker-config"],
        ),
        ("{\n\"auths\": ,}", ["is not JSON", "line 2"]),
    ] {
        server.kill_9();
        write_private(docker.clone(), content);
        server.expect_warning("registry credentials can't be used");
        server.up();
        let output = server.utsuwa(&["deploy", "other", "--image", &other]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words.into_iter().chain([shown.as_str()]) {
            assert!(said.contains(word), "{word:?} is missing in: {said}");
        }
    }
    let warned = format!("registry credentials can't be used: {shown}: is not JSON: ");
    assert!(server.log().contains(&warned), "{}", server.log());

    // The same by the option, with a home that has no such file.
    server.kill_9();
    let elsewhere = write_private(dir.path().join("docker.json"), &auths);
    std::fs::remove_file(&docker).unwrap();
    let options = format!("registries-file = {registries:?}\ndocker-config = {elsewhere:?}\n");
    std::fs::write(&config, options).unwrap();
    server.up();
    server.deploy("other", &["--image", &other]);
    assert_eq!(server.get("other", "/").0, 404, "busybox has no page");
    assert!(!server.log().contains("ZGVwbG95ZXI6"));
    server.finish();
}
