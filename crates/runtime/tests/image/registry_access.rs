//! Who may pull, from where, and which image of a list.

use std::path::Path;

use utsuwa_runtime::image::{DockerConfig, ErrorClass};

use crate::bad_registry::{fails, pulls, store_for, store_with_password};
use crate::fake::{Answer, Fake, honest, ranged};
use crate::fixture::{
    Compression, INDEX, Store, digest, image, image_for, index_of, is_root, tar_of,
};

#[tokio::test]
async fn a_token_is_fetched_with_and_without_credentials() {
    if !is_root(crate::skip::here!()) {
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

/// A store that read a docker configuration file at its start.
fn store_with_docker_file(fake: &Fake, content: &str) -> Store {
    let docker = DockerConfig::parse(Path::new("/srv/op/config.json"), content.as_bytes());
    Store::new(|settings| {
        settings.registry.insecure = vec![fake.host()];
        settings.registry.credentials.docker = Some(docker);
    })
}

/// Docker Hub asks for a token for every image, and gives anybody one for public images.
#[tokio::test]
async fn public_images_need_nothing_of_a_docker_file_that_can_not_be_used() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    for file in [r#"{"credsStore":"desktop"}"#, "{"] {
        let content = image(&[(tar_of(&[("a", b"b")]), Compression::Gzip)]);
        let fake = Fake::start(move |asked| {
            if asked.target.starts_with("/token?") {
                assert_eq!(asked.header("authorization"), "");
                return Answer::ok(br#"{"token":"tok-1"}"#.to_vec());
            }
            if asked.header("authorization") != "Bearer tok-1" {
                let challenge = format!(r#"Bearer realm="http://{}/token""#, asked.header("host"));
                return Answer::status(401).with("www-authenticate", challenge);
            }
            honest(&content, asked)
        });
        pulls(&store_with_docker_file(&fake, file), &fake, "app:v1").await;
    }
}

#[tokio::test]
async fn a_refusal_names_the_docker_file_that_could_not_be_used() {
    for (file, words) in [
        (
            r#"{"credsStore":"desktop"}"#,
            ["docker-credential-desktop", "'auths'", "docker-config"],
        ),
        ("{", ["is not JSON", "line 1 column 1", "registries-file"]),
    ] {
        // The token service, the registry after a token was given, and one that gives none.
        for (challenge, token) in [
            ("Bearer realm=\"http://HOST/token\"", 401),
            ("Bearer realm=\"http://HOST/token\"", 200),
            ("Basic realm=\"x\"", 500),
        ] {
            let fake = Fake::start(move |asked| {
                if asked.target.starts_with("/token?") {
                    return Answer {
                        status: token,
                        ..Answer::ok(br#"{"token":"tok-1"}"#.to_vec())
                    };
                }
                let challenge = challenge.replace("HOST", asked.header("host"));
                Answer::status(401).with("www-authenticate", challenge)
            });
            let store = store_with_docker_file(&fake, file);
            let error = fails(&store.store, &fake, "private/app:v1").await;
            assert_eq!(error.class(), ErrorClass::Unauthorized);
            let text = error.to_string();
            for word in words.into_iter().chain(["/srv/op/config.json"]) {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
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
    if !is_root(crate::skip::here!()) {
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
