//! Directories in memory that the service asked for, mounted into the instance's root.
//!
//! Owns: finding the mount points and making what is missing of them, and the file systems. Doesn't: check the template
//! (`model`). Runs as the instance's own root, inside its user namespace and its root: what is mounted has no privilege of the
//! host's, and what is written is charged to the instance, because its own processes write it.
//!
//! Invariants
//! 1. The image decides nothing but what lies in its own root: links are followed as the program would follow them, inside the
//!    root (`IN_ROOT`), never through /proc (`NO_MAGICLINKS`), and never into another mount (`NO_XDEV`), so that no link puts a
//!    volume over /proc, /sys or /dev. (CVE-2021-30465, CVE-2022-23648: a link that was exchanged or followed while mounting.
//!    Here nothing of the instance runs yet, and the descriptor that was found is the one that is mounted on.)
//! 2. Every volume is mounted nosuid and nodev.
//! 3. What may only be read is written before the program runs, and never after: directories for the volumes below it, the
//!    files that every instance has, the mode of /tmp, the working directory.
//! 4. A volume below another lies in that one, whatever the order in which they were named.
//!
//! Failure: [`SpawnError::Rootfs`] with the mount path and what the image has there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use utsuwa_model::instance::{MemoryVolume, MountPoint};

use super::tree::{attach_at, mount_with};
use crate::sandbox::{rootfs, sys};
use crate::spawner::SpawnError;

/// Directories of the image's root.
pub(super) const IN_THE_IMAGE: u32 = 0o755;
/// Volumes and directories in them: everybody may write, as in Kubernetes, for the program need not run as root.
const IN_A_VOLUME: u32 = 0o777;
/// What links and `..` led through was renamed while it was looked up: by nobody here, but the kernel can't know.
const ATTEMPTS: usize = 8;

/// What is to be seen at a path.
struct Wanted<'a> {
    point: &'a MountPoint,
    parts: Vec<&'a str>,
    /// Attached nowhere at first, then at the path.
    tree: OwnedFd,
}

/// What is mounted and can still be written, though the program must not.
#[must_use]
pub(super) struct Unsealed<'a>(Vec<Wanted<'a>>);

impl Unsealed<'_> {
    /// Makes it read-only, once what every instance has was written into its root.
    pub(super) fn seal(self) -> Result<(), SpawnError> {
        for one in self.0 {
            let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
            sys::mount_setattr(one.tree.as_fd(), read_only, None, false)
                .map_err(|e| SpawnError::sys("mount_setattr", e, one.point.path.clone()))?;
        }
        Ok(())
    }
}

/// Mounts all of them below `root`. `shared` are mounts of those that other containers see too, in their order. On `hidden`, volumes are mounted whole of which parts are seen, or in several places.
pub(super) fn mount<'a>(
    root: &OwnedFd,
    hidden: &OwnedFd,
    volumes: &'a [MemoryVolume],
    shared: Vec<OwnedFd>,
) -> Result<Unsealed<'a>, SpawnError> {
    let mut wanted = Vec::new();
    let mut shared = shared.into_iter();
    for volume in volumes {
        let given = if volume.shared.is_empty() {
            None
        } else {
            let missing = || refused(&volume.shared, "the volume did not come along");
            Some(shared.next().ok_or_else(missing)?)
        };
        trees(volume, given, hidden, &mut wanted)?;
    }
    // Those above first: what is mounted later would hide what is below it.
    wanted.sort_by_key(|one: &Wanted<'_>| one.parts.len());
    for (number, one) in wanted.iter().enumerate() {
        let target = mount_point(root, &wanted[..number], one)?;
        attach_at(&one.tree, &target, &one.point.path)?;
    }
    wanted.retain(|one| one.point.read_only);
    Ok(Unsealed(wanted))
}

/// The trees of one volume, one for each place where it is seen.
fn trees<'a>(
    volume: &'a MemoryVolume,
    given: Option<OwnedFd>,
    hidden: &OwnedFd,
    wanted: &mut Vec<Wanted<'a>>,
) -> Result<(), SpawnError> {
    let whole = given.map_or_else(|| new(volume), Ok)?;
    let mut add = |point: &'a MountPoint, tree| {
        let parts = parts(&point.path);
        wanted.push(Wanted { point, parts, tree });
    };
    if let [point] = volume.mounts.as_slice()
        && parts(&point.sub_path).is_empty()
    {
        add(point, whole);
        return Ok(());
    }
    // Only what is mounted somewhere can be cloned.
    attach_at(&whole, hidden, "volume")?;
    for point in &volume.mounts {
        let path = point.path.as_str();
        let seen = descend(whole.as_fd(), &parts(&point.sub_path), IN_A_VOLUME, path)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&seen, c"", flags)
            .map_err(|e| SpawnError::sys("open_tree", e, path))?;
        add(point, tree);
    }
    Ok(())
}

fn new(volume: &MemoryVolume) -> Result<OwnedFd, SpawnError> {
    let size = volume.size.0.to_string();
    let inodes = rootfs::inodes(volume.size.0).to_string();
    let mode = format!("{IN_A_VOLUME:o}");
    let options = [
        ("size", Some(size.as_str())),
        ("nr_inodes", Some(inodes.as_str())),
        ("mode", Some(mode.as_str())),
    ];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    mount_with("tmpfs", &options, attributes)
}

/// The directory to mount on, made if it is missing: in the deepest volume that is above it, else in the image's root.
fn mount_point(
    root: &OwnedFd,
    mounted: &[Wanted<'_>],
    one: &Wanted<'_>,
) -> Result<OwnedFd, SpawnError> {
    let above = mounted
        .iter()
        .filter(|above| one.parts.starts_with(&above.parts))
        .max_by_key(|above| above.parts.len());
    let (base, rest, mode) = match above {
        Some(above) => (
            above.tree.as_fd(),
            &one.parts[above.parts.len()..],
            IN_A_VOLUME,
        ),
        None => (root.as_fd(), one.parts.as_slice(), IN_THE_IMAGE),
    };
    let path = one.point.path.as_str();
    let found = descend(base, rest, mode, path)?;
    if is_same(&found, base, path)? {
        return Err(refused(
            path,
            "it leads to the root itself, by a symbolic link in the image",
        ));
    }
    Ok(found)
}

/// Whether both are the same directory.
pub(super) fn is_same(a: impl AsFd, b: impl AsFd, path: &str) -> Result<bool, SpawnError> {
    let place = |fd: BorrowedFd<'_>| {
        rustix::fs::fstat(fd)
            .map(|stat| (stat.st_dev, stat.st_ino))
            .map_err(|e| SpawnError::sys("fstat", e, path))
    };
    Ok(place(a.as_fd())? == place(b.as_fd())?)
}

/// The directory `parts` below `base`; what is missing of it is made with `mode`.
pub(super) fn descend(
    base: BorrowedFd<'_>,
    parts: &[&str],
    mode: u32,
    path: &str,
) -> Result<OwnedFd, SpawnError> {
    let mut here = open(base, ".").map_err(|e| SpawnError::sys("openat2", e, path))?;
    let mut so_far = String::new();
    for part in parts {
        if !so_far.is_empty() {
            so_far.push('/');
        }
        so_far.push_str(part);
        let opened = match open(base, &so_far) {
            Err(Errno::NOENT) => {
                make(&here, part, mode).map_err(|errno| explain(path, errno))?;
                open(base, &so_far)
            }
            other => other,
        };
        here = opened.map_err(|errno| explain(path, errno))?;
    }
    Ok(here)
}

fn open(base: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let mut last = Errno::AGAIN;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(base, path, how, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => last = Errno::AGAIN,
            Err(errno) => {
                last = errno;
                break;
            }
            Ok(opened) => return Ok(opened),
        }
    }
    Err(last)
}

fn make(parent: &OwnedFd, name: &str, mode: u32) -> Result<(), Errno> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode))?;
    // The umask cut it.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

fn explain(path: &str, errno: Errno) -> SpawnError {
    let why = match errno {
        Errno::XDEV => {
            "a symbolic link in the image leads from there into /proc, /sys, /dev or another volume; mount the volume elsewhere"
        }
        Errno::LOOP => {
            "symbolic links in the image lead from there in a circle or into /proc; mount the volume elsewhere"
        }
        Errno::EXIST => {
            "a symbolic link in the image leads from there to where nothing is; mount the volume elsewhere, or make its target"
        }
        Errno::NOTDIR => "it is not a directory in the image; mount the volume elsewhere",
        other => return SpawnError::sys("openat2", other, format!("mount a volume at {path}")),
    };
    refused(path, why)
}

pub(super) fn refused(path: &str, why: &str) -> SpawnError {
    SpawnError::Rootfs {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

pub(super) fn parts(path: &str) -> Vec<&str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect()
}
