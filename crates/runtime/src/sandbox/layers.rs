//! Layers seen with a service's own ids.
//!
//! Owns: the idmapped mounts of unpacked layers in this process's mount namespace, and those of shifted copies where that
//! can't be; for how long a mount is kept. Doesn't: unpack (`image`), copy (`shift`, by the housekeeper) or delete layers;
//! mount the overlay (`rootfs`).
//!
//! Invariants
//! 1. Mounts are named by one or two characters in the current directory, so that a hundred fit the kernel's 255 bytes of
//!    one mount option.
//! 2. They are read-only, without set-uid and devices, and seen by this process only.
//! 3. At most [`CEILING`] of them exist. One that goes may be in use: a running instance's overlay has its own.
//! 4. Nothing is copied here: a start never waits for a layer's size.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use utsuwa_model::instance::RootfsSpec;

use super::probe::Features;
use super::process::{IMAGE_BASE, user_namespace};
use super::{shift, sys};
use crate::spawner::SpawnError;

/// Mounts that are kept. Measured here: with 1,000 mounts in the namespace one more costs 40 µs, with 10,000 it costs
/// 220 µs, and fs.mount-max ends it at 100,000. A service has some ten layers: a hundred services stay ready.
const KEPT: usize = 1_000;
/// So many more may pile up while there is no idle moment; from then on letting go doesn't wait for one.
const BEHIND: usize = 2_000;
/// There are 62 + 62² names of one or two characters (invariant 1).
const CEILING: usize = 62 + 62 * 62;
/// Let go of at once, 40 µs each: in an idle moment, where a start that comes just then waits for it; and when behind.
const FEW: usize = 8;
const BATCH: usize = 64;

/// How ids are shifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Idmap,
    Copy,
    /// Not at all: the only service ids there are are those of images.
    AsTheyAre,
}

impl Method {
    /// What is possible for layers in `images`; `copy` where idmapping is not wanted.
    pub(crate) fn choose(features: &Features, images: &Path, copy: bool) -> Self {
        if crate::rootless::is_rootless() {
            return Self::AsTheyAre;
        }
        if copy {
            return Self::Copy;
        }
        match features.idmapped_overlay_on(images) {
            Ok(()) => Self::Idmap,
            Err(missing) => {
                tracing::info!(why = %missing, "layers are copied for each service: idmapped mounts are not possible here");
                Self::Copy
            }
        }
    }
}

/// One layer with the ids of one service: diff id as hex, uid base.
type Key = (String, u32);

#[derive(Debug)]
struct Mounted {
    /// Its name is `short_name` of it.
    number: usize,
    /// Layers of one root file system have the same value: they are used, and go, together.
    used: u64,
}

/// The layers in use by one spawner.
#[derive(Debug)]
pub(crate) struct Layers {
    images: PathBuf,
    method: Method,
    mounted: BTreeMap<Key, Mounted>,
    /// Numbers of mounts that nobody will use any more and that are still there.
    retired: VecDeque<usize>,
    /// Numbers below `next` that have no mount.
    free: Vec<usize>,
    next: usize,
    /// Grows with each use.
    clock: u64,
}

impl Layers {
    /// `images` holds `layers/` and `shifted/`; the current directory of this process is where mounts go.
    pub(crate) fn new(images: &Path, method: Method) -> Self {
        Self {
            images: images.to_owned(),
            method,
            mounted: BTreeMap::new(),
            retired: VecDeque::new(),
            free: Vec::new(),
            next: 0,
            clock: 0,
        }
    }

    /// Names for all layers of `rootfs` in the current directory, topmost first as overlay wants them, each once. They hold
    /// until the next call of this or of [`Self::let_go`].
    ///
    /// # Errors
    /// [`SpawnError::LayerMissing`], [`SpawnError::NotPrepared`] where a copy is needed and not there yet, or what mounting
    /// says.
    pub(crate) fn ensure(&mut self, rootfs: &RootfsSpec) -> Result<Vec<String>, SpawnError> {
        self.clock += 1;
        self.make_room(rootfs.layers.len());
        let mut names = Vec::with_capacity(rootfs.layers.len());
        let mut userns = None;
        for diff_id in rootfs.layers.iter().rev() {
            let hex = digest_hex(diff_id)?;
            let key = (hex.to_owned(), rootfs.uid_base);
            let number = match self.mounted.get_mut(&key) {
                Some(mounted) => {
                    mounted.used = self.clock;
                    mounted.number
                }
                None => {
                    let number = self.mount(diff_id, hex, rootfs.uid_base, &mut userns)?;
                    let used = self.clock;
                    self.mounted.insert(key, Mounted { number, used });
                    number
                }
            };
            let name = short_name(number);
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
    ) -> Result<usize, SpawnError> {
        let unpacked = self.images.join("layers").join(hex);
        if !unpacked.is_dir() {
            return Err(SpawnError::LayerMissing {
                diff_id: diff_id.to_owned(),
            });
        }
        let source = match self.method {
            Method::Idmap | Method::AsTheyAre => unpacked,
            Method::Copy => {
                let copy = shift::place(&self.images, uid_base, hex);
                if !copy.is_dir() {
                    return Err(SpawnError::NotPrepared {
                        diff_id: diff_id.to_owned(),
                    });
                }
                copy
            }
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
        let number = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        let attached = attach(&tree, &short_name(number));
        if attached.is_err() {
            self.free.push(number);
        }
        attached.map_err(|(call, e)| SpawnError::sys(call, e, context()))?;
        Ok(number)
    }

    /// No start shall use these mounts any more: those of one layer.
    pub(crate) fn forget_layer(&mut self, diff_id: &str) -> Result<(), SpawnError> {
        let hex = digest_hex(diff_id)?;
        self.retire(|(layer, _), _| layer == hex);
        Ok(())
    }

    /// The same for all layers of one service.
    pub(crate) fn forget_ids(&mut self, uid_base: u32) {
        self.retire(|(_, base), _| *base == uid_base);
    }

    fn retire(&mut self, which: impl Fn(&Key, &Mounted) -> bool) {
        let retired = &mut self.retired;
        self.mounted.retain(|key, mounted| {
            let goes = which(key, mounted);
            if goes {
                retired.push_back(mounted.number);
            }
            !goes
        });
    }

    /// Retires what was used longest ago, down to `keep` mounts (or somewhat fewer: those used together go together).
    fn retire_oldest(&mut self, keep: usize) {
        let mut used: Vec<u64> = self.mounted.values().map(|mounted| mounted.used).collect();
        used.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(oldest_kept) = used.get(keep.saturating_sub(1)).copied()
            && used.len() > keep
        {
            let cut = used.get(keep).copied() == Some(oldest_kept);
            self.retire(|_, mounted| {
                mounted.used < oldest_kept || (cut && mounted.used == oldest_kept)
            });
        }
    }

    /// Called when nobody waits: lets go of a few mounts that are too many.
    pub(crate) fn let_go(&mut self) {
        if self.mounted.len() > KEPT {
            // One sixteenth more, so that not every start that comes sorts them all.
            self.retire_oldest(KEPT - KEPT / 16);
        }
        let count = if self.is_behind() { BATCH } else { FEW };
        self.unmount(count);
    }

    /// Whether [`Self::let_go`] would do something.
    pub(crate) fn has_too_many(&self) -> bool {
        !self.retired.is_empty() || self.mounted.len() > KEPT
    }

    /// Whether it should be called before the next request.
    pub(crate) fn is_behind(&self) -> bool {
        self.mounted.len() + self.retired.len() > BEHIND
    }

    /// Only while requests come without any pause does a start have to wait for this.
    fn make_room(&mut self, wanted: usize) {
        if self.mounted.len() + self.retired.len() + wanted <= CEILING {
            return;
        }
        self.retire_oldest(KEPT);
        self.unmount(BATCH.max(wanted));
    }

    fn unmount(&mut self, count: usize) {
        for _ in 0..count {
            let Some(number) = self.retired.pop_front() else {
                return;
            };
            let name = short_name(number);
            let _ = rustix::mount::unmount(name.as_str(), UnmountFlags::DETACH);
            match std::fs::remove_dir(&name) {
                Ok(()) => self.free.push(number),
                // Its number is lost, nothing else: better than a mount under another's name.
                Err(error) => tracing::warn!(name, %error, "let go of a layer's mount"),
            }
        }
    }
}

fn attach(tree: &OwnedFd, name: &str) -> Result<(), (&'static str, std::io::Error)> {
    std::fs::create_dir(name).map_err(|e| ("mkdir", e))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", rustix::fs::CWD, name, flags).map_err(|e| {
        let _ = std::fs::remove_dir(name);
        ("move_mount", e.into())
    })
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

/// 0 → `a`, 61 → `9`, 62 → `aa`…: never one that means something to overlay or to us (upper directories begin with `_`).
fn short_name(mut number: usize) -> String {
    const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut name = Vec::new();
    loop {
        name.push(char::from(LETTERS[number % LETTERS.len()]));
        number /= LETTERS.len();
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
        let names: Vec<String> = (0..=CEILING).map(short_name).collect();
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), CEILING + 1);
        assert_eq!(
            [0, 61, 62].map(|number| names[number].as_str()),
            ["a", "9", "aa"]
        );
        assert!(names[..CEILING].iter().all(|name| name.len() <= 2));
        assert_eq!(names[CEILING].len(), 3, "there are no more short ones");
    }

    /// Mounts as if they had been made, `layers` for each of `services`, used in their order.
    fn with_mounts(services: u32, layers: usize) -> Layers {
        let mut all = Layers::new(Path::new("/nowhere"), Method::Idmap);
        for service in 0..services {
            all.clock += 1;
            for layer in 0..layers {
                let mounted = Mounted {
                    number: all.next,
                    used: all.clock,
                };
                all.mounted
                    .insert((format!("{layer:064x}"), service), mounted);
                all.next += 1;
            }
        }
        all
    }

    #[test]
    fn those_used_longest_ago_go_and_together() {
        let mut all = with_mounts(120, 10);
        all.retire_oldest(995);
        assert_eq!((all.mounted.len(), all.retired.len()), (990, 210));
        assert!(all.mounted.keys().all(|(_, service)| *service >= 21));
        let again = all.mounted.len();
        all.retire_oldest(995);
        assert_eq!(all.mounted.len(), again, "few enough: nothing goes");
        assert!(all.has_too_many(), "what is retired is not unmounted yet");
        assert!(!with_mounts(100, 10).has_too_many());
        assert!(with_mounts(101, 10).has_too_many());
    }

    #[test]
    fn a_service_or_a_layer_is_forgotten_whole_and_alone() {
        let mut all = with_mounts(3, 4);
        all.forget_ids(1);
        assert_eq!(all.retired, [4, 5, 6, 7]);
        all.forget_layer(&format!("sha256:{:064x}", 2)).unwrap();
        assert_eq!(all.retired, [4, 5, 6, 7, 2, 10]);
        assert_eq!(all.mounted.len(), 6);
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
