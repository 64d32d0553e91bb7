//! Layers seen with a service's own ids.
//!
//! Owns: the idmapped mounts of unpacked layers in this process's mount namespace, and chowned copies where that can't be.
//! Doesn't: unpack (`image`) or delete layers; mount the overlay (`rootfs`).
//!
//! Invariants
//! 1. Mounts are named by one or two characters in the current directory, so that a hundred fit the kernel's 255 bytes of
//!    one mount option.
//! 2. They are read-only, without set-uid and devices, and seen by this process only.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use utsuwa_model::instance::RootfsSpec;

use super::process::{IMAGE_BASE, user_namespace};
use super::{shift, sys};
use crate::spawner::SpawnError;

/// How ids are shifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Idmap,
    Copy,
}

/// The layers in use by one spawner.
#[derive(Debug)]
pub(crate) struct Layers {
    images: PathBuf,
    method: Method,
    /// (diff id as hex, uid base) → name in the current directory.
    names: BTreeMap<(String, u32), String>,
    next: u32,
}

impl Layers {
    /// `images` holds `layers/` and `shifted/`; the current directory of this process is where mounts go.
    pub(crate) fn new(images: &Path, method: Method) -> Self {
        Self {
            images: images.to_owned(),
            method,
            names: BTreeMap::new(),
            next: 0,
        }
    }

    /// Names for all layers of `rootfs` in the current directory, topmost first as overlay wants them, each once.
    ///
    /// # Errors
    /// [`SpawnError::LayerMissing`], or what mounting says.
    pub(crate) fn ensure(&mut self, rootfs: &RootfsSpec) -> Result<Vec<String>, SpawnError> {
        let mut names = Vec::with_capacity(rootfs.layers.len());
        let mut userns = None;
        for diff_id in rootfs.layers.iter().rev() {
            let hex = digest_hex(diff_id)?;
            let key = (hex.to_owned(), rootfs.uid_base);
            let name = match self.names.get(&key) {
                Some(name) => name.clone(),
                None => {
                    let name = self.mount(diff_id, hex, rootfs.uid_base, &mut userns)?;
                    self.names.insert(key, name.clone());
                    name
                }
            };
            // The same layer twice: the upper one hides the lower one altogether, and overlay refuses duplicates.
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn mount(
        &mut self,
        diff_id: &str,
        hex: &str,
        uid_base: u32,
        userns: &mut Option<OwnedFd>,
    ) -> Result<String, SpawnError> {
        let unpacked = self.images.join("layers").join(hex);
        if !unpacked.is_dir() {
            return Err(SpawnError::LayerMissing {
                diff_id: diff_id.to_owned(),
            });
        }
        let source = match self.method {
            Method::Idmap => unpacked,
            Method::Copy => shift::ensure(
                &unpacked,
                &self.images.join("shifted").join(uid_base.to_string()),
                hex,
                uid_base,
            )?,
        };
        let context = || format!("mount layer {diff_id} for ids {uid_base}…");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, &source, flags)
            .map_err(|e| SpawnError::sys("open_tree", e, context()))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
        if self.method == Method::Idmap && userns.is_none() {
            *userns = Some(user_namespace(IMAGE_BASE, uid_base)?);
        }
        sys::mount_setattr(
            tree.as_fd(),
            u64::from(attributes.bits()),
            userns.as_ref().map(AsFd::as_fd),
            false,
        )
        .map_err(|e| SpawnError::sys("mount_setattr", e, context()))?;
        let name = short_name(self.next);
        self.next += 1;
        std::fs::create_dir(&name).map_err(|e| SpawnError::sys("mkdir", e, context()))?;
        rustix::mount::move_mount(
            &tree,
            c"",
            rustix::fs::CWD,
            name.as_str(),
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|e| SpawnError::sys("move_mount", e, context()))?;
        Ok(name)
    }

    /// Lets go of every mount of a layer. Running instances keep theirs.
    pub(crate) fn forget(&mut self, diff_id: &str) -> Result<(), SpawnError> {
        let hex = digest_hex(diff_id)?;
        let gone: Vec<(String, u32)> = self
            .names
            .keys()
            .filter(|(layer, _)| layer == hex)
            .cloned()
            .collect();
        for key in gone {
            if let Some(name) = self.names.remove(&key) {
                let _ = rustix::mount::unmount(name.as_str(), UnmountFlags::DETACH);
                let _ = std::fs::remove_dir(&name);
            }
        }
        Ok(())
    }
}

/// The hexadecimal part of `sha256:…`, checked: it becomes a file name.
pub(crate) fn digest_hex(diff_id: &str) -> Result<&str, SpawnError> {
    diff_id
        .strip_prefix("sha256:")
        .filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
        .ok_or_else(|| SpawnError::Invalid {
            field: "diff id".to_owned(),
            why: format!("{diff_id:?} is not sha256: and 64 lowercase hexadecimal digits"),
        })
}

/// 0 → `a`, 25 → `z`, 26 → `aa`…: never one that means something to overlay or to us (upper directories begin with `_`).
fn short_name(mut number: u32) -> String {
    let mut name = Vec::new();
    loop {
        name.push(char::from(
            b'a' + u8::try_from(number % 26).expect("a remainder of 26"),
        ));
        number /= 26;
        if number == 0 {
            return name.iter().rev().collect();
        }
        number -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_short_and_different() {
        let names: Vec<String> = (0..800).map(short_name).collect();
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), 800);
        assert_eq!(
            (names[0].as_str(), names[25].as_str(), names[26].as_str()),
            ("a", "z", "aa")
        );
        assert!(names[..700].iter().all(|name| name.len() <= 2));
    }

    #[test]
    fn a_digest_that_would_be_a_path_is_refused() {
        for bad in [
            "sha256:../../etc",
            "sha512:00",
            "sha256:",
            &format!("sha256:{}", "A".repeat(64)),
        ] {
            assert!(
                matches!(digest_hex(bad), Err(SpawnError::Invalid { .. })),
                "{bad}"
            );
        }
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(digest_hex(&good).unwrap(), "0a".repeat(32));
    }
}
