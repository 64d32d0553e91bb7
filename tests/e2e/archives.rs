//! Images that the command line brings itself, in all forms it takes, written by skopeo.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::{Server, can_run, host_architecture, pack, skip};

/// An image whose page is `word`, as an OCI archive.
fn image(dir: &Path, word: &str) -> PathBuf {
    let root = dir.join(word);
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    std::fs::write(root.join("index.html"), word).unwrap();
    let config = json!({"Entrypoint": ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/"]});
    pack(&root, &config, host_architecture(), false)
}

fn copy(from: &Path, to: &str) {
    let copied = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .arg(format!("oci-archive:{}", from.display()))
        .arg(to)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&copied.stderr);
    assert!(copied.status.success(), "skopeo: {said}");
}

fn can_copy(name: &str) -> bool {
    if !can_run(name) {
        return false;
    }
    let there = Path::new("/usr/bin/skopeo").exists();
    if !there {
        skip(name, "skopeo is not installed");
    }
    there
}

fn refused(server: &Server, image: &str) -> String {
    let output = server.utsuwa(&["deploy", "none", "--image", image]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn a_docker_archive_is_deployed_and_its_reference_counts() {
    if !can_copy("archives::a_docker_archive_is_deployed_and_its_reference_counts") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved.tar");
    let archive = format!("docker-archive:{}", file.display());
    copy(
        &image(dir.path(), "one"),
        &format!("{archive}:example.com/team/app:v1"),
    );
    let server = Server::start(&[]);
    for (name, image) in [
        ("plain", archive.clone()),
        ("by-reference", format!("{archive}:example.com/team/app:v1")),
        ("by-tag", format!("{archive}:v1")),
    ] {
        server.deploy(name, &["--image", &image]);
        assert_eq!(server.get(name, "/"), (200, "one".to_owned()), "{image}");
    }
    let said = refused(&server, &format!("{archive}:v2"));
    assert!(
        said.contains("no image called 'v2', only example.com/team/app:v1"),
        "{said}"
    );
    server.finish();
}

#[test]
fn one_image_of_a_directory_is_deployed_by_its_tag() {
    if !can_copy("archives::one_image_of_a_directory_is_deployed_by_its_tag") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}", dir.path().join("images").display());
    for (word, tag) in [("one", "v1"), ("two", "v2")] {
        copy(&image(dir.path(), word), &format!("{layout}:{tag}"));
    }
    let file = dir.path().join("all.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(dir.path().join("images"))
        .arg("-cf")
        .arg(&file)
        .arg(".")
        .status()
        .unwrap();
    assert!(packed.success());
    let archive = format!("oci-archive:{}", file.display());
    let server = Server::start(&[]);
    for (name, image, word) in [
        ("dir-one", format!("{layout}:v1"), "one"),
        ("dir-two", format!("{layout}:v2"), "two"),
        ("file-one", format!("{archive}:v1"), "one"),
        ("file-two", format!("{archive}:v2"), "two"),
    ] {
        server.deploy(name, &["--image", &image]);
        assert_eq!(server.get(name, "/"), (200, word.to_owned()), "{image}");
    }
    for (image, words) in [
        (format!("{layout}:v3"), ["'v3'", "v1, v2"]),
        (format!("{archive}:v3"), ["'v3'", "v1, v2"]),
        (archive, ["several images", "v1, v2"]),
    ] {
        let said = refused(&server, &image);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    server.finish();
}
