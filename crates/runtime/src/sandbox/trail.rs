//! What a program looked up in its root file system, and looking it up again ahead of the next start.
//!
//! Every instance has an overlay of its own, which knows no name at first. A program that begins by reading a thousand files (Python,
//! Node) has the kernel look each up for the first time, at some 10 µs. Somebody who walks the same way on another processor is
//! there earlier.
//!
//! Owns: finding the names an overlay knows, and walking them. Doesn't: decide when, or keep them (`spawner::trails`).
//!
//! Invariants
//! 1. Nothing is opened but directories whose names are known already: paths are only looked up, so that no device, pipe or
//!    program of an instance is touched.
//! 2. No look leaves the root file system: not by a link, not by a mount, not by `..`.
//! 3. It is done with the rights of the file system's owner, not with those of the host.
//! 4. What is found is bounded, and so are the names that are looked at, whatever the instance made of its file system. Not the
//!    time: the kernel reads a directory of several layers whole before it says its first name. Who learns bounds that.
//!
//! A trail is text: the names of one directory after another, from the root on, parents first, each ended by a NUL. Before those of
//! a directory stands its path with a slash at its end, which no name has. So a thousand files of Python take some 30 KB, not 80.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use super::sys;

/// Names in one trail: their entries in the kernel are charged to nobody, some 1 KiB each.
const NAMES: usize = 2_048;
/// Bytes of one trail.
const BYTES: usize = 128 << 10;
/// Names that are looked at for one.
const LOOKED_AT: usize = 50_000;
/// After each name and each path; neither contains it.
const END: char = '\0';

const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const LIST: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What the program `pid` has looked up in its root file system since that was mounted. Empty where the kernel can't say (before
/// Linux 5.12). Takes file system rights from the calling thread.
///
/// # Errors
/// There is no such process any more, its root file system isn't `owner`'s, or it may not be looked into.
pub fn of(pid: u32, owner: u32) -> Result<String, Errno> {
    at(&root_of(pid), owner)
}

/// The same of the root file system that `/proc` shows at `root`.
///
/// # Errors
/// As [`of`].
pub fn at(root: &str, owner: u32) -> Result<String, Errno> {
    enter(root, owner).map(|root| learn(root.as_fd()))
}

/// Where the root file system of a process is found.
pub(crate) fn root_of(pid: u32) -> String {
    format!("/proc/{pid}/root")
}

/// Looks up everything on `trail` in the root file system that `/proc` shows at `root`. What isn't there is passed by. Takes file
/// system rights from the calling thread.
///
/// # Errors
/// As [`of`].
pub(crate) fn walk(root: &str, owner: u32, trail: &str) -> Result<(), Errno> {
    let root = enter(root, owner)?;
    follow(root.as_fd(), trail);
    Ok(())
}

/// A root file system, and from now on no more rights in it than its owner has. Those are needed, too: the kernel
/// says what it knows of an idmapped layer to owners only, for others it would have to read access lists.
///
/// One that isn't `owner`'s is another one, of a process or a file that has got the number of one that ended.
fn enter(root: &str, owner: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&root)?;
    if found.st_uid != owner {
        return Err(Errno::SRCH);
    }
    sys::become_for_files(found.st_uid, found.st_gid);
    // Whoever changes who it is for files has to ask for this anew.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(root)
}

fn learn(root: BorrowedFd<'_>) -> String {
    let mut trail = String::new();
    let (mut names, mut looked_at) = (0, 0);
    let mut directories: VecDeque<String> = VecDeque::from([String::new()]);
    while let Some(directory) = directories.pop_front() {
        let at = if directory.is_empty() {
            "."
        } else {
            &directory
        };
        let Ok(opened) = rustix::fs::openat2(root, at, LIST, Mode::empty(), INSIDE) else {
            continue;
        };
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 << 10];
        let mut entries = RawDir::new(&opened, &mut buffer);
        let mut is_said = directory.is_empty();
        while let Some(Ok(entry)) = entries.next() {
            looked_at += 1;
            if looked_at > LOOKED_AT {
                return trail;
            }
            let Some(name) = usable(entry.file_name()) else {
                continue;
            };
            if !is_known(opened.as_fd(), name) {
                continue;
            }
            if names == NAMES || trail.len() + directory.len() + name.len() + 3 > BYTES {
                return trail;
            }
            names += 1;
            if !is_said {
                trail.extend([&directory, "/"]);
                trail.push(END);
                is_said = true;
            }
            trail.push_str(name);
            trail.push(END);
            if entry.file_type() == FileType::Directory {
                directories.push_back(joined(&directory, name));
            }
        }
    }
    trail
}

fn joined(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

/// Whether the kernel has an entry for `name` without looking it up. It may say no of one it has, when somebody changes something
/// just then.
fn is_known(directory: BorrowedFd<'_>, name: &str) -> bool {
    let known = INSIDE | ResolveFlags::CACHED;
    rustix::fs::openat2(directory, name, LOOK, Mode::empty(), known).is_ok()
}

fn usable(name: &CStr) -> Option<&str> {
    name.to_str()
        .ok()
        .filter(|name| !matches!(*name, "." | ".."))
}

/// How many are there. A directory is walked to once, its names are looked up from there.
fn follow(root: BorrowedFd<'_>, trail: &str) -> usize {
    let mut found = 0;
    let mut directory = Some(root.try_clone_to_owned()).and_then(Result::ok);
    for said in said(trail) {
        match (said, &directory) {
            (Said::Directory(path), _) => {
                let flags = LOOK | OFlags::DIRECTORY;
                directory = rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE).ok();
            }
            (Said::Name(name), Some(directory)) => {
                let looked = rustix::fs::openat2(directory, name, LOOK, Mode::empty(), INSIDE);
                found += usize::from(looked.is_ok());
            }
            (Said::Name(_), None) => {}
        }
    }
    found
}

/// What a trail consists of.
enum Said<'a> {
    /// The names that follow are in this directory, relative to the root.
    Directory(&'a str),
    Name(&'a str),
}

fn said(trail: &str) -> impl Iterator<Item = Said<'_>> {
    trail.split_terminator(END).map(|word| {
        word.strip_suffix('/')
            .map_or(Said::Name(word), Said::Directory)
    })
}

/// How many names a trail has.
pub(crate) fn length(trail: &str) -> usize {
    let names = said(trail).filter(|said| matches!(said, Said::Name(_)));
    names.count()
}

/// The paths of a trail, relative to the root.
pub fn paths(trail: &str) -> impl Iterator<Item = String> {
    let mut directory = "";
    said(trail).filter_map(move |said| match said {
        Said::Directory(path) => {
            directory = path;
            None
        }
        Said::Name(name) => Some(joined(directory, name)),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_trail_has_parents_first_and_leaves_by_no_link() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "").unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/b/file"), "").unwrap();
        symlink(outside.path(), folder.path().join("a/link")).unwrap();
        let root = open(folder.path());
        let all = "missing\0a/\0link\0missing\0a/b/\0file\0../\0secret\0a/link/\0secret\0";
        assert_eq!(follow(root.as_fd(), all), 2);
        for one in [
            "a/link/secret\0",
            "../secret\0",
            "/etc/passwd\0",
            "a/link/\0secret\0",
            "/etc/\0passwd\0",
            "../\0secret\0",
            "a/b/\0../../../secret\0",
            "/\0secret\0",
        ] {
            assert_eq!(follow(root.as_fd(), one), 0, "{one}");
        }
        let trail = learn(root.as_fd());
        assert_eq!(follow(root.as_fd(), &trail), 4, "{trail}");
        let mut found: Vec<String> = paths(&trail).collect();
        assert_eq!(found[0], "a");
        found.sort_unstable();
        assert_eq!(found, ["a", "a/b", "a/b/file", "a/link"]);
    }

    #[test]
    fn a_trail_ends_somewhere() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..NAMES + 10 {
            fs::write(folder.path().join(format!("file-{number}")), "").unwrap();
        }
        let trail = learn(open(folder.path()).as_fd());
        assert_eq!(paths(&trail).count(), NAMES);
        assert_eq!(length(&trail), NAMES);
    }
}
