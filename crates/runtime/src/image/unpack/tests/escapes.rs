//! Names and links that would lead out of the layer.

use super::*;

#[test]
fn names_that_could_leave_the_layer_are_refused() {
    for (name, wanted) in [
        ("../secret", EntryProblem::ParentDirectory),
        ("a/../../secret", EntryProblem::ParentDirectory),
        ("a/..", EntryProblem::ParentDirectory),
        ("..", EntryProblem::ParentDirectory),
        ("/etc/passwd", EntryProblem::Absolute),
        ("a\0b", EntryProblem::BadName),
        (&"n".repeat(300), EntryProblem::TooLong),
        (&"d/".repeat(3000), EntryProblem::TooLong),
    ] {
        let place = Place::new();
        let (named, found) = problem(place.unpack(&[file(name, b"evil")]));
        assert_eq!(found, wanted, "{name}");
        assert!(!named.is_empty() && named.len() < 300);
        place.assert_outside_untouched();
    }
}

#[test]
fn links_that_could_leave_the_layer_are_refused() {
    if skip(crate::skip::here!()) {
        return;
    }
    let link = tar_crate::EntryType::Link;
    let symlink = tar_crate::EntryType::Symlink;
    for (items, wanted) in [
        (
            vec![of_kind("x", link, "/etc/passwd")],
            EntryProblem::AbsoluteLink {
                target: "/etc/passwd".into(),
            },
        ),
        (
            vec![of_kind("x", link, "../secret")],
            EntryProblem::EscapingLink {
                target: "../secret".into(),
            },
        ),
        (
            vec![of_kind("x", link, "none")],
            EntryProblem::MissingLink {
                target: "none".into(),
            },
        ),
        (
            vec![of_kind("x", link, "x")],
            EntryProblem::MissingLink { target: "x".into() },
        ),
        (
            vec![directory("d"), of_kind("x", link, "d")],
            EntryProblem::MissingLink { target: "d".into() },
        ),
        (
            vec![
                of_kind("up", symlink, ".."),
                of_kind("x", link, "up/secret"),
            ],
            EntryProblem::EscapingLink {
                target: "up/secret".into(),
            },
        ),
        (
            vec![of_kind("up", symlink, ".."), file("up/secret", b"evil")],
            EntryProblem::ThroughSymlink,
        ),
        (
            vec![of_kind("up", symlink, ".."), directory("up/new")],
            EntryProblem::ThroughSymlink,
        ),
        (
            vec![of_kind("up", symlink, ".."), file("up/.wh.secret", b"")],
            EntryProblem::ThroughSymlink,
        ),
        (
            vec![of_kind("up", symlink, ".."), file("up/.wh..wh..opq", b"")],
            EntryProblem::ThroughSymlink,
        ),
        (
            vec![of_kind("etc", symlink, "/etc"), file("etc/evil", b"evil")],
            EntryProblem::ThroughSymlink,
        ),
        (
            vec![file("f", b""), file("f/x", b"")],
            EntryProblem::NotADirectory,
        ),
    ] {
        let place = Place::new();
        let (_named, found) = problem(place.unpack(&items));
        assert_eq!(found, wanted);
        place.assert_outside_untouched();
        assert!(!Path::new("/etc/evil").exists());
    }
}

#[test]
fn writing_to_a_symlink_replaces_it() {
    if skip(crate::skip::here!()) {
        return;
    }
    let place = Place::new();
    let symlink = tar_crate::EntryType::Symlink;
    place
        .unpack(&[
            of_kind("a", symlink, "../secret"),
            Item {
                mode: 0o600,
                ..file("a", b"mine")
            },
            of_kind("d", symlink, ".."),
            directory("d"),
            file("d/secret", b"mine too"),
        ])
        .unwrap();
    assert_eq!(std::fs::read_to_string(place.path("a")).unwrap(), "mine");
    assert_eq!(
        std::fs::read_to_string(place.path("d/secret")).unwrap(),
        "mine too"
    );
    place.assert_outside_untouched();
}
