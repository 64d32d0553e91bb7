//! What is too much, or not an archive at all.

use super::*;

#[test]
fn bombs_are_stopped() {
    if skip(crate::skip::here!()) {
        return;
    }
    let zeros = vec![0; 8 << 20];
    let archive = archive(&[file("zeros", &zeros)]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&archive).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = zstd::encode_all(archive.as_slice(), 1).unwrap();
    let open = Limits {
        reserve_bytes: 0,
        ..Limits::default()
    };
    let id = Digest::of(&archive);
    for blob in [&gzip, &zstd] {
        let outcome = Place::new().unpack_with(
            blob,
            id,
            Limits {
                max_bytes: 1 << 20,
                ..open
            },
        );
        assert_eq!(outcome, Err(UnpackError::TooLarge { limit: 1 << 20 }));
        let outcome = Place::new().unpack_with(
            blob,
            id,
            Limits {
                ratio_free_bytes: 1 << 20,
                ..open
            },
        );
        assert!(
            matches!(outcome, Err(UnpackError::Ratio { .. })),
            "{outcome:?}"
        );
        let outcome = Place::new().unpack_with(
            blob,
            id,
            Limits {
                reserve_bytes: u64::MAX,
                ..open
            },
        );
        assert!(
            matches!(outcome, Err(UnpackError::DiskReserve { .. })),
            "{outcome:?}"
        );
        assert_eq!(
            Place::new().unpack_with(blob, id, open).unwrap().bytes,
            8 << 20
        );
    }
    let names: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let many: Vec<Item<'_>> = names.iter().map(|name| file(name, b"")).collect();
    let many = self::archive(&many);
    let outcome = Place::new().unpack_with(
        &many,
        Digest::of(&many),
        Limits {
            max_entries: 10,
            ..open
        },
    );
    assert_eq!(outcome, Err(UnpackError::TooManyEntries { limit: 10 }));
}

/// On a file system of its own with 3,000 inodes, seen by this thread only.
fn on_small_disk(unpack: impl FnOnce(&Place) + Send) {
    let run = || {
        let place = Place::new();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let flags = rustix::mount::MountPropagationFlags::PRIVATE
            | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).unwrap();
        let options = c"nr_inodes=3000,size=64m";
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", place.path(""), "tmpfs", flags, options).unwrap();
        unpack(&place);
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

#[test]
fn entries_without_data_count_against_the_reserve_too() {
    if skip(crate::skip::here!()) {
        return;
    }
    let names: Vec<String> = (0..5000).map(|number| format!("d{number}")).collect();
    let items: Vec<Item<'_>> = names.iter().map(|name| directory(name)).collect();
    let archive = archive(&items);
    let with = |place: &Place, reserve_bytes, reserve_inodes| {
        let limits = Limits {
            reserve_bytes,
            reserve_inodes,
            ..Limits::default()
        };
        place.unpack_with(&archive, Digest::of(&archive), limits)
    };
    on_small_disk(|place| {
        let Err(UnpackError::InodeReserve { available, reserve }) = with(place, 0, 1100) else {
            panic!("inodes were not looked at");
        };
        assert_eq!(reserve, 1100);
        assert!(available > 0, "found before the disk was full");
    });
    on_small_disk(|place| {
        let outcome = with(place, 1 << 30, 0);
        let expected = matches!(outcome, Err(UnpackError::DiskReserve { .. }));
        assert!(expected, "{outcome:?}");
    });
}

#[test]
fn a_wrong_or_broken_stream_is_refused() {
    if skip(crate::skip::here!()) {
        return;
    }
    let honest = archive(&[file("a", b"b")]);
    let open = Limits {
        reserve_bytes: 0,
        ..Limits::default()
    };
    let outcome = Place::new().unpack_with(&honest, Digest::of(b"other"), open);
    assert_eq!(
        outcome,
        Err(UnpackError::DiffId {
            expected: Digest::of(b"other"),
            found: Digest::of(&honest)
        })
    );
    // What stands behind the end of the archive counts for the digest too.
    let longer = [honest.clone(), vec![1; 5000]].concat();
    Place::new()
        .unpack_with(&longer, Digest::of(&longer), open)
        .unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&honest).unwrap();
    let gzip = encoder.finish().unwrap();
    for blob in [
        &gzip[..gzip.len() - 20],
        &b"BZh91AY&SY"[..],
        &b"not a tar archive"[..],
        &honest[..700],
    ] {
        let outcome = Place::new().unpack_with(blob, Digest::of(&honest), open);
        assert!(
            matches!(outcome, Err(UnpackError::Format { .. })),
            "{outcome:?}"
        );
    }
}
