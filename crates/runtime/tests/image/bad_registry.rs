//! Registries that stall, lie and are too slow.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use utsuwa_model::image::ResolvedImage;
use utsuwa_runtime::image::{Credential, ErrorClass, ImageStore};

use crate::fake::{Answer, Fake, honest};
use crate::fixture::{Compression, Image, Store, digest, image, is_root, noise, tar_of};

pub(crate) fn store_for(fake: &Fake) -> Store {
    Store::new(|settings| {
        settings.registry.insecure = vec![fake.host()];
        settings.registry.stall = Duration::from_millis(300);
    })
}

pub(crate) fn noisy() -> Image {
    image(&[(tar_of(&[("noise", &noise(4 << 20))]), Compression::Gzip)])
}

/// One with credentials for `fake`.
pub(crate) fn store_with_password(fake: &Fake, password: &str) -> Store {
    Store::new(|settings| {
        settings.registry.insecure = vec![fake.host()];
        let credential = Credential::Password {
            username: "user".into(),
            password: password.into(),
        };
        let configured = &mut settings.registry.credentials.configured;
        configured.insert(fake.host(), credential);
    })
}

/// An honest registry, but for the layer of `content`, whose answers `change` changes.
pub(crate) fn changing_the_layer(
    content: &Image,
    change: impl Fn(&mut Answer) + Send + Sync + 'static,
) -> Fake {
    let (served, layer) = (content.clone(), content.layers[0].clone());
    Fake::start(move |asked| {
        let mut answer = honest(&served, asked);
        if asked.target.ends_with(&layer) {
            change(&mut answer);
        }
        answer
    })
}

pub(crate) async fn pulls(store: &Store, fake: &Fake, name: &str) -> ResolvedImage {
    let name = format!("{}/{name}", fake.host());
    store.store.ensure(&name).await.unwrap()
}

/// The layer of [`noisy`] came whole.
pub(crate) fn assert_noise(store: &Store, found: &ResolvedImage) {
    let file = store.layer(&found.layers[0]).join("noise");
    assert_eq!(std::fs::read(file).unwrap(), noise(4 << 20));
}

pub(crate) async fn fails(
    store: &ImageStore,
    fake: &Fake,
    name: &str,
) -> utsuwa_runtime::image::PullError {
    let error = store
        .ensure(&format!("{}/{name}", fake.host()))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains(&fake.host()),
        "names the registry: {error}"
    );
    error
}

#[tokio::test]
async fn a_registry_that_trickles_is_given_up() {
    let content = noisy();
    let layer = content.layers[0].clone();
    let fake = Fake::start(move |asked| {
        let mut answer = honest(&content, asked);
        if asked.target.ends_with(&layer) {
            answer.trickle_after = Some(1000);
        }
        answer
    });
    let store = Store::new(|settings| {
        settings.registry.insecure = vec![fake.host()];
        settings.registry.rate_window = Duration::from_millis(300);
    });
    let error = fails(&store.store, &fake, "app:v1").await;
    assert_eq!(error.class(), ErrorClass::Unavailable);
    let text = error.to_string();
    assert!(
        text.contains("slower than 8192 bytes a second") && text.contains("Deploy again"),
        "{text}"
    );
}

#[tokio::test]
async fn a_pull_that_never_ends_is_given_up() {
    let content = noisy();
    let layer = content.layers[0].clone();
    let fake = Fake::start(move |asked| {
        let mut answer = honest(&content, asked);
        if asked.target.ends_with(&layer) {
            answer.stall_after = Some(1 << 20);
        }
        answer
    });
    let store = Store::new(|settings| {
        settings.registry.insecure = vec![fake.host()];
        settings.pull_limit = Duration::from_millis(500);
    });
    let error = fails(&store.store, &fake, "app:v1").await;
    assert_eq!(error.class(), ErrorClass::Unavailable);
    let text = error.to_string();
    assert!(
        text.contains("the longest a pull may take") && text.contains(" bytes arrived"),
        "{text}"
    );
}

/// Who waits may leave and come back; the pull goes on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_outlives_those_who_leave_it() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = noisy();
    let layer = content.layers[0].clone();
    let name = layer.clone();
    let (reached, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = parking_lot::Mutex::new(gate);
    let fake = Fake::start(move |asked| {
        if asked.target.ends_with(&name) {
            reached.send(()).unwrap();
            gate.lock().recv().unwrap();
        }
        honest(&content, asked)
    });
    let store = Store::new(|settings| settings.registry.insecure = vec![fake.host()]);
    let reference = format!("{}/app:v1", fake.host());
    tokio::select! {
        result = store.store.ensure(&reference) => panic!("{result:?}"),
        _ = waiting.recv() => {}
    }
    open.send(()).unwrap();
    let (progress, shown) = tokio::sync::watch::channel(Default::default());
    let joined = store.store.ensure_reporting(&reference, progress);
    joined.await.unwrap();
    assert_eq!(fake.count(&layer), 1, "joined, not begun again");
    let layers = &shown.borrow().layers;
    assert!(
        layers
            .iter()
            .all(|layer| layer.done_bytes == layer.total_bytes)
            && !layers.is_empty()
    );
}

#[tokio::test]
async fn a_registry_that_stalls_is_given_up() {
    let content = noisy();
    let fake = changing_the_layer(&content, |answer| answer.stall_after = Some(1000));
    let store = store_for(&fake);
    let error = fails(&store.store, &fake, "app:v1").await;
    assert!(
        error.to_string().contains("sent nothing for 0.3 s"),
        "{error}"
    );
    assert_eq!(store.parts().len(), 1, "kept for the next try");
}

#[tokio::test]
async fn content_under_a_wrong_digest_is_refused() {
    for kind in ["layer", "config", "manifest"] {
        let content = noisy();
        let layer = content.layers[0].clone();
        let wanted = digest(&content.manifest);
        let fake = Fake::start(move |asked| {
            let mut answer = honest(&content, asked);
            let lies = match kind {
                "layer" => asked.target.ends_with(&layer),
                "config" => asked.target.contains("/blobs/") && !asked.target.ends_with(&layer),
                _ => asked.target.contains("/manifests/"),
            };
            if lies {
                let last = answer.body.len() - 1;
                answer.body[last] ^= 1;
            }
            answer
        });
        let store = store_for(&fake);
        let name = if kind == "manifest" {
            format!("app@{wanted}")
        } else {
            "app:v1".to_owned()
        };
        let error = fails(&store.store, &fake, &name).await;
        assert!(
            error.to_string().contains("other content"),
            "{kind}: {error}"
        );
        assert_eq!(error.class(), ErrorClass::Unavailable);
        store.assert_clean();
        assert!(store.names("layers").is_empty() && store.store.list().is_empty());
    }
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let mut content = noisy();
    // The configuration of another image, honestly hashed.
    let other = image(&[(tar_of(&[("other", b"x")]), Compression::Gzip)]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&content.manifest).unwrap();
    let foreign: serde_json::Value = serde_json::from_slice(&other.manifest).unwrap();
    manifest["config"] = foreign["config"].clone();
    content.manifest = manifest.to_string().into_bytes();
    content.blobs.extend(other.blobs);
    let fake = Fake::start(move |asked| honest(&content, asked));
    let store = store_for(&fake);
    let error = fails(&store.store, &fake, "app:v1").await;
    assert_eq!(error.class(), ErrorClass::Caller);
    assert!(error.to_string().contains("configuration names"), "{error}");
    assert!(store.names("layers").is_empty());
}

#[tokio::test]
async fn the_same_layer_wanted_twice_is_downloaded_once() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = noisy();
    let layer = content.layers[0].clone();
    let fake = Fake::start(move |asked| honest(&content, asked));
    let store = store_for(&fake);
    let names: Vec<String> = (0..8)
        .map(|number| format!("{}/app{number}:v1", fake.host()))
        .collect();
    let pulls = names.iter().map(|name| store.store.ensure(name));
    for result in futures_util::future::join_all(pulls).await {
        result.unwrap();
    }
    assert_eq!(fake.count(&layer), 1);
}

#[tokio::test]
async fn a_pull_that_would_eat_the_reserve_does_not_start() {
    let content = noisy();
    let fake = Fake::start(move |asked| honest(&content, asked));
    let store = Store::new(|settings| {
        settings.registry.insecure = vec![fake.host()];
        settings.reserve_bytes = 1 << 60;
    });
    let error = store
        .store
        .ensure(&format!("{}/app:v1", fake.host()))
        .await
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Exhausted, "{error}");
    assert_eq!(fake.count("/blobs/"), 1, "only the configuration was read");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let content = image(&[(tar_of(&[("a", b"b")]), Compression::Gzip)]);
    let times = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| {
        if times.fetch_add(1, Ordering::SeqCst) < 2 {
            return Answer::status(503).with("retry-after", "0");
        }
        honest(&content, asked)
    });
    pulls(&store_for(&fake), &fake, "app:v1").await;
}

#[tokio::test]
async fn closing_ends_pulls_and_keeps_what_arrived() {
    let content = noisy();
    let layer = content.layers[0].clone();
    let (reached, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let fake = Fake::start(move |asked| {
        let mut answer = honest(&content, asked);
        if asked.target.ends_with(&layer) {
            answer.stall_after = Some(1 << 20);
            reached.send(()).unwrap();
        }
        answer
    });
    // Would wait for five seconds, again and again.
    let store = Store::new(|settings| settings.registry.insecure = vec![fake.host()]);
    let name = format!("{}/app:v1", fake.host());
    assert_eq!(store.store.pulling(&name), None);
    let pull = store.store.ensure(&name);
    let close = async {
        waiting.recv().await;
        // Whoever asks sees it going on, without being part of it.
        let (done, total) = store.store.pulling(&name).unwrap().bytes();
        assert!(done < total && total > 4 << 20, "{done} of {total}");
        while store.parts() != [1 << 20] {
            tokio::task::yield_now().await;
        }
        store.store.close().await;
    };
    let (result, ()) = tokio::join!(pull, close);
    let error = result.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert!(
        error.to_string().contains("the server is ending"),
        "{error}"
    );
    assert_eq!(store.store.pulling(&name), None);
    assert_eq!(store.parts(), [1 << 20]);
    assert!(store.names("layers").is_empty() && store.store.list().is_empty());
}
