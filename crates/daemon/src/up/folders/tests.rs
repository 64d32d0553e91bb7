use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use super::{FOLDERS, Writer, can_be_entered, make};
use utsuwa_runtime::privilege::ServerUser;

/// As of a file of an image: neither root's nor a server's.
const IMAGES_FILE: u32 = 1_000_033;

fn user(uid: u32) -> ServerUser {
    ServerUser {
        uid,
        gid: uid + 1,
        shown: format!("uid {uid}"),
    }
}

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        crate::skip::skip(test, "giving files away needs root");
    }
    root
}

/// Owner, group, mode.
fn of(path: &Path) -> (u32, u32, u32) {
    let file = fs::symlink_metadata(path).unwrap();
    (file.uid(), file.gid(), file.mode() & 0o7777)
}

/// A file with its folders, all of `owner`.
fn plant(root: &Path, name: &str, owner: u32) {
    let mut path = root.to_owned();
    for component in name.split('/') {
        path.push(component);
        if path.ends_with(name) {
            fs::write(&path, "content").unwrap();
        } else if !path.exists() {
            fs::create_dir(&path).unwrap();
        } else {
            continue;
        }
        chown(&path, Some(owner), Some(owner + 1)).unwrap();
    }
}

#[test]
fn folders_that_root_uses_can_only_be_changed_by_root() {
    if !is_root("folders_that_root_uses_can_only_be_changed_by_root") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    make(&data, &user(64_500)).unwrap();
    assert_eq!(of(&data), (0, 64_501, 0o750));
    for (name, writer) in FOLDERS {
        let expected = match writer {
            Writer::Root | Writer::RootTree => (0, 64_501, 0o750),
            Writer::Server | Writer::ServerAndOperator => (64_500, 64_501, 0o700),
        };
        assert_eq!(of(&data.join(name)), expected, "{name}");
        let mut parent = data.join(name);
        assert!(
            parent.pop() && of(&parent).0 == 0,
            "whoever owns the folder of {name} can exchange it"
        );
    }
}

#[test]
fn a_link_in_the_place_of_a_folder_is_refused_and_nothing_behind_it_changes() {
    if !is_root("a_link_in_the_place_of_a_folder_is_refused_and_nothing_behind_it_changes") {
        return;
    }
    for (name, _) in FOLDERS {
        let place = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (place.path().join("data"), place.path().join("elsewhere"));
        make(&data, &user(64_500)).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(elsewhere.join("shadow"), "secret").unwrap();
        fs::set_permissions(elsewhere.join("shadow"), fs::Permissions::from_mode(0o600)).unwrap();
        // As an older layout let the server do it.
        chown(&data, Some(64_500), Some(64_501)).unwrap();
        fs::remove_dir_all(data.join(name)).unwrap();
        symlink(&elsewhere, data.join(name)).unwrap();

        let error = format!("{:#}", make(&data, &user(64_500)).unwrap_err());
        assert!(
            error.starts_with(&format!("{} is a link", data.join(name).display())),
            "{error}"
        );
        assert_eq!(of(&elsewhere), (0, 0, 0o755), "{name}");
        assert_eq!(of(&elsewhere.join("shadow")), (0, 0, 0o600), "{name}");

        fs::remove_file(data.join(name)).unwrap();
        make(&data, &user(64_500)).unwrap();
    }
}

#[test]
fn links_among_the_servers_files_give_nothing_away() {
    if !is_root("links_among_the_servers_files_give_nothing_away") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (data, secret) = (place.path().join("data"), place.path().join("secret"));
    make(&data, &user(64_500)).unwrap();
    fs::write(&secret, "secret").unwrap();
    let planted = data.join("state/state.sqlite");
    fs::hard_link(&secret, &planted).unwrap();
    let error = format!("{:#}", make(&data, &user(64_500)).unwrap_err());
    assert!(
        error.starts_with(&format!("{} is a hard link", planted.display())),
        "{error}"
    );
    fs::remove_file(&planted).unwrap();
    symlink(&secret, &planted).unwrap();
    let error = format!("{:#}", make(&data, &user(64_500)).unwrap_err());
    assert!(
        error.starts_with(&format!("{} is a link", planted.display())),
        "{error}"
    );
    assert_eq!(of(&secret).0, 0);
}

#[test]
fn files_follow_a_server_that_has_another_user_now() {
    if !is_root("files_follow_a_server_that_has_another_user_now") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let (first, second) = (user(64_500), user(997));
    make(&data, &first).unwrap();
    let servers = [
        "state/state.sqlite",
        "keys/ca-key.pem",
        "journal/p/r/s/journal.jsonl",
        "images/blobs/sha256/00",
        "images/incoming/1/0",
        "images/index/index.json",
    ];
    for name in servers {
        plant(&data, name, first.uid);
    }
    plant(&data, "images/layers/00/etc/passwd", IMAGES_FILE);
    plant(&data, "logs/p/r/s/segment", 0);
    make(&data, &second).unwrap();
    for name in servers {
        let mut path = data.join(name);
        while path != data && path != data.join("images") {
            assert_eq!(
                (of(&path).0, of(&path).1),
                (second.uid, second.gid),
                "{}",
                path.display()
            );
            path.pop();
        }
    }
    let layer = data.join("images/layers/00/etc/passwd");
    assert_eq!(
        (of(&layer).0, of(&layer).1),
        (IMAGES_FILE, IMAGES_FILE + 1),
        "owners in layers are those of the image"
    );
    let log = data.join("logs/p/r/s/segment");
    assert_eq!(
        (of(&log).0, of(&log).1),
        (0, second.gid),
        "the server reads logs, and root writes them"
    );

    // An operator's copy, put back while everything else is as it should be.
    plant(&data, "state/restored", 0);
    make(&data, &second).unwrap();
    assert_eq!(of(&data.join("state/restored")).0, second.uid);
}

#[test]
fn trees_deeper_than_ours_are_refused() {
    if !is_root("trees_deeper_than_ours_are_refused") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    make(&data, &user(64_500)).unwrap();
    fs::create_dir_all(data.join("state/1/2/3/4/5/6/7/8/9")).unwrap();
    let error = format!("{:#}", make(&data, &user(64_500)).unwrap_err());
    assert!(
        error.contains("state/1/2/3/4/5/6/7/8 lies deeper"),
        "{error}"
    );
}

#[test]
fn a_folder_above_that_is_closed_to_the_server_is_named() {
    let place = tempfile::tempdir().unwrap();
    let open = |mode| {
        fs::set_permissions(place.path(), fs::Permissions::from_mode(mode)).unwrap();
        can_be_entered(&place.path().join("not/made/yet"), &user(64_500))
    };
    let closed = open(0o700).unwrap_err();
    let closed = closed.downcast_ref::<super::Refusal>().unwrap();
    let shown = place.path().canonicalize().unwrap().display().to_string();
    assert!(closed.message.contains(&shown) && closed.message.contains("mode 0700"));
    assert!(closed.hint.contains("chmod o+x"), "{}", closed.hint);
    assert!(open(0o750).is_err(), "its group is another one");
    assert!(open(0o711).is_ok());
    // Itself it may be closed: it is opened at each start.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(can_be_entered(place.path(), &user(64_500)).is_ok());
}
