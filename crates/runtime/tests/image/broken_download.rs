//! Downloads that break off: gone on with, begun anew, or given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use utsuwa_runtime::image::ErrorClass;

use crate::bad_registry::{assert_noise, changing_the_layer, fails, noisy, pulls, store_for};
use crate::fake::{Asked, Fake, honest};
use crate::fixture::{Store, is_root, noise};

#[tokio::test]
async fn a_broken_download_is_resumed_where_it_broke() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = noisy();
    let layer = content.layers[0].clone();
    let fake = changing_the_layer(&content, |answer| answer.cut_after = Some(3 << 20));
    let store = store_for(&fake);
    let found = pulls(&store, &fake, "app:v1").await;
    assert_noise(&store, &found);
    let ranges: Vec<String> = {
        let asked = fake.asked.lock();
        asked
            .iter()
            .filter(|asked| asked.target.ends_with(&layer))
            .map(|asked| asked.header("range").to_owned())
            .collect()
    };
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert_eq!(ranges[0], "");
    assert!(
        ranges[1].starts_with("bytes=") && ranges[1].ends_with('-'),
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_registry_that_cannot_resume_starts_over() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = noisy();
    let layer = content.layers[0].clone();
    let times = Arc::new(AtomicUsize::new(0));
    let (served, seen) = (content.clone(), Arc::clone(&times));
    let fake = Fake::start(move |asked| {
        let whole = Asked {
            headers: Default::default(),
            ..asked.clone()
        };
        let mut answer = honest(&served, &whole);
        if asked.target.ends_with(&layer) && seen.fetch_add(1, Ordering::SeqCst) == 0 {
            answer.cut_after = Some(1 << 20);
        }
        answer
    });
    let store = store_for(&fake);
    let found = pulls(&store, &fake, "app:v1").await;
    assert_noise(&store, &found);
    assert_eq!(times.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_registry_that_always_breaks_off_is_given_up() {
    let content = noisy();
    let fake = changing_the_layer(&content, |answer| answer.cut_after = Some(1000));
    let store = store_for(&fake);
    let error = fails(&store.store, &fake, "app:v1").await;
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert!(fake.count("/blobs/") < 10);
    assert_eq!(store.parts(), [4000], "kept for the next try");
}

/// What arrived before a pull failed, also before the server ended, is the next one's beginning.
#[tokio::test]
async fn a_failed_download_is_gone_on_with_by_the_next_pull() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = noisy();
    let layer = content.layers[0].clone();
    let size = content.blobs[&layer].len();
    let breaks = Arc::new(AtomicUsize::new(0));
    let (served, name, seen) = (content.clone(), layer.clone(), Arc::clone(&breaks));
    let fake = Fake::start(move |asked| {
        let mut answer = honest(&served, asked);
        if asked.target.ends_with(&name) && seen.fetch_add(1, Ordering::SeqCst) < 4 {
            answer.cut_after = Some(100_000);
        }
        answer
    });
    let store = store_for(&fake);
    fails(&store.store, &fake, "app:v1").await;
    assert_eq!(store.parts(), [400_000]);
    store.store.close().await;
    let again = Store::at(store.directory, |settings| {
        settings.registry.insecure = vec![fake.host()];
    });
    let name = format!("{}/app:v1", fake.host());
    let found = again.store.ensure(&name).await.unwrap();
    let noisy_file = again.layer(&found.layers[0]).join("noise");
    assert_eq!(std::fs::read(noisy_file).unwrap(), noise(4 << 20));
    let asked = fake.asked.lock();
    let last = asked
        .iter()
        .rev()
        .find(|asked| asked.target.ends_with(&layer));
    assert_eq!(last.unwrap().header("range"), "bytes=400000-");
    assert!(size > 400_000);
    again.assert_clean();
}

#[tokio::test]
async fn a_damaged_part_is_found_out_and_downloaded_anew() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = noisy();
    let layer = content.layers[0].clone();
    let fake = Fake::start(move |asked| honest(&content, asked));
    let store = store_for(&fake);
    let part = format!(
        "blobs/sha256/{}.partial",
        layer.trim_start_matches("sha256:")
    );
    std::fs::write(store.directory.path().join(part), vec![0; 100_000]).unwrap();
    let name = format!("{}/app:v1", fake.host());
    store.store.ensure(&name).await.unwrap();
    assert_eq!(
        fake.count(&layer),
        2,
        "from the part, then from the beginning"
    );
    store.assert_clean();
}
