//! What tests with real sandboxes share: whether they can run here, and layers with a busybox.
#![allow(
    clippy::unwrap_used,
    clippy::allow_attributes,
    unreachable_pub,
    reason = "tests, and a module shared by them"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use utsuwa_runtime::sandbox::process::IMAGE_BASE;

/// Whether these tests can run here; says so when not.
pub fn possible(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        crate::skip::skip(test, "it makes namespaces and cgroups, which needs root");
        return false;
    }
    if !Path::new("/bin/busybox").exists() {
        crate::skip::skip(
            test,
            "it needs a static busybox at /bin/busybox (apt install busybox-static)",
        );
        return false;
    }
    true
}

/// The same with gVisor.
#[allow(dead_code, reason = "not every test binary runs instances on gVisor")]
pub fn runsc_possible(test: &str) -> bool {
    if !possible(test) {
        return false;
    }
    let there = utsuwa_runtime::sandbox::gvisor::installed();
    if let Err(why) = &there {
        crate::skip::skip(test, &format!("it needs runsc: {why} (apt install runsc)"));
    }
    there.is_ok()
}

/// Where layer number `number` lies below `layers`, and its diff id.
pub fn layer(layers: &Path, number: u8) -> (PathBuf, String) {
    let hex = format!("{number:02x}").repeat(32);
    (layers.join(&hex), format!("sha256:{hex}"))
}

/// Makes layer `number` by `fill`, then gives all of it to the images' ids.
pub fn make_layer(layers: &Path, number: u8, fill: impl FnOnce(&Path)) -> String {
    let (root, diff_id) = layer(layers, number);
    fs::create_dir_all(&root).unwrap();
    fill(&root);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    give_to_images(&root);
    diff_id
}

/// A root directory with a busybox, known by the names of `applets`.
pub fn put_busybox(root: &Path, applets: &[&str]) {
    for directory in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in applets {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

fn give_to_images(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    // A file with several names is met several times.
    let image_id = |id: u32| id % IMAGE_BASE + IMAGE_BASE;
    lchown(
        path,
        Some(image_id(metadata.uid())),
        Some(image_id(metadata.gid())),
    )
    .unwrap();
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give_to_images(&entry.unwrap().path());
        }
    }
}
