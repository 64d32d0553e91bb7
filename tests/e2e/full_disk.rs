//! A disk that runs full under a server: a deploy says so and leaves nothing half done, what serves goes on, and with room again the same
//! deploy works.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bad_images::image;
use crate::harness::{Registry, Server, can_run, skip};
use crate::skip::here;

const MIB: u64 = 1 << 20;

/// A small disk of its own, and a file that takes of it what the test wants.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=96m", "utsuwa-e2e-disk"])
            .arg(at)
            .status();
        assert!(mounted.unwrap().success());
        Self(at.to_owned())
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Somebody else's file grows until so much is left.
    fn leave(&self, bytes: u64) {
        let filler = self.0.join("filler");
        drop(std::fs::remove_file(&filler));
        let file = std::fs::File::create(&filler).unwrap();
        let taken = self.free().checked_sub(bytes).unwrap();
        let mode = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, mode, 0, taken).unwrap();
        assert!(self.free() <= bytes);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.display());
        }
    }
}

/// A server over such a disk that serves `hello`, with a reserve of 4 MiB.
fn served(dir: &Path, more: &[&str]) -> (Disk, Server) {
    let disk = Disk::mount(&dir.join("disk"));
    let file = dir.join("config.toml");
    std::fs::write(&file, "disk-reserve = \"4Mi\"\n").unwrap();
    let file = file.display().to_string();
    let server = Server::start_over(disk.0.join("data"), &[&["--config", &file], more].concat());
    server.deploy("hello", &[]);
    assert_eq!(server.get("hello", "/healthz").0, 200);
    (disk, server)
}

/// What the image store has of layers: unpacked ones, and what is on its way to be one.
fn layers(server: &Server) -> BTreeSet<PathBuf> {
    let images = server.data_dir().join("images");
    let mut found = BTreeSet::new();
    for folder in ["layers", "incoming", "unpacking"] {
        let entries = std::fs::read_dir(images.join(folder)).into_iter().flatten();
        found.extend(entries.flatten().map(|entry| entry.path()));
    }
    found
}

/// An image of 16 MiB more than busybox, all zeros.
fn large(dir: &Path) -> String {
    image(
        dir,
        "large",
        "/bin/busybox dd if=/dev/zero of=srv/zeros bs=1M count=16 2>/dev/null",
        "/bin/busybox wc -c </srv/zeros",
    )
}

/// The deploy of `args` fails, its words have all of `words`, `hello` serves, and no layer has come.
fn fails(server: &Server, args: &[&str], words: &[&str]) -> String {
    let before = layers(server);
    let output = server.utsuwa(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{args:?}: {said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    assert_eq!(layers(server), before, "nothing half done");
    assert_eq!(server.get("hello", "/healthz").0, 200, "it serves on");
    said
}

fn serves_large(server: &Server) {
    let (status, body) = server.get("large", "/");
    assert_eq!((status, body.trim()), (200, "16777216"));
}

#[test]
fn an_upload_that_does_not_fit_is_refused_whole() {
    if !can_run(here!()) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = large(dir.path());
    let (disk, server) = served(dir.path(), &[]);
    let deploy = [
        "deploy",
        "large",
        "--allow-unauthenticated",
        "--image",
        &image,
    ];
    disk.leave(12 * MIB);
    let words = [
        "large.tar",
        "Not enough disk space at",
        "4194304 are kept in reserve",
        "Free some space",
    ];
    fails(&server, &deploy, &words);
    let listed = server.ok(&["services", "list", "--format", "value(name)"]);
    assert!(!listed.contains("large"), "{listed}");
    disk.make_room();
    server.ok(&deploy);
    server.until_public("large");
    serves_large(&server);
    server.finish();
}

/// It comes compressed, so what it needs is known only while it is unpacked.
#[test]
fn a_pull_that_does_not_fit_fails_whole() {
    if !can_run(here!()) {
        return;
    }
    for program in ["skopeo", "docker-registry"] {
        if Command::new(program).arg("--version").output().is_err() {
            return skip(here!(), "skopeo or docker-registry is not installed");
        }
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let archive = large(dir.path());
    let registry = Registry::start();
    let archive = archive.strip_prefix("oci-archive:").unwrap();
    let image = registry.push(Path::new(archive), "large:1");
    let plain = registry.address.to_string();
    let (disk, mut server) = served(dir.path(), &["--insecure-registry", &plain]);
    server.expect_warning("No space left on device");
    let deploy = [
        "deploy",
        "large",
        "--allow-unauthenticated",
        "--image",
        &image,
    ];
    disk.leave(12 * MIB);
    let words = [
        &*image,
        "unpack layer",
        "No space left",
        "free some space on the disk",
    ];
    let said = fails(&server, &deploy, &words);
    assert!(said.contains("exists, but serves nothing"), "{said}");
    disk.make_room();
    server.ok(&deploy);
    server.until_public("large");
    serves_large(&server);
    server.finish();
}

/// Not even what was asked for can be written down.
#[test]
fn on_a_disk_without_any_room_nothing_is_changed() {
    if !can_run(here!()) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = large(dir.path());
    let (disk, mut server) = served(dir.path(), &[]);
    server.expect_warning("write the journal; entries are dropped");
    // A pass that has something to write just then says so, and comes again.
    server.expect_warning("the disk is full; nothing was written");
    let other = ["deploy", "hello", "--set-env-vars", "A=1"];
    let upload = [
        "deploy",
        "large",
        "--allow-unauthenticated",
        "--image",
        &image,
    ];
    disk.leave(0);
    fails(
        &server,
        &other,
        &["disk is full: nothing was changed", "Free space"],
    );
    fails(
        &server,
        &upload,
        &["large.tar", "incoming", "free some space on the disk"],
    );
    let (_, env) = server.get("hello", "/env");
    assert!(!env.contains("\"A\""), "{env}");
    // Nor does a restart need room.
    server.kill_9();
    server.up();
    assert_eq!(server.get("hello", "/healthz").0, 200);
    disk.make_room();
    server.ok(&other);
    let (_, env) = server.get("hello", "/env");
    assert!(env.contains("\"A\""), "{env}");
    server.ok(&upload);
    server.until_public("large");
    serves_large(&server);
    server.finish();
}
