//! Registries that stall, lie, break off, redirect and refuse.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use utsuwa_model::image::ResolvedImage;
use utsuwa_runtime::image::{Credential, ErrorClass, ImageStore};

use crate::fake::{Answer, Asked, Fake, honest, ranged};
use crate::fixture::{
    Compression, INDEX, Image, Store, digest, image, image_for, index_of, is_root, noise, tar_of,
};

fn store_for(fake: &Fake) -> Store {
    Store::new(|settings| {
        settings.registry.insecure = vec![fake.host()];
        settings.registry.stall = Duration::from_millis(300);
    })
}

fn noisy() -> Image {
    image(&[(tar_of(&[("noise", &noise(4 << 20))]), Compression::Gzip)])
}

/// One with credentials for `fake`.
fn store_with_password(fake: &Fake, password: &str) -> Store {
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
fn changing_the_layer(
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

async fn pulls(store: &Store, fake: &Fake, name: &str) -> ResolvedImage {
    let name = format!("{}/{name}", fake.host());
    store.store.ensure(&name).await.unwrap()
}

/// The layer of [`noisy`] came whole.
fn assert_noise(store: &Store, found: &ResolvedImage) {
    let file = store.layer(&found.layers[0]).join("noise");
    assert_eq!(std::fs::read(file).unwrap(), noise(4 << 20));
}

async fn fails(store: &ImageStore, fake: &Fake, name: &str) -> utsuwa_runtime::image::PullError {
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
async fn a_broken_download_is_resumed_where_it_broke() {
    if !is_root() {
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
    if !is_root() {
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
    store.assert_clean();
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
    store.assert_clean();
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
    if !is_root() {
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
async fn a_token_is_fetched_with_and_without_credentials() {
    if !is_root() {
        return;
    }
    for with_credentials in [false, true] {
        let content = image(&[(tar_of(&[("a", b"b")]), Compression::Gzip)]);
        let fake = Fake::start(move |asked| {
            if asked.target.starts_with("/token?") {
                let basic = asked.header("authorization");
                assert_eq!(
                    basic,
                    if with_credentials {
                        "Basic dXNlcjpzZWNyZXQ="
                    } else {
                        ""
                    }
                );
                assert!(
                    asked.target.contains("service=me")
                        && asked
                            .target
                            .contains("scope=repository%3Ateam%2Fapp%3Apull")
                );
                return Answer::ok(br#"{"token":"tok-1","expires_in":300}"#.to_vec());
            }
            if asked.header("authorization") != "Bearer tok-1" {
                let challenge = format!(
                    r#"Bearer realm="http://{}/token",service="me",scope="repository:team/app:pull""#,
                    asked.header("host")
                );
                return Answer::status(401).with("www-authenticate", challenge);
            }
            honest(&content, asked)
        });
        let store = match with_credentials {
            true => store_with_password(&fake, "secret"),
            false => store_for(&fake),
        };
        pulls(&store, &fake, "team/app:v1").await;
        assert_eq!(fake.count("/token"), 1, "one token serves the whole pull");
    }
}

#[tokio::test]
async fn refused_credentials_say_what_to_do() {
    for (configured, word) in [
        (false, "No credentials are configured"),
        (true, "were refused"),
    ] {
        let fake = Fake::start(|_asked| {
            let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"access to the requested resource is not authorized"}]}"#;
            Answer {
                status: 401,
                ..Answer::ok(body.to_vec())
            }
            .with("www-authenticate", "Basic realm=\"x\"")
        });
        let store = match configured {
            true => store_with_password(&fake, "wrong"),
            false => store_for(&fake),
        };
        let error = fails(&store.store, &fake, "private/app:v1").await;
        assert_eq!(error.class(), ErrorClass::Unauthorized);
        let text = error.to_string();
        assert!(
            text.contains(word) && text.contains("docker login") && text.contains("not authorized"),
            "{text}"
        );
        assert!(!text.contains("wrong"), "no secrets in errors: {text}");
    }
}

#[tokio::test]
async fn an_image_for_other_machines_names_what_it_offers() {
    let foreign = image_for("s390x", &[(tar_of(&[("a", b"b")]), Compression::Gzip)]);
    let list = index_of(&[("s390x", &foreign), ("ppc64le", &foreign)]);
    let served = foreign.clone();
    let fake = Fake::start(move |asked| match asked.target.as_str() {
        "/v2/many/manifests/latest" => Answer::ok(list.clone()).with("content-type", INDEX),
        _ => honest(&served, asked),
    });
    let store = store_for(&fake);
    let ours = crate::fixture::architecture();
    for (name, offers) in [
        ("many", "s390x/linux, ppc64le/linux"),
        ("one", "s390x/linux"),
    ] {
        let error = fails(&store.store, &fake, name).await;
        assert_eq!(error.class(), ErrorClass::Caller);
        let text = error.to_string();
        assert!(
            text.starts_with(&format!(
                "Cloud Run does not support image '{}/{name}:latest': Container manifest type '",
                fake.host()
            )),
            "{text}"
        );
        assert!(
            text.contains(&format!("must support {ours}/linux")) && text.contains(offers),
            "{text}"
        );
    }
}

#[tokio::test]
async fn redirects_keep_the_proof_to_themselves_and_lists_are_followed() {
    if !is_root() {
        return;
    }
    let ours = image(&[(tar_of(&[("a", b"b")]), Compression::Gzip)]);
    let foreign = image_for("s390x", &[(tar_of(&[("c", b"d")]), Compression::Gzip)]);
    let blobs = ours.blobs.clone();
    let storage = Fake::start(move |asked| {
        assert_eq!(asked.header("authorization"), "");
        ranged(&blobs[asked.target.trim_start_matches('/')], asked)
    });
    let list = index_of(&[("s390x", &foreign), (crate::fixture::architecture(), &ours)]);
    let pinned = digest(&list);
    let to = storage.host();
    let fake = Fake::start(move |asked| {
        if asked.header("authorization") != "Basic dXNlcjpzZWNyZXQ=" {
            return Answer::status(401).with("www-authenticate", "Basic realm=x");
        }
        match asked.target.rsplit('/').next().unwrap() {
            "v1" => Answer::ok(list.clone()).with("content-type", INDEX),
            blob if asked.target.contains("/blobs/") => {
                Answer::status(307).with("location", format!("http://{to}/{blob}"))
            }
            _ => honest(&ours, asked),
        }
    });
    let store = store_with_password(&fake, "secret");
    let found = pulls(&store, &fake, "app:v1").await;
    assert_eq!(
        found.pinned,
        format!("{}/app@{pinned}", fake.host()),
        "the list is what the tag means"
    );
    assert_ne!(found.manifest, pinned);
    assert_eq!(
        store.store.ensure(&found.pinned).await.unwrap().manifest,
        found.manifest
    );
}

#[tokio::test]
async fn the_same_layer_wanted_twice_is_downloaded_once() {
    if !is_root() {
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
    if !is_root() {
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
async fn dropping_a_pull_leaves_nothing_half_done() {
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
    let store = store_for(&fake);
    let name = format!("{}/app:v1", fake.host());
    assert_eq!(store.store.pulling(&name), None);
    tokio::select! {
        result = store.store.ensure(&name) => panic!("{result:?}"),
        _ = waiting.recv() => {
            // Whoever asks sees it going on, without being part of it.
            let (done, total) = store.store.pulling(&name).unwrap().bytes();
            assert!(done < total && total > 4 << 20, "{done} of {total}");
        }
    }
    assert_eq!(store.store.pulling(&name), None);
    store.assert_clean();
}
