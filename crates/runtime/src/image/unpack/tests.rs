mod escapes;
mod limits;
mod random;

use std::io::{Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD};
use tempfile::TempDir;

use super::*;

/// One entry to write.
struct Item<'a> {
    name: &'a [u8],
    kind: tar_crate::EntryType,
    link: &'a [u8],
    content: &'a [u8],
    mode: u32,
    uid: u64,
    pax: Vec<(&'a str, &'a [u8])>,
}

/// The crate that writes archives; `tar` here is our reader.
mod tar_crate {
    pub(super) use ::tar::{Builder, EntryType, Header};
}

fn file<'a>(name: &'a str, content: &'a [u8]) -> Item<'a> {
    Item {
        name: name.as_bytes(),
        kind: tar_crate::EntryType::Regular,
        link: b"",
        content,
        mode: 0o644,
        uid: 0,
        pax: vec![],
    }
}

fn of_kind<'a>(name: &'a str, kind: tar_crate::EntryType, link: &'a str) -> Item<'a> {
    Item {
        kind,
        link: link.as_bytes(),
        ..file(name, b"")
    }
}

fn directory(name: &str) -> Item<'_> {
    Item {
        mode: 0o755,
        ..of_kind(name, tar_crate::EntryType::Directory, "")
    }
}

/// An archive without the checks of an honest writer. Names longer than a header go into a PAX record.
fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tar_crate::Builder::new(Vec::new());
    for item in items {
        let mut header = tar_crate::Header::new_gnu();
        let mut pax = item.pax.clone();
        for (field, value, key) in [(0, item.name, "path"), (157, item.link, "linkpath")] {
            if value.len() <= 100 && !value.contains(&0) {
                header.as_mut_bytes()[field..field + value.len()].copy_from_slice(value);
            } else {
                pax.push((key, value));
            }
        }
        if !pax.is_empty() {
            builder.append_pax_extensions(pax).unwrap();
        }
        header.set_entry_type(item.kind);
        header.set_size(item.content.len() as u64);
        header.set_mode(item.mode);
        header.set_uid(item.uid);
        header.set_gid(item.uid);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        builder.append(&header, item.content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// `outer/layer` is the target; nothing else in `outer` may change.
struct Place {
    outer: TempDir,
}

impl Place {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        std::fs::create_dir(outer.path().join("layer")).unwrap();
        std::fs::write(outer.path().join("secret"), "untouched").unwrap();
        Self { outer }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.outer.path().join("layer").join(name)
    }

    fn unpack_with(
        &self,
        blob: &[u8],
        diff_id: Digest,
        limits: Limits,
    ) -> Result<UnpackReport, UnpackError> {
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(blob).unwrap();
        source.rewind().unwrap();
        let target = File::open(self.path("")).unwrap();
        unpack_layer(
            source,
            target.as_fd(),
            &UnpackSpec {
                diff_id,
                media_type: String::new(),
                limits,
            },
        )
    }

    fn unpack(&self, items: &[Item<'_>]) -> Result<UnpackReport, UnpackError> {
        let archive = archive(items);
        self.unpack_with(
            &archive,
            Digest::of(&archive),
            Limits {
                reserve_bytes: 0,
                ..Limits::default()
            },
        )
    }

    fn assert_outside_untouched(&self) {
        let mut names: Vec<String> = std::fs::read_dir(self.outer.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["layer", "secret"]);
        assert_eq!(
            std::fs::read_to_string(self.outer.path().join("secret")).unwrap(),
            "untouched"
        );
        assert_eq!(
            std::fs::metadata(self.outer.path().join("secret"))
                .unwrap()
                .nlink(),
            1
        );
    }
}

fn skip(test: &str) -> bool {
    let skip = !rustix::process::geteuid().is_root();
    if skip {
        crate::skip::skip(test, "ownership and whiteouts need root");
    }
    skip
}

fn problem(outcome: Result<UnpackReport, UnpackError>) -> (String, EntryProblem) {
    match outcome {
        Err(UnpackError::Entry { name, problem }) => (name, problem),
        other => panic!("expected a bad entry, got {other:?}"),
    }
}

#[test]
fn every_kind_of_entry_is_made() {
    if skip(crate::skip::here!()) {
        return;
    }
    let place = Place::new();
    let report = place
        .unpack(&[
            directory("./"),
            directory("./usr/"),
            Item {
                mode: 0o4755,
                uid: 1000,
                pax: vec![
                    ("SCHILY.xattr.user.note", b"hi"),
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ],
                ..file("./usr/tool", b"tool")
            },
            of_kind("usr/hard", tar_crate::EntryType::Link, "usr/tool"),
            of_kind("usr/soft", tar_crate::EntryType::Symlink, "/etc/passwd"),
            of_kind("usr/fifo", tar_crate::EntryType::Fifo, ""),
            of_kind("usr/null", tar_crate::EntryType::Char, ""),
            of_kind("usr/disk", tar_crate::EntryType::Block, ""),
            Item {
                uid: 1_000_000,
                ..file("missing/parents/file", b"x")
            },
            file("etc/.wh.gone", b""),
            file("var/cache/.wh..wh..opq", b""),
        ])
        .unwrap();
    let tool = std::fs::metadata(place.path("usr/tool")).unwrap();
    assert_eq!(
        (tool.mode() & 0o7777, tool.uid(), tool.gid(), tool.nlink()),
        (0o4755, 1000, 1000, 2)
    );
    assert_eq!(tool.mtime(), 1_000_000_000);
    assert_eq!(
        std::fs::read_link(place.path("usr/soft")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert!(
        std::fs::metadata(place.path("usr/fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert!(!place.path("usr/null").exists() && !place.path("usr/disk").exists());
    let whiteout = std::fs::symlink_metadata(place.path("etc/gone")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    // After everything inside was made.
    assert_eq!(
        std::fs::metadata(place.path("usr")).unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(
        std::fs::metadata(place.path("missing/parents/file"))
            .unwrap()
            .uid(),
        65_534
    );
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(place.path("usr/tool"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"hi");
    assert_eq!(
        (
            report.skipped,
            report.remapped_owners,
            report.skipped_attributes
        ),
        (2, 1, 1)
    );
    assert_eq!(report.opaque, [b"var/cache".to_vec()]);
    mark_opaque(File::open(place.path("")).unwrap().as_fd(), &report.opaque).unwrap();
    let length = rustix::fs::getxattr(
        place.path("var/cache"),
        "trusted.overlay.opaque",
        &mut value,
    )
    .unwrap();
    assert_eq!(&value[..length], b"y");
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    if skip(crate::skip::here!()) {
        return;
    }
    for items in [
        vec![
            file(".wh.d", b""),
            directory("d"),
            file("d/new", b"n"),
            file(".wh.f", b""),
            file("f", b"n"),
        ],
        vec![
            directory("d"),
            file("d/new", b"n"),
            file("f", b"n"),
            file(".wh.d", b""),
            file(".wh.f", b""),
        ],
        vec![
            file(".wh.d", b""),
            file("d/new", b"n"),
            file("f", b"n"),
            file(".wh.f", b""),
        ],
    ] {
        let place = Place::new();
        let report = place.unpack(&items).unwrap();
        assert_eq!(std::fs::read_to_string(place.path("d/new")).unwrap(), "n");
        assert_eq!(std::fs::read_to_string(place.path("f")).unwrap(), "n");
        assert_eq!(report.opaque, [b"d".to_vec()]);
    }
    for name in [".wh.", ".wh..", ".wh..."] {
        let place = Place::new();
        assert_eq!(
            problem(place.unpack(&[file(name, b"")])).1,
            EntryProblem::BadWhiteout,
            "{name}"
        );
    }
    let place = Place::new();
    assert_eq!(
        place.unpack(&[file(".wh..wh.plnk", b"")]).unwrap().skipped,
        1
    );
}

#[test]
fn a_directory_replaced_by_a_file_is_gone_whole() {
    if skip(crate::skip::here!()) {
        return;
    }
    let place = Place::new();
    let report = place
        .unpack(&[
            file("d/e/f", b"1"),
            of_kind("d/e/out", tar_crate::EntryType::Symlink, "../../../secret"),
            file("d/e/.wh..wh..opq", b""),
            file("d", b"now a file"),
        ])
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(place.path("d")).unwrap(),
        "now a file"
    );
    assert_eq!(report.opaque, Vec::<Vec<u8>>::new());
    place.assert_outside_untouched();
}

#[test]
fn sparse_files_get_their_holes() {
    if skip(crate::skip::here!()) {
        return;
    }
    let place = Place::new();
    place
        .unpack(&[Item {
            pax: vec![
                ("GNU.sparse.map", b"0,3,1048576,2"),
                ("GNU.sparse.size", b"2097152"),
            ],
            ..file("holes", b"abcde")
        }])
        .unwrap();
    let content = std::fs::read(place.path("holes")).unwrap();
    assert_eq!(
        (content.len(), &content[..3], &content[1_048_576..1_048_578]),
        (2_097_152, &b"abc"[..], &b"de"[..])
    );
    assert!(std::fs::metadata(place.path("holes")).unwrap().blocks() < 64);
    for map in [&b"5,1,0,1"[..], b"0,9", b"0,18446744073709551615"] {
        let place = Place::new();
        let item = Item {
            pax: vec![("GNU.sparse.map", map), ("GNU.sparse.size", b"8")],
            ..file("holes", b"ab")
        };
        assert_eq!(problem(place.unpack(&[item])).1, EntryProblem::BadSparseMap);
    }
}

#[test]
fn reports_travel_as_documents() {
    let report = UnpackReport {
        entries: 3,
        opaque: vec![vec![0xff, b'a']],
        ..UnpackReport::default()
    };
    for answer in [Ok(report), Err(UnpackError::TooManyEntries { limit: 4 })] {
        let document = serde_json::to_vec(&answer).unwrap();
        assert_eq!(read_report(document.as_slice()), answer);
    }
    assert!(matches!(
        read_report(&b""[..]),
        Err(UnpackError::Unavailable { .. })
    ));
}
