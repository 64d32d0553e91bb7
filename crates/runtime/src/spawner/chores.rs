//! Copying and deleting of whole trees, and writing out memory, each in a child, so that making sandboxes never waits for a disk.
//!
//! Owns: where half a copy and what is being deleted lie, and their way to and from their places. Doesn't: copy
//! (`sandbox::shift`) or decide what goes.
//!
//! Invariants
//! 1. A tree is in its place whole or not at all: it comes and goes by a rename.
//! 2. What an interrupted chore left is found by [`left_over`] and removed at the next start.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use utsuwa_model::instance::RootfsSpec;

use super::child::Child;
use super::protocol::{Reply, SpawnError};
use crate::precedence;
use crate::sandbox::cgroup::SandboxCgroup;
use crate::sandbox::{layers, reclaim, shift};

/// Part of the names of what is not in its place.
pub(super) const PARTIAL: &str = ".partial";

/// Something under way.
#[derive(Debug)]
pub(super) struct Chore {
    /// `None`: nobody waits for it.
    request: Option<u64>,
    child: Child,
    copies: Vec<Copy>,
}

#[derive(Debug, Clone)]
struct Copy {
    layer: PathBuf,
    partial: PathBuf,
    target: PathBuf,
}

/// A chore that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) request: Option<u64>,
    pub(super) result: Result<Reply, SpawnError>,
    /// Half copies.
    pub(super) rubbish: Vec<PathBuf>,
}

impl Chore {
    /// Begins to copy what is missing of `rootfs`; `None` when nothing is.
    ///
    /// # Errors
    /// [`SpawnError::LayerMissing`], or what the system says.
    pub(super) fn copy(
        request: u64,
        images: &Path,
        rootfs: &RootfsSpec,
        reserve: u64,
    ) -> Result<Option<Self>, SpawnError> {
        let mut copies: Vec<Copy> = Vec::new();
        for diff_id in &rootfs.layers {
            let hex = layers::digest_hex(diff_id)?;
            let copy = Copy {
                layer: images.join("layers").join(hex),
                partial: shift::all_of(images, rootfs.uid_base)
                    .join(format!("{hex}{PARTIAL}-{request}")),
                target: shift::place(images, rootfs.uid_base, hex),
            };
            if copy.target.is_dir() || copies.iter().any(|known| known.target == copy.target) {
                continue;
            }
            if !copy.layer.is_dir() {
                return Err(SpawnError::LayerMissing {
                    diff_id: diff_id.clone(),
                });
            }
            copies.push(copy);
        }
        if copies.is_empty() {
            return Ok(None);
        }
        let directory = shift::all_of(images, rootfs.uid_base);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|e| SpawnError::sys("mkdir", e, directory.display().to_string()))?;
        let (work, uid_base) = (copies.clone(), rootfs.uid_base);
        let child = Child::fork("copy layers", precedence::goes_last, || {
            for copy in &work {
                remove(&copy.partial)?;
                shift::copy_layer(&copy.layer, &copy.partial, uid_base, reserve)?;
            }
            Ok(())
        })?;
        Ok(Some(Self {
            request: Some(request),
            child,
            copies,
        }))
    }

    /// Takes `trees` out of their places and begins to delete them; `None` when none of them is there.
    ///
    /// # Errors
    /// What the system says. What was taken away before stays away.
    pub(super) fn remove(
        request: Option<u64>,
        trees: &[PathBuf],
    ) -> Result<Option<Self>, SpawnError> {
        let mut gone = Vec::new();
        for tree in trees {
            match out_of_its_place(tree) {
                Ok(path) => gone.push(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(SpawnError::sys("rename", error, tree.display().to_string()));
                }
            }
        }
        if gone.is_empty() {
            return Ok(None);
        }
        let child = Child::fork("delete", precedence::goes_last, || {
            gone.iter().try_for_each(|tree| remove(tree))
        })?;
        Ok(Some(Self {
            request,
            child,
            copies: Vec::new(),
        }))
    }

    /// Begins to write the memory of a frozen sandbox to swap.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn reclaim(request: u64, cgroups: Vec<SandboxCgroup>) -> Result<Self, SpawnError> {
        let child = Child::fork("give memory back", precedence::goes_last, || {
            cgroups.iter().try_for_each(reclaim::page_out)
        })?;
        Ok(Self {
            request: Some(request),
            child,
            copies: Vec::new(),
        })
    }

    pub(super) fn waits_for(&self) -> BorrowedFd<'_> {
        self.child.waits_for()
    }

    /// Whether it has ended.
    pub(super) fn advance(&mut self) -> bool {
        self.child.advance()
    }

    /// Puts copies in their places.
    pub(super) fn finish(mut self) -> Ended {
        let said: Result<(), SpawnError> = serde_json::from_slice(self.child.finish())
            .unwrap_or_else(|_| {
                Err(SpawnError::SandboxGone {
                    detail:
                        "the process that copied, deleted or wrote out ended before it was done"
                            .to_owned(),
                })
            });
        let mut rubbish = Vec::new();
        let result = said.and_then(|()| {
            self.copies
                .iter()
                .try_for_each(|copy| put_in_place(copy, &mut rubbish))
        });
        if result.is_err() {
            rubbish.extend(self.copies.into_iter().map(|copy| copy.partial));
        }
        Ended {
            request: self.request,
            result: result.map(|()| Reply::Done),
            rubbish,
        }
    }
}

fn put_in_place(copy: &Copy, rubbish: &mut Vec<PathBuf>) -> Result<(), SpawnError> {
    let context = || copy.target.display().to_string();
    if !copy.layer.is_dir() {
        // Removed meanwhile, with the copies that were there then: this one must not come back alone.
        return Err(SpawnError::Invalid {
            field: context(),
            why: "its layer was removed while it was copied".to_owned(),
        });
    }
    match fs::rename(&copy.partial, &copy.target) {
        Ok(()) => Ok(()),
        // Copied twice at the same time: the first one stays.
        Err(_) if copy.target.is_dir() => {
            rubbish.push(copy.partial.clone());
            Ok(())
        }
        Err(error) => Err(SpawnError::sys("rename", error, context())),
    }
}

/// In the names of what is being deleted.
const GONE: &str = "-gone-";

/// Renames `tree` so that [`left_over`] would find it. Also what was never finished: its name may be taken by the next attempt
/// while this one is still being deleted.
fn out_of_its_place(tree: &Path) -> io::Result<PathBuf> {
    let name = tree.file_name().unwrap_or_default().to_string_lossy();
    if name.contains(GONE) {
        return fs::symlink_metadata(tree).map(|_| tree.to_owned());
    }
    // One of the same name may still be being deleted.
    let free = (0u32..)
        .map(|number| tree.with_file_name(format!("{name}{PARTIAL}{GONE}{number}")))
        .find(|path| fs::symlink_metadata(path).is_err())
        .ok_or(io::ErrorKind::AlreadyExists)?;
    fs::rename(tree, &free)?;
    Ok(free)
}

fn remove(tree: &Path) -> Result<(), SpawnError> {
    match fs::remove_dir_all(tree) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SpawnError::sys(
            "unlink",
            error,
            format!("delete {}", tree.display()),
        )),
        _ => Ok(()),
    }
}

/// What chores and unpackings left in `images` that were interrupted. Only when none can be under way.
pub(super) fn left_over(images: &Path) -> Vec<PathBuf> {
    let shifted = images.join("shifted");
    let mut directories = vec![images.join("layers"), shifted.clone()];
    directories.extend(entries(&shifted));
    directories
        .iter()
        .flat_map(|directory| entries(directory))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains(PARTIAL))
        })
        .collect()
}

/// All copies of a layer, whoever's they are.
pub(super) fn copies_of(images: &Path, hex: &str) -> Vec<PathBuf> {
    entries(&images.join("shifted"))
        .iter()
        .map(|base| base.join(hex))
        .collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_is_out_of_its_place_at_once_and_found_if_interrupted() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path();
        let layer = images.join("layers/00");
        let copy = images.join("shifted/500000/00");
        for tree in [&layer, &copy] {
            fs::create_dir_all(tree).unwrap();
        }
        assert_eq!(left_over(images), Vec::<PathBuf>::new());
        assert_eq!(copies_of(images, "00"), std::slice::from_ref(&copy));
        let first = out_of_its_place(&layer).unwrap();
        assert!(!layer.exists() && first.is_dir());
        fs::create_dir(&layer).unwrap();
        let second = out_of_its_place(&layer).unwrap();
        assert!(first.is_dir() && second.is_dir() && first != second);
        assert_eq!(out_of_its_place(&second).unwrap(), second);
        assert_eq!(
            out_of_its_place(&layer).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        let whole = out_of_its_place(&images.join("shifted/500000")).unwrap();
        let mut found = left_over(images);
        found.sort();
        let mut all = vec![first, second, whole];
        all.sort();
        assert_eq!(found, all);
    }
}
