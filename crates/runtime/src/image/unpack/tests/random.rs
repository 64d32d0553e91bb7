//! Archives that chance made.

use proptest::prelude::*;

use super::*;

fn component() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"..".to_vec()),
        Just(b".".to_vec()),
        Just(b"".to_vec()),
        Just(b"a".to_vec()),
        Just(b"up".to_vec()),
        Just(b"root".to_vec()),
        Just(b"secret".to_vec()),
        Just(b".wh.a".to_vec()),
        Just(b".wh..wh..opq".to_vec()),
        proptest::collection::vec(any::<u8>(), 1..6),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(component(), 1..5).prop_map(|parts| parts.join(&b'/'))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the names and links are, nothing outside the layer changes.
    #[test]
    fn no_entry_leaves_the_layer(entries in proptest::collection::vec((path(), path(), 0_u8..5), 1..8)) {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let place = Place::new();
        let mut items = vec![
            of_kind("up", tar_crate::EntryType::Symlink, ".."),
            of_kind("root", tar_crate::EntryType::Symlink, "/"),
        ];
        for (name, link, kind) in &entries {
            let (kind, content): (_, &[u8]) = match kind {
                0 => (tar_crate::EntryType::Regular, b"evil"),
                1 => (tar_crate::EntryType::Directory, b""),
                2 => (tar_crate::EntryType::Symlink, b""),
                3 => (tar_crate::EntryType::Link, b""),
                _ => (tar_crate::EntryType::Fifo, b""),
            };
            // PAX records end at a line break only by their length, but the writer of the crate takes no NUL in names.
            items.push(Item { name, kind, link, content, ..file("", b"") });
        }
        match place.unpack(&items) {
            Ok(report) => {
                mark_opaque(File::open(place.path("")).unwrap().as_fd(), &report.opaque).unwrap();
            }
            Err(UnpackError::Sys { call, name, errno }) => {
                // Links to nothing at all are the only calls the kernel itself refuses; a NUL in a target never gets there.
                prop_assert!(errno == libc::ENOENT || errno == libc::EINVAL, "{} {} {}", call, name, errno);
            }
            Err(_refused) => {}
        }
        place.assert_outside_untouched();
        let stat = rustix::fs::statat(CWD, place.outer.path(), AtFlags::empty()).unwrap();
        prop_assert_eq!(stat.st_mode & 0o7777, std::fs::metadata(place.outer.path()).unwrap().permissions().mode() & 0o7777);
    }
}
