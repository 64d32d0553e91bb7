//! Layers that are unpacked by a process without privileges.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};
use utsuwa_runtime::DriverError;
use utsuwa_runtime::sandbox::process::IMAGE_BASE;
use utsuwa_runtime::spawner::protocol::{Op, Reply, SpawnError};

use super::busybox::possible;
use super::launcher_world::World;

#[test]
fn a_layer_is_unpacked_without_privileges() {
    if !possible("a_layer_is_unpacked_without_privileges") {
        return;
    }
    let mut world = World::new();
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, uid: u64, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(uid);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).unwrap();
    };
    add("app/", tar::EntryType::Directory, 0o755, 7, b"");
    add(
        "app/data",
        tar::EntryType::Regular,
        0o640,
        7,
        b"from the archive",
    );
    add("srv/.wh..wh..opq", tar::EntryType::Regular, 0o644, 0, b"");
    add("etc/.wh.group", tar::EntryType::Regular, 0o644, 0, b"");
    let archive = archive.into_inner().unwrap();
    let diff_id = format!(
        "sha256:{}",
        Sha256::digest(&archive)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    );
    let blob = || {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&archive).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    };
    let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
    let op = Op::Unpack {
        diff_id: diff_id.clone(),
        media_type: media_type.clone(),
    };
    let (result, _) = world.housekeeper.ask(op, &[blob().as_fd()]);
    assert!(matches!(
        result.unwrap(),
        Reply::Unpacked {
            entries: 4,
            bytes: 16,
            ..
        }
    ));
    let root = world
        .images
        .join("layers")
        .join(diff_id.trim_start_matches("sha256:"));
    assert_eq!(
        fs::metadata(root.join("app/data")).unwrap().uid(),
        IMAGE_BASE + 7
    );
    let mut spec = world.spec(&[
        "sh",
        "-c",
        "cat /app/data; stat -c ' %u %a' /app/data; ls -a /srv; ls /etc",
    ]);
    spec.rootfs.layers.push(diff_id.clone());
    let (output, ..) = world.run(spec);
    assert_eq!(
        output,
        "from the archive 7 640\n.\n..\nhostname\nhosts\npasswd\nresolv.conf\n"
    );

    let wrong = format!("sha256:{}", "ab".repeat(32));
    let (result, _) = world.housekeeper.ask(
        Op::Unpack {
            diff_id: wrong.clone(),
            media_type,
        },
        &[blob().as_fd()],
    );
    let error = result.unwrap_err();
    assert!(
        matches!(&error, SpawnError::Unpack { why, .. } if why.contains(&diff_id)),
        "{error}"
    );
    let names: Vec<_> = fs::read_dir(world.images.join("layers"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "nothing half done is left: {names:?}");
}

#[test]
fn a_disk_that_fills_is_not_blamed_on_the_layer() {
    if !possible("a_disk_that_fills_is_not_blamed_on_the_layer") {
        return;
    }
    // More than any disk has: what the configuration says reaches the process that unpacks.
    let mut world = World::with(None, u64::MAX);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    archive
        .append_data(&mut header, "data", &b"data"[..])
        .unwrap();
    let archive = archive.into_inner().unwrap();
    let hex: String = Sha256::digest(&archive)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let mut blob = tempfile::tempfile().unwrap();
    blob.write_all(&archive).unwrap();
    blob.seek(SeekFrom::Start(0)).unwrap();
    let op = Op::Unpack {
        diff_id: format!("sha256:{hex}"),
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
    };
    let (result, _) = world.housekeeper.ask(op, &[blob.as_fd()]);
    let error = result.unwrap_err();
    assert!(error.to_string().contains("kept in reserve"), "{error}");
    let kind = error.to_driver();
    assert!(matches!(kind, DriverError::Exhausted(_)), "{kind:?}");
}
