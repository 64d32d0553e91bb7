//! Images with what images should not have, and apps that misbehave while they run: each is told in the user's words, or does no harm.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Server, can_run, host_architecture, pack, processes, until};
use crate::skip::here;

const PATIENCE: Duration = Duration::from_secs(30);

/// An image with busybox, to whose root `script` (a shell's, at that root) adds, and `/srv/say`, run for each connection at 8080.
pub(crate) fn image(dir: &Path, name: &str, script: &str, say: &str) -> String {
    let root = dir.join(name);
    let prepare = format!(
        "set -e; mkdir -p \"$0\"/bin \"$0\"/srv \"$0\"/etc \"$0\"/tmp; cp /bin/busybox \"$0\"/bin/busybox; cd \"$0\"; {script}"
    );
    let made = Command::new("sh")
        .args(["-c", &prepare])
        .arg(&root)
        .status();
    assert!(made.unwrap().success(), "{name}");
    // All of the request is read, or the answer would be lost with the connection.
    let say = format!(
        "#!/bin/busybox sh\nwhile IFS= read -r line && [ ${{#line}} -gt 1 ]; do :; done\nprintf 'HTTP/1.0 200 OK\\r\\n\\r\\n'\n{say}\n"
    );
    std::fs::write(root.join("srv/say"), say).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root.join("srv/say"), executable).unwrap();
    let config =
        json!({"Entrypoint": ["/bin/busybox", "nc", "-ll", "-p", "8080", "-e", "/srv/say"]});
    let archive = pack(&root, &config, host_architecture(), false);
    format!("oci-archive:{}", archive.display())
}

/// A device, a setuid file and files of high owners: the service runs, none of them has power, and `images` says what was left out.
#[test]
fn devices_setuid_files_and_high_owners_run_without_their_powers() {
    if !can_run(here!()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&[]);
    let image = image(
        dir.path(),
        "odd",
        "mknod srv/disk b 8 0; cp bin/busybox srv/setuid; chmod 6755 srv/setuid; : >srv/nobody; chown 65534:65534 srv/nobody; \
         : >srv/last; chown 65535:65535 srv/last; : >srv/high; chown 65536:70000 srv/high; : >srv/highest; chown 4294967294 srv/highest",
        "cd /srv; [ -e disk ] || echo no disk; /bin/busybox stat -c '%n %u:%g %a' setuid nobody last high highest",
    );
    server.deploy("odd", &["--image", &image]);
    let (status, body) = server.get("odd", "/");
    assert_eq!(status, 200);
    for line in [
        "no disk",
        "setuid 0:0 6755",
        "nobody 65534:65534",
        "last 65535:65535",
        "high 65534:65534",
        "highest 65534:0",
    ] {
        assert!(body.contains(line), "{line} in {body}");
    }
    let listed = server.ok(&["images", "list"]);
    let output = server.utsuwa(&["images", "list"]);
    let said = format!("{listed}{}", String::from_utf8_lossy(&output.stderr));
    for words in [
        "1 device nodes or entries of unknown types left out",
        "2 entries of owners above 65535 given to nobody",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    server.finish();
}

/// Nothing is wrong with either: they are unpacked, run and removed.
#[test]
fn a_layer_of_100_000_files_and_a_path_of_4_000_characters() {
    if !can_run(here!()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&[]);
    // 20 names of 199 characters and 19 slashes are 3,999; a shell goes there step by step, as no system call takes it whole.
    let deep = "n=$(printf 'd%.0s' $(seq 199)); i=0; cd srv; while [ $i -lt 19 ]; do mkdir $n; cd $n; i=$((i+1)); done; echo found >$n";
    let say = "n=$(printf 'd%.0s' $(/bin/busybox seq 199)); cd /srv; i=0; while [ $i -lt 19 ]; do cd $n; i=$((i+1)); done; read -r it <$n; \
               pwd=$(/bin/busybox pwd); echo $it at ${#pwd}";
    let long = image(dir.path(), "long", deep, say);
    server.deploy("long", &["--image", &long]);
    let (status, body) = server.get("long", "/");
    assert_eq!((status, body.as_str()), (200, "found at 3804\n"));

    let few = image(
        dir.path(),
        "few",
        ":",
        "set -- /srv/100/*; echo $#; set -- /srv/*/1000; echo $#",
    );
    let many = changed(
        &few,
        dir.path(),
        "many",
        "for d in range(100):\n for f in range(1000): add(f'srv/{d + 1}/{f + 1}')",
    );
    let began = Instant::now();
    server.deploy("many", &["--image", &many]);
    println!(
        "a layer of 100,000 files was loaded and served after {:?}",
        began.elapsed()
    );
    let (status, body) = server.get("many", "/");
    assert_eq!((status, body.as_str()), (200, "1000\n100\n"));

    // A name that no system can have is refused with its reason.
    let bad = changed(
        &few,
        dir.path(),
        "bad",
        "add('/'.join(['d' * 199] * 21)[:4100])",
    );
    server.expect_warning("longer than the system allows");
    let output = server.utsuwa(&["deploy", "named", "--image", &bad]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("its name is longer than the system allows"),
        "{said}"
    );
    server.finish();
}

/// The image `from` with more in its layer: `entries` is Python that calls `add(PATH)` for each file, so that none has to be made
/// on a disk first and none has to be possible.
pub(crate) fn changed(from: &str, dir: &Path, name: &str, entries: &str) -> String {
    let script = r#"
import hashlib, io, json, sys, tarfile
source = tarfile.open(sys.argv[1])
files = {m.name.removeprefix("./"): source.extractfile(m).read() for m in source if m.isfile()}
blob = lambda entry: files["blobs/sha256/" + entry["digest"].split(":")[1]]
def put(entry, data):
    digest = hashlib.sha256(data).hexdigest()
    files["blobs/sha256/" + digest] = data
    entry["digest"], entry["size"] = "sha256:" + digest, len(data)
index = json.loads(files["index.json"])
manifest = json.loads(blob(index["manifests"][0]))
config = json.loads(blob(manifest["config"]))
layer = io.BytesIO(blob(manifest["layers"][0]))
with tarfile.open(fileobj=layer, mode="a", format=tarfile.PAX_FORMAT) as tar:
    add = lambda path: tar.addfile(tarfile.TarInfo(path))
    exec(sys.argv[3])
put(manifest["layers"][0], layer.getvalue())
config["rootfs"]["diff_ids"] = [manifest["layers"][0]["digest"]]
put(manifest["config"], json.dumps(config).encode())
put(index["manifests"][0], json.dumps(manifest).encode())
files["index.json"] = json.dumps(index).encode()
with tarfile.open(sys.argv[2], "w") as tar:
    for name, data in files.items():
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
"#;
    let archive = dir.join(format!("{name}.tar"));
    let made = Command::new("python3")
        .args(["-c", script, from.trim_start_matches("oci-archive:")])
        .args([&archive, Path::new(entries)])
        .status();
    assert!(made.unwrap().success(), "{name}");
    format!("oci-archive:{}", archive.display())
}

/// Less memory than the app needs at its start: the deploy fails and names the limit and the flag.
#[test]
fn limits_below_what_the_app_needs() {
    if !can_run(here!()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&[]);
    server.expect_warning("memory limit");
    let root = dir.path().join("large");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let grow = "x=x; while :; do x=$x$x; done";
    let config = json!({"Entrypoint": ["/bin/busybox", "sh", "-c", grow]});
    let archive = pack(&root, &config, host_architecture(), false);
    let output = server.utsuwa(&[
        "deploy",
        "large",
        "--image",
        &format!("oci-archive:{}", archive.display()),
        "--memory",
        "128Mi",
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("memory limit of 128Mi") && said.contains("--memory"),
        "{said}"
    );
    server.finish();
}

/// Children whose parent is gone: they are the first process's, and go with it; what they leave is nobody's.
#[test]
fn an_app_that_forks_and_orphans() {
    if !can_run(here!()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&[]);
    // Each request leaves two behind: one that lives on, in a session of its own, and one that ends unwaited for.
    let image = image(
        dir.path(),
        "forks",
        ":",
        "(/bin/busybox setsid /bin/busybox sleep 5151515 >/dev/null 2>&1 &); (: &); echo left",
    );
    server.deploy("forks", &["--image", &image, "--max-instances", "1"]);
    for _ in 0..20 {
        assert_eq!(server.get("forks", "/"), (200, "left\n".to_owned()));
    }
    let orphans = || {
        let all = processes();
        let named = |words: &[String]| words.iter().any(|word| word == "5151515");
        all.iter().filter(|(_, words)| named(words)).count()
    };
    assert!(orphans() >= 20, "{}", orphans());
    server.ok(&["services", "delete", "forks", "--quiet"]);
    until("the orphans to be gone", PATIENCE, || {
        (orphans() == 0).then_some(())
    });
    server.finish();
}
