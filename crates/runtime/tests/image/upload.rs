//! Uploaded archives.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use utsuwa_model::image::ResolvedImage;
use utsuwa_runtime::image::{ErrorClass, PullError, pack_oci_directory};

use crate::fixture::{Compression, Image, Store, digest, image, is_root, tar_of, write_layout};

async fn load(store: &Store, archive: &[u8]) -> Result<ResolvedImage, PullError> {
    load_one(store, archive, None).await
}

async fn load_one(
    store: &Store,
    archive: &[u8],
    wanted: Option<&str>,
) -> Result<ResolvedImage, PullError> {
    // Odd pieces, as a network delivers them.
    let pieces: Vec<io::Result<Bytes>> = archive
        .chunks(1000)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    store
        .store
        .load_archive(futures_util::stream::iter(pieces), wanted)
        .await
}

fn small() -> Image {
    image(&[
        (tar_of(&[("bin/app", b"#!x")]), Compression::Gzip),
        (tar_of(&[("etc/conf", b"v=1")]), Compression::Zstd),
    ])
}

fn packed(image: &Image) -> Vec<u8> {
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("my-app");
    write_layout(&directory, image, "v1");
    let mut archive = Vec::new();
    pack_oci_directory(&directory, Some("v1"), &mut archive).unwrap();
    let error = pack_oci_directory(&directory, Some("v2"), io::sink())
        .unwrap_err()
        .to_string();
    assert!(error.contains("'v2'") && error.contains("v1"), "{error}");
    archive
}

#[tokio::test]
async fn a_packed_directory_is_loaded_under_its_name() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let source = small();
    let archive = packed(&source);
    let store = Store::new(|_settings| {});
    let loaded = load(&store, &archive).await.unwrap();
    assert_eq!(
        loaded.reference,
        format!("utsuwa.local/loaded/my-app@{}", digest(&source.manifest))
    );
    assert_eq!(
        std::fs::read(store.layer(&loaded.layers[1]).join("etc/conf")).unwrap(),
        b"v=1"
    );
    for name in [loaded.reference.as_str(), "utsuwa.local/loaded/my-app:v1"] {
        assert_eq!(
            store.store.ensure(name).await.unwrap().manifest,
            loaded.manifest
        );
    }
    // Loading it again is no work and no error; compressed uploads are understood.
    let compressed = zstd::encode_all(archive.as_slice(), 1).unwrap();
    assert_eq!(
        load(&store, &compressed).await.unwrap().manifest,
        loaded.manifest
    );
    store.store.close().await;
    store.assert_clean();
}

#[tokio::test]
async fn what_skopeo_saves_is_loaded() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    if !Path::new("/usr/bin/skopeo").exists() {
        crate::skip::skip(crate::skip::here!(), "skopeo is not installed");
        return;
    }
    let source = image(&[
        (tar_of(&[("bin/app", b"#!x")]), Compression::Gzip),
        (tar_of(&[("b", b"2")]), Compression::Gzip),
    ]);
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    write_layout(&layout, &source, "t");
    for kind in ["docker-archive", "oci-archive"] {
        let file = directory.path().join(kind);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("oci:{}:t", layout.display()))
            .arg(format!(
                "{kind}:{}:example.com/team/saved:v7",
                file.display()
            ))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let store = Store::new(|_settings| {});
        let loaded = load(&store, &std::fs::read(&file).unwrap()).await.unwrap();
        assert!(
            loaded
                .reference
                .starts_with("utsuwa.local/loaded/team/saved@sha256:"),
            "{}",
            loaded.reference
        );
        assert_eq!(loaded.config.entrypoint, ["/bin/app"]);
        assert_eq!(
            std::fs::read(store.layer(&loaded.layers[0]).join("bin/app")).unwrap(),
            b"#!x"
        );
        store
            .store
            .ensure("utsuwa.local/loaded/team/saved:v7")
            .await
            .unwrap();
    }
}

/// An archive with an image that calls itself `first` and a later one that has the names of `second`, and the second's digest.
fn two_images(kind: &str, first: &str, second: [&str; 2]) -> Vec<u8> {
    let config = |app: &str| {
        let diff_id = digest(&tar_of(&[(app, b"#!x")]));
        serde_json::json!({"architecture": crate::fixture::architecture(), "os": "linux",
            "config": {"Entrypoint": [app]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}})
        .to_string()
    };
    let layers = ["bin/one", "bin/two"].map(|app| tar_of(&[(app, b"#!x")]));
    let configs = ["bin/one", "bin/two"].map(config);
    if kind == "docker" {
        let manifest = serde_json::json!([
            {"Config": "one.json", "RepoTags": [first], "Layers": ["one.tar"]},
            {"Config": "two.json", "RepoTags": second, "Layers": ["two.tar"]},
        ]);
        return tar_of(&[
            ("manifest.json", manifest.to_string().as_bytes()),
            ("one.json", configs[0].as_bytes()),
            ("two.json", configs[1].as_bytes()),
            ("one.tar", &layers[0]),
            ("two.tar", &layers[1]),
        ]);
    }
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut blob = |kind: &str, content: &[u8]| {
        let digest = digest(content);
        let name = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        files.push((name, content.to_vec()));
        serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": content.len()})
    };
    let mut entries = Vec::new();
    for (at, names) in [(0, vec![first]), (1, second.to_vec())] {
        let layer = blob("layer.v1.tar", &layers[at]);
        let config = blob("config.v1+json", configs[at].as_bytes());
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let entry = blob("manifest.v1+json", manifest.to_string().as_bytes());
        for name in names {
            let mut entry = entry.clone();
            entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
            entries.push(entry);
        }
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
    files.push(("index.json".to_owned(), index.into_bytes()));
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(n, c)| (n.as_str(), c.as_slice()))
        .collect();
    tar_of(&files)
}

#[tokio::test]
async fn one_of_several_images_is_chosen_by_its_reference_or_tag() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    for kind in ["docker", "oci"] {
        let archive = two_images(
            kind,
            "api:v1",
            ["r.example/team/web:v2", "r.example/team/web:v3"],
        );
        for (wanted, entrypoint, name) in [
            ("api:v1", "bin/one", "api:v1"),
            ("docker.io/library/api:v1", "bin/one", "api:v1"),
            ("v1", "bin/one", "api:v1"),
            ("r.example/team/web:v2", "bin/two", "team/web:v2"),
            ("v3", "bin/two", "team/web:v3"),
        ] {
            let store = Store::new(|_settings| {});
            let loaded = load_one(&store, &archive, Some(wanted)).await.unwrap();
            assert_eq!(loaded.config.entrypoint, [entrypoint], "{kind} {wanted}");
            let name = format!("utsuwa.local/loaded/{name}");
            let found = store.store.ensure(&name).await.unwrap();
            assert_eq!(found.manifest, loaded.manifest);
        }
    }
}

#[tokio::test]
async fn an_image_that_is_not_in_the_archive_is_told_with_those_that_are() {
    for kind in ["docker", "oci"] {
        let names = ["r.example/team/web:v2", "r.example/team/web:v1"];
        let archive = two_images(kind, "api:v1", names);
        for (wanted, said) in [
            (
                Some("v4"),
                "no image called 'v4', only api:v1, r.example/team/web:v2, r.example/team/web:v1",
            ),
            (Some("team/web:v2"), "no image called 'team/web:v2'"),
            (Some("api"), "no image called 'api'"),
            (Some(""), "no image called ''"),
            (Some("v1"), "several images (api:v1, r.example/team/web:"),
            (None, "docker-archive:FILE:REFERENCE"),
        ] {
            let store = Store::new(|_settings| {});
            let error = load_one(&store, &archive, wanted).await.unwrap_err();
            assert_eq!(error.class(), ErrorClass::Caller, "{error}");
            assert!(
                error.to_string().contains(said),
                "{kind} {wanted:?}: {error}"
            );
            store.assert_clean();
        }
    }
    // One without a name is no other's.
    let nameless = tar_of(&[(
        "manifest.json",
        br#"[{"Config":"c","RepoTags":null,"Layers":[]}]"#,
    )]);
    let store = Store::new(|_settings| {});
    let error = load_one(&store, &nameless, Some("v1")).await.unwrap_err();
    assert!(error.to_string().contains("has no name"), "{error}");
}

#[tokio::test]
async fn broken_uploads_are_refused_and_leave_nothing() {
    let honest = small();
    let mut lying = honest.clone();
    let first = lying.layers[0].clone();
    lying.blobs.get_mut(&first).unwrap()[20] ^= 1;
    let mut lacking = honest.clone();
    lacking.blobs.remove(&first);
    let docker = |names: &str| tar_of(&[("manifest.json", names.as_bytes())]);
    let two = r#"[{"Config":"c","RepoTags":["a:1"],"Layers":[]},{"Config":"c","RepoTags":["b:2"],"Layers":[]}]"#;
    for (archive, word) in [
        (packed(&lying), "other content"),
        (packed(&lacking), "does not hold"),
        (docker(two), "a:1, b:2"),
        (docker("{"), "manifest.json"),
        (
            docker(r#"[{"Config":"../../etc/passwd","Layers":[]}]"#),
            "does not hold",
        ),
        (tar_of(&[("readme", b"x")]), "neither"),
        (Vec::new(), "empty"),
        (b"#!/bin/sh\n".repeat(100), "checksum"),
        (packed(&honest)[..3000].to_vec(), "ends in the middle"),
    ] {
        let store = Store::new(|_settings| {});
        let error = load(&store, &archive).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Caller, "{error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert_eq!(store.names("blobs/sha256"), Vec::<String>::new());
        store.assert_clean();
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let archive = packed(&small());
    let store = Store::new(|_settings| {});
    let pieces = vec![
        Ok(Bytes::copy_from_slice(&archive[..2000])),
        Err(io::Error::other("the client left")),
    ];
    let error = store
        .store
        .load_archive(futures_util::stream::iter(pieces), None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("the client left"), "{error}");
    store.assert_clean();
}

/// Or the answer would be lost with the connection.
#[tokio::test]
async fn what_is_refused_is_read_to_its_end() {
    let store = Store::new(|_settings| {});
    let read = AtomicUsize::new(0);
    let pieces = (0..1_000).map(|_| {
        read.fetch_add(1, Ordering::Relaxed);
        Ok(Bytes::from_static(
            b"no archive, for as long as it goes on ",
        ))
    });
    let error = store
        .store
        .load_archive(futures_util::stream::iter(pieces), None)
        .await
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Caller, "{error}");
    assert_eq!(read.into_inner(), 1_000);
    store.assert_clean();
}

/// Paused time.
#[tokio::test(start_paused = true)]
async fn who_never_ends_what_is_refused_is_answered_all_the_same() {
    let store = Store::new(|_settings| {});
    let pieces = futures_util::stream::repeat(())
        .take(100)
        .map(|()| Ok(Bytes::from_static(&[b'x'; 1_000])))
        .chain(futures_util::stream::pending());
    let loaded = store.store.load_archive(pieces, None);
    let answered = tokio::time::timeout(Duration::from_secs(600), loaded).await;
    let error = answered.expect("an answer").unwrap_err();
    assert_eq!(error.class(), ErrorClass::Caller, "{error}");
    store.assert_clean();
}
