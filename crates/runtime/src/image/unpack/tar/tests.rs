#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::Read;

use proptest::prelude::*;

use super::*;

fn header(name: &str, kind: u8, size: u64) -> [u8; BLOCK] {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(5);
    header.set_cksum();
    *header.as_bytes()
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut padded = content.to_vec();
    padded.resize(content.len().next_multiple_of(BLOCK), 0);
    padded
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let content: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    [
        header("pax", b'x', content.len() as u64).to_vec(),
        padded(&content),
    ]
    .concat()
}

/// Entries with their data.
fn read(stream: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, UnpackError> {
    let mut reader = TarReader::new(stream);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        loop {
            let data = reader.data()?;
            if data.is_empty() {
                break;
            }
            content.extend_from_slice(data);
            let used = data.len();
            reader.consume(used);
        }
        entries.push((entry, content));
    }
    Ok(entries)
}

#[test]
fn extended_headers_beat_the_plain_one() {
    let stream = [
        pax(&[
            ("path", b"a/long/name"),
            ("uid", b"70000"),
            ("mtime", b"-1.25"),
            ("size", b"3"),
            ("SCHILY.xattr.user.k", b"a=b\n"),
        ]),
        header("short", b'0', 0).to_vec(),
        padded(b"abc"),
        header("next", b'5', 77).to_vec(),
        vec![0; 1024],
    ]
    .concat();
    let entries = read(&stream).unwrap();
    let (first, content) = &entries[0];
    assert_eq!(
        (first.path.as_slice(), first.uid, first.mtime),
        (&b"a/long/name"[..], 70_000, (-2, 750_000_000))
    );
    assert_eq!(first.xattrs, [(b"user.k".to_vec(), b"a=b\n".to_vec())]);
    assert_eq!(content, b"abc");
    // Directories carry no data, whatever their header says.
    assert_eq!(
        (entries[1].0.kind, entries[1].1.len(), entries.len()),
        (Kind::Directory, 0, 2)
    );
}

#[test]
fn what_the_common_writer_makes_is_read() {
    let long = "d/".repeat(120) + "file";
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o4755);
    archive
        .append_data(&mut header, &long, &b"data"[..])
        .unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    archive.append_link(&mut header, "link", &long).unwrap();
    let entries = read(&archive.into_inner().unwrap()).unwrap();
    assert_eq!(
        (
            entries[0].0.path.as_slice(),
            entries[0].0.mode,
            entries[0].1.as_slice()
        ),
        (long.as_bytes(), 0o4755, &b"data"[..])
    );
    assert_eq!(
        (entries[1].0.kind, entries[1].0.link.as_slice()),
        (Kind::HardLink, long.as_bytes())
    );
}

#[test]
fn numbers_in_base_256_are_read() {
    let mut big = [0_u8; 12];
    big[0] = 0x80;
    big[7..].copy_from_slice(&[2, 0, 0, 0, 1]);
    assert_eq!(number(&big).unwrap(), (2 << 32) + 1);
    assert_eq!(signed_number(&[0xff; 12]).unwrap(), -1);
    assert!(number(&[0xff; 12]).is_err());
    assert_eq!(number(b"  0644 \0\0").unwrap(), 0o644);
    assert!(number(b"00x\0").is_err());
}

#[test]
fn sparse_files_of_all_forms_are_read() {
    // PAX 1.0: the map in front of the data.
    let map = padded(b"2\n0\n3\n1000\n2\n");
    let stream = [
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.realsize", b"1002"),
        ]),
        header("GNUSparseFile/real", b'0', 512 + 5).to_vec(),
        map,
        padded(b"abcde"),
        // PAX 0.1: the map in the header.
        pax(&[("GNU.sparse.map", b"0,1,9,1"), ("GNU.sparse.size", b"10")]),
        header("two", b'0', 2).to_vec(),
        padded(b"xy"),
        vec![0; 1024],
    ]
    .concat();
    let entries = read(&stream).unwrap();
    let (first, data) = &entries[0];
    assert_eq!(
        (first.path.as_slice(), first.size, data.as_slice()),
        (&b"real"[..], 1002, &b"abcde"[..])
    );
    assert_eq!(first.sparse, Some(vec![(0, 3), (1000, 2)]));
    assert_eq!(
        (entries[1].0.size, entries[1].0.sparse.clone()),
        (10, Some(vec![(0, 1), (9, 1)]))
    );
}

#[test]
fn broken_archives_are_refused() {
    let mut wrong = header("a", b'0', 0);
    wrong[0] = b'b';
    let huge = header("L", b'L', MAX_EXTENSION_BYTES + 1);
    let cut = [header("a", b'0', 1000).to_vec(), vec![1; 100]].concat();
    let records = [
        header("x", b'x', 9).to_vec(),
        padded(b"99 abc=d\n"),
        header("a", b'0', 0).to_vec(),
    ]
    .concat();
    for (stream, word) in [
        (wrong.to_vec(), "checksum"),
        (huge.to_vec(), "extended header"),
        (cut, "middle"),
        (records, "records"),
        (vec![7; 100], "header"),
    ] {
        let error = read(&stream).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any bytes end in entries or an error, never in a panic; reading costs no more than the stream.
    #[test]
    fn noise_is_survived(
        blocks in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), BLOCK), any::<bool>(), proptest::sample::select(b"05xgLKS1".to_vec())), 0..6),
    ) {
        let mut stream = Vec::new();
        for (mut block, honest, kind) in blocks {
            if honest {
                // A valid checksum lets the noise reach the parsers behind it.
                block[156] = kind;
                block[124..136].copy_from_slice(b"00000001000\0");
                block[148..156].copy_from_slice(b"        ");
                let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            stream.extend_from_slice(&block);
        }
        if let Ok(entries) = read(&stream) {
            prop_assert!(entries.len() <= 6);
        }
        let mut rest = Vec::new();
        TarReader::new(stream.as_slice()).drain().unwrap().read_to_end(&mut rest).unwrap();
        prop_assert!(rest.is_empty());
    }
}
