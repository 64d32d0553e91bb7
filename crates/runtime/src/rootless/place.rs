//! Where a user's server keeps what dies with a boot, and that the server's id may go there.
//!
//! Owns: the directory of one user's servers, and (in the server's own mount namespace) the way to a directory below one that
//! is closed to everybody else, such as a home. Doesn't: change a mode that the user has set.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};

use super::process::Known;
use super::residents;
use crate::keeper::entries;

/// Notes the process that holds the namespaces.
pub(super) const HOLDER: &str = "holder.pid";
/// How often a start begins again because another server's end took the base away between two steps.
const BASE_ATTEMPTS: u32 = 8;

/// `/run/user/UID/utsuwa` where that lasts: for a user who lingers. The end of any other's last session removes the directory, even
/// from the sight of who lives in namespaces of their own; so theirs is in `/tmp`. Not taken from the environment: whoever looks for
/// the server later may have another.
#[must_use]
pub fn runtime_base(uid: u32) -> PathBuf {
    let [session, own] = bases(uid);
    if lingers(uid) && session.parent().is_some_and(Path::is_dir) {
        session
    } else {
        own
    }
}

/// Whether the session manager keeps what it made for the user from boot to shutdown.
fn lingers(uid: u32) -> bool {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
    let name = user.ok().flatten().map(|user| user.name);
    name.is_some_and(|name| Path::new("/var/lib/systemd/linger").join(name).exists())
}

/// Where a user's servers may be, whatever session there was when they were started.
pub(super) fn bases(uid: u32) -> [PathBuf; 2] {
    [
        PathBuf::from(format!("/run/user/{uid}/utsuwa")),
        PathBuf::from(format!("/tmp/utsuwa-{uid}")),
    ]
}

/// Of the server `id`: where it is already, though a session may have begun or ended since it was started; else where it is made.
pub(crate) fn runtime_dir(uid: u32, id: &str) -> PathBuf {
    choose(bases(uid).map(|base| base.join(id)), uid).unwrap_or_else(|| runtime_base(uid).join(id))
}

/// The directories of the user's servers in which somebody lives.
pub(crate) fn inhabited(uid: u32) -> Vec<PathBuf> {
    let lives = |run: &PathBuf| {
        Known::noted(&run.join(HOLDER)).is_some() || residents::keeper(run, uid).is_some()
    };
    let bases = bases(uid);
    let own = bases.iter().filter(|base| is_own(base, uid));
    own.flat_map(|base| entries(base)).filter(lives).collect()
}

/// Whether the user's servers made it. In their own namespace they are root.
fn is_own(base: &Path, uid: u32) -> bool {
    fs::symlink_metadata(base).is_ok_and(|found| found.is_dir() && [0, uid].contains(&found.uid()))
}

/// Where somebody lives, or else did. `/tmp` is everybody's: what lies there and isn't the user's says nothing.
fn choose(places: [PathBuf; 2], uid: u32) -> Option<PathBuf> {
    let own = |run: &&PathBuf| run.parent().is_some_and(|base| is_own(base, uid));
    let lives = |run: &PathBuf| Known::noted(&run.join(HOLDER)).is_some();
    let has_keeper = |run: &PathBuf| run.join("keeper.json").exists();
    let places: Vec<&PathBuf> = places.iter().filter(own).collect();
    let found = places.iter().find(|run| lives(run));
    let found = found.or_else(|| places.iter().find(|run| has_keeper(run)));
    found.map(|run| (*run).clone())
}

/// Makes the directory of the server `id` below `base`; it must be the user's own, for `/tmp` is everybody's.
pub(super) fn make(base: &Path, id: &str, uid: u32) -> io::Result<PathBuf> {
    // Another server of the user's that ends takes an empty base away, perhaps just now.
    for _ in 0..BASE_ATTEMPTS {
        match make_once(base, id, uid) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    make_once(base, id, uid)
}

fn make_once(base: &Path, id: &str, uid: u32) -> io::Result<PathBuf> {
    let mut builder = fs::DirBuilder::new();
    // As /run/utsuwa: the server's id passes, and what is in it is closed to others by itself.
    match builder.mode(0o711).create(base) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(base)?;
    if !found.is_dir() || found.uid() != uid {
        let text = format!("{} is there and not yours: have it removed", base.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    fs::set_permissions(base, fs::Permissions::from_mode(0o711))?;
    let directory = base.join(id);
    match builder.mode(0o711).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(directory),
    }
}

/// Has `paths` (directories, absolute, without links) reachable for ids that are neither their owner nor in their group, in this
/// mount namespace alone: the topmost directory that is closed to them makes place for an empty one, in which only the way to
/// `paths` exists. So the server sees nothing else of a home.
pub(super) fn open_ways(paths: &[PathBuf]) -> io::Result<()> {
    let at = |step: &str, path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{step} {}: {error}", path.display()))
    };
    // Taken before anything lies over them.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut trees = Vec::new();
    for path in paths {
        if let Some(closed) = closed_ancestor(path)? {
            let tree = rustix::mount::open_tree(rustix::fs::CWD, path, flags)
                .map_err(|e| at("open", path, e.into()))?;
            trees.push((path, closed, tree));
        }
    }
    let mut covered: Vec<&Path> = Vec::new();
    for (path, closed, tree) in &trees {
        if !covered.iter().any(|cover| closed.starts_with(cover)) {
            rustix::mount::mount(
                "utsuwa-way",
                closed,
                "tmpfs",
                MountFlags::NOSUID | MountFlags::NODEV,
                c"mode=755,size=64k,nr_inodes=64",
            )
            .map_err(|e| at("cover", closed, e.into()))?;
            covered.push(closed);
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|e| at("make", path, e))?;
        rustix::mount::move_mount(
            tree,
            c"",
            rustix::fs::CWD,
            *path,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|e| at("show", path, e.into()))?;
    }
    Ok(())
}

/// The topmost directory above `path` that others may not enter.
fn closed_ancestor(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    for directory in above {
        if fs::metadata(directory)?.mode() & 0o001 == 0 {
            return Ok(Some(directory.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_closed_directory_is_found() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let data = top.join("home/ann/.local/data");
        fs::create_dir_all(&data).unwrap();
        let open = |path: &Path, mode: u32| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(&top, 0o755);
        assert_eq!(closed_ancestor(&data).unwrap(), None);
        open(&top.join("home/ann/.local"), 0o700);
        open(&top.join("home/ann"), 0o750);
        assert_eq!(closed_ancestor(&data).unwrap(), Some(top.join("home/ann")));
        open(&data, 0o700);
        open(&top.join("home/ann"), 0o711);
        open(&top.join("home/ann/.local"), 0o711);
        assert_eq!(
            closed_ancestor(&data).unwrap(),
            None,
            "it is the server's own matter"
        );
    }

    #[test]
    fn a_server_stays_where_it_was_made() {
        let top = tempfile::tempdir().unwrap();
        let places = ["session", "own"].map(|name| top.path().join(name));
        let uid = rustix::process::geteuid().as_raw();
        let choose = |places: &[PathBuf; 2]| choose(places.clone(), uid);
        assert_eq!(choose(&places), None);
        for place in &places {
            fs::create_dir(place).unwrap();
        }
        fs::write(places[1].join("keeper.json"), "{}").unwrap();
        assert_eq!(choose(&places).as_ref(), Some(&places[1]));
        // A session has begun, and another server there, perhaps of a boot before.
        fs::write(places[0].join("keeper.json"), "{}").unwrap();
        assert_eq!(choose(&places).as_ref(), Some(&places[0]));
        let own = Known::of(std::process::id(), "holder").unwrap();
        own.note(&places[1].join(HOLDER)).unwrap();
        assert_eq!(choose(&places).as_ref(), Some(&places[1]));
        if uid != 0 {
            assert_eq!(super::choose(places, uid + 1), None, "somebody else's");
        }
    }

    #[test]
    fn a_runtime_directory_of_somebody_else_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let base = top.path().join("utsuwa");
        assert_eq!(make(&base, "ab12", uid).unwrap(), base.join("ab12"));
        assert_eq!(make(&base, "ab12", uid).unwrap(), base.join("ab12"));
        assert_eq!(fs::metadata(&base).unwrap().mode() & 0o777, 0o711);
        assert!(
            make(&base, "ab12", uid + 1)
                .unwrap_err()
                .to_string()
                .contains("not yours")
        );
        let link = top.path().join("link");
        std::os::unix::fs::symlink(&base, &link).unwrap();
        assert!(make(&link, "ab12", uid).is_err());
    }
}
