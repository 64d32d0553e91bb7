//! What a restart, a crash or a power cut leaves behind.

use std::os::unix::fs::MetadataExt;

use crate::fake::{Fake, honest};
use crate::fixture::{Compression, Store, image, is_root, tar_of};

#[tokio::test]
async fn leftovers_are_removed_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = directory.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(directory.path().join("incoming/3")).unwrap();
    std::fs::write(blobs.join("0".repeat(64)), "of a pull that never ended").unwrap();
    let part = |digit: &str| blobs.join(format!("{}.partial", digit.repeat(64)));
    std::fs::write(part("1"), "old").unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let file = std::fs::File::options().write(true).open(part("1"));
    file.unwrap().set_modified(old).unwrap();
    std::fs::write(part("2"), "may be gone on with").unwrap();
    std::fs::write(directory.path().join("incoming/3/0"), "half").unwrap();
    // The folder itself stays: in a data directory it stands among root's.
    let before = std::fs::metadata(directory.path().join("incoming"))
        .unwrap()
        .ino();
    let store = Store::at(directory, |_settings| {});
    let after = std::fs::metadata(store.directory.path().join("incoming"))
        .unwrap()
        .ino();
    assert_eq!(after, before);
    assert_eq!(store.names("incoming"), Vec::<String>::new());
    assert_eq!(
        store.names("blobs/sha256"),
        [format!("{}.partial", "2".repeat(64))]
    );
}

#[tokio::test]
async fn layers_that_may_not_have_reached_the_disk_are_unpacked_again() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = image(&[(tar_of(&[("a", b"whole")]), Compression::Gzip)]);
    let layer = content.layers[0].clone();
    let fake = Fake::start(move |asked| honest(&content, asked));
    let insecure = vec![fake.host()];
    let store = Store::new(|settings| {
        settings.registry.insecure.clone_from(&insecure);
        settings.keep_blobs = true;
    });
    let found = store
        .store
        .ensure(&format!("{}/app:v1", fake.host()))
        .await
        .unwrap();
    store.store.close().await;
    let (path, directory) = (store.layer(&found.layers[0]).join("a"), store.directory);
    drop(store.store);

    // As a power cut before the layers were written would leave it: another boot, files and blobs of zeros.
    let index = directory.path().join("index/index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let record = &mut document["images"][&found.manifest];
    assert_eq!(
        record["durable"], true,
        "the background work was waited for"
    );
    record["durable"] = false.into();
    record["boot"] = "another".into();
    std::fs::write(&index, document.to_string()).unwrap();
    std::fs::write(&path, "\0\0\0\0\0").unwrap();
    std::fs::write(
        directory
            .path()
            .join("blobs/sha256")
            .join(layer.strip_prefix("sha256:").unwrap()),
        "\0",
    )
    .unwrap();

    let again = Store::at(directory, |settings| {
        settings.registry.insecure.clone_from(&insecure)
    });
    again.store.recover().await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");
    assert_eq!(fake.count(&layer), 2, "the damaged blob was pulled again");
    again.store.close().await;
    let text = std::fs::read_to_string(&index).unwrap();
    assert!(text.contains("\"durable\":true"), "{text}");
}

#[tokio::test]
async fn an_unreadable_index_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index/index.json");
    std::fs::create_dir(directory.path().join("index")).unwrap();
    std::fs::write(&path, "{").unwrap();
    let path = path.display().to_string();
    let settings = utsuwa_runtime::image::Settings::new(directory.path().to_owned());
    let unpacker = utsuwa_runtime::image::InProcessUnpacker::new(
        directory.path().join("layers"),
        Default::default(),
    );
    let error = utsuwa_runtime::image::ImageStore::open(settings, std::sync::Arc::new(unpacker))
        .unwrap_err();
    assert!(error.to_string().contains(&path), "{error}");
}

#[tokio::test]
async fn nothing_starts_from_a_layer_that_may_be_damaged() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = image(&[(tar_of(&[("a", b"whole")]), Compression::Gzip)]);
    let hex = content.layers[0].trim_start_matches("sha256:").to_owned();
    let fake = Fake::start(move |asked| honest(&content, asked));
    let store = Store::new(|settings| settings.registry.insecure = vec![fake.host()]);
    let reference = format!("{}/app:v1", fake.host());
    let found = store.store.ensure(&reference).await.unwrap();
    store.store.close().await;
    let (layer, directory) = (store.layer(&found.layers[0]), store.directory);
    drop(store.store);
    let index = directory.path().join("index/index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let record = &mut document["images"][&found.manifest];
    record["durable"] = false.into();
    record["boot"] = "another".into();
    std::fs::write(&index, document.to_string()).unwrap();

    // The registry isn't reached any more and the compressed layer is damaged: it can't be mended.
    let blob = directory.path().join("blobs/sha256").join(&hex);
    std::fs::write(&blob, "\0").unwrap();
    let again = Store::at(directory, |_settings| {});
    again.store.quarantine().await.unwrap();
    assert!(!layer.exists(), "nobody can start from it");
    assert!(
        !blob.exists(),
        "nor unpack it, should this server be killed now"
    );
    again.store.recover().await.unwrap_err();
    assert!(!layer.exists());
    drop(again.store);
    let back = Store::at(again.directory, |settings| {
        settings.registry.insecure = vec![fake.host()];
    });
    back.store.ensure(&found.pinned).await.unwrap();
    assert_eq!(std::fs::read_to_string(layer.join("a")).unwrap(), "whole");
}

/// Device nodes can't be had in an instance; most images that have some don't need them. It is told, not refused.
#[tokio::test]
async fn what_was_left_out_of_a_layer_is_remembered() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind) in [
        ("a", tar::EntryType::Regular),
        ("dev-null", tar::EntryType::Char),
        ("dev-disk", tar::EntryType::Block),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        archive.append_data(&mut header, name, &b""[..]).unwrap();
    }
    let archive = archive.into_inner().unwrap();
    let content = image(&[(archive, Compression::Gzip)]);
    let fake = Fake::start(move |asked| honest(&content, asked));
    let store = Store::new(|settings| settings.registry.insecure = vec![fake.host()]);
    let reference = format!("{}/app:v1", fake.host());
    store.store.ensure(&reference).await.unwrap();
    let told = |store: &Store| store.store.list().remove(0).left_out;
    let first = told(&store);
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(
        first[0].starts_with("layer sha256:") && first[0].contains("2 device nodes"),
        "{first:?}"
    );
    store.store.close().await;
    let again = Store::at(store.directory, |_settings| {});
    assert_eq!(told(&again), first, "after a restart too");
}
