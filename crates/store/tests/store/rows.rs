//! Revisions, hosts, policies, user ids.

use super::*;

#[tokio::test]
async fn revisions_are_unique_per_place_and_found_by_nonce() {
    let store = Store::open_in_memory().unwrap();
    let a = create(&store, "demo/r/a", 1).await;
    let b = create(&store, "demo/r/b", 1).await;
    store
        .create_revision(revision(&a, "a-00001-abc", 5, "first"))
        .await
        .unwrap();
    store
        .create_revision(revision(&a, "a-00002-abc", 6, "second"))
        .await
        .unwrap();
    let clash = store
        .create_revision(revision(&b, "a-00001-abc", 7, "third"))
        .await
        .unwrap_err();
    assert_eq!(clash.class(), Class::AlreadyExists);
    let (demo, r) = ("demo".parse().unwrap(), "r".parse().unwrap());
    let found = store.revisions_with_nonce(&demo, &r, "second").unwrap();
    assert_eq!(
        found
            .iter()
            .map(|v| v.key.revision.as_str())
            .collect::<Vec<_>>(),
        ["a-00002-abc"]
    );
    let oldest: Vec<_> = store
        .revisions_of(&a.key)
        .unwrap()
        .into_iter()
        .map(|v| v.meta.create_time.0)
        .collect();
    assert_eq!(oldest, [5, 6]);
    let newest = store
        .revisions(
            &demo,
            Some(&r),
            Some(&a.key.service),
            Page {
                size: 1,
                token: None,
            },
        )
        .unwrap();
    assert_eq!(newest.items[0].meta.create_time, Timestamp(6));
    assert!(newest.next.is_some());

    let key = found[0].key.clone();
    store
        .update_revision(&key, |v| {
            v.status.observed_generation = 4;
            v.template.concurrency = Some(7);
            true
        })
        .await
        .unwrap();
    let changed = store.revision(&key).unwrap().unwrap();
    assert_eq!(
        (
            changed.status.observed_generation,
            changed.template.concurrency
        ),
        (4, None),
        "the template is immutable"
    );

    let refused = store.remove_service(&a.key).await.unwrap_err();
    assert_eq!(refused.class(), Class::Conflict);
    for revision in store.revisions_of(&a.key).unwrap() {
        store.remove_revision(&revision.key).await.unwrap();
    }
    store.remove_service(&a.key).await.unwrap();
    store.remove_service(&a.key).await.unwrap();
    assert_eq!(store.service(&a.key).unwrap(), None);
}

/// By who checks a configuration, beside a server that runs and after it.
#[tokio::test]
async fn what_a_directory_is_made_for_is_read_without_opening_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let read = || Settings::in_directory(&state).unwrap();
    assert_eq!(read(), None);
    let store = Store::open(&state).unwrap();
    assert_eq!(read(), None);
    let wanted = Settings {
        project: "demo".parse().unwrap(),
        region: "r".parse().unwrap(),
        domain: "localhost".to_owned(),
    };
    store.freeze_settings(wanted.clone()).await.unwrap();
    assert_eq!(read(), Some(wanted.clone()));
    drop(store);
    assert_eq!(read(), Some(wanted));
    let database = rusqlite::Connection::open(state.join("state.sqlite")).unwrap();
    database.pragma_update(None, "user_version", 999).unwrap();
    drop(database);
    let newer = Settings::in_directory(&state).unwrap_err();
    assert!(
        matches!(newer, StoreError::Newer { found: 999, .. }),
        "{newer:?}"
    );
    std::fs::write(
        state.join("state.sqlite"),
        "no database at all, whoever reads it",
    )
    .unwrap();
    assert!(Settings::in_directory(&state).is_err());
}

#[tokio::test]
async fn hosts_are_taken_once() {
    let store = Store::open_in_memory().unwrap();
    let wanted = Settings {
        project: "demo".parse().unwrap(),
        region: "r".parse().unwrap(),
        domain: "localhost".to_owned(),
    };
    assert_eq!(store.settings().unwrap_err().class(), Class::NotFound);
    store.freeze_settings(wanted.clone()).await.unwrap();
    assert_eq!(store.freeze_settings(wanted.clone()).await.unwrap(), wanted);
    let other = Settings {
        domain: "example.org".to_owned(),
        ..wanted.clone()
    };
    assert_eq!(
        store.freeze_settings(other).await.unwrap_err().class(),
        Class::Caller
    );
    assert_eq!(store.settings().unwrap(), wanted);

    let hello = create(&store, "demo/r/hello", 1).await;
    create(&store, "demo/other/hello", 1).await;
    create(&store, "demo/r/blue---hello", 1).await;
    assert_eq!(
        store.host_owner("hello.localhost").unwrap(),
        Some(hello.key.clone())
    );
    let tag = |tag: &'static str| {
        move |s: &mut Service| {
            s.spec.traffic = vec![TrafficTarget {
                latest: true,
                tag: Some(tag.to_owned()),
                ..TrafficTarget::default()
            }];
            Ok::<(), ()>(())
        }
    };
    let clash = store
        .update_service(&hello.key, None, Timestamp(2), None, tag("blue"))
        .await
        .unwrap_err();
    assert!(
        matches!(&clash, StoreError::AlreadyExists { what } if what.contains("blue---hello.localhost")),
        "{clash}"
    );
    assert_eq!(
        store.host_owner("hello.localhost").unwrap(),
        Some(hello.key.clone()),
        "the refused change gave nothing away"
    );
    store
        .update_service(&hello.key, None, Timestamp(2), None, tag("green"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        store.host_owner("green---hello.localhost").unwrap(),
        Some(hello.key.clone())
    );
    store.remove_service(&hello.key).await.unwrap();
    assert_eq!(store.host_owner("green---hello.localhost").unwrap(), None);
}

#[tokio::test]
async fn policies_are_guarded_by_their_etag() {
    let store = Store::open_in_memory().unwrap();
    let a = create(&store, "demo/r/a", 1).await;
    let empty = store.policy(&a.key).unwrap();
    assert!(!empty.etag.is_empty() && empty.bindings.is_empty());
    let public = Policy {
        bindings: vec![Binding {
            role: "roles/run.invoker".to_owned(),
            members: vec!["allUsers".to_owned()],
            condition: None,
        }],
        ..Policy::default()
    };
    let set = store
        .set_policy(&a.key, Some(&empty.etag), public.clone())
        .await
        .unwrap();
    assert!(set.is_public() && set.etag != empty.etag);
    let stale = store
        .set_policy(&a.key, Some(&empty.etag), Policy::default())
        .await
        .unwrap_err();
    assert!(matches!(stale, StoreError::StaleEtag));
    let url_safe = format!("{}=", set.etag.replace('+', "-").replace('/', "_"));
    let again = store
        .set_policy(&a.key, Some(&url_safe), public.clone())
        .await
        .unwrap();
    store
        .set_policy(&a.key, None, public.clone())
        .await
        .unwrap();
    store.remove_service(&a.key).await.unwrap();
    assert_eq!(
        store
            .set_policy(&a.key, None, public)
            .await
            .unwrap_err()
            .class(),
        Class::NotFound
    );
    create(&store, "demo/r/a", 2).await;
    assert!(
        store.policy(&a.key).unwrap().bindings.is_empty(),
        "a new service begins private"
    );
    assert!(
        store
            .set_policy(&a.key, Some(&again.etag), Policy::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn uid_ranges_are_kept_and_reused() {
    let store = Store::open_in_memory().unwrap();
    let mut bases = Vec::new();
    for name in ["a", "b", "c"] {
        let made = create(&store, &format!("demo/r/{name}"), 1).await;
        bases.push(store.uid_base(&made.key).await.unwrap());
        assert_eq!(
            store.uid_base(&made.key).await.unwrap(),
            bases[bases.len() - 1]
        );
    }
    assert_eq!(bases, [0x2000_0000, 0x2001_0000, 0x2002_0000]);
    store.remove_service(&key("demo/r/b")).await.unwrap();
    create(&store, "demo/r/d", 1).await;
    assert_eq!(store.uid_base(&key("demo/r/d")).await.unwrap(), bases[1]);
    assert_eq!(
        store
            .uid_base(&key("demo/r/nobody"))
            .await
            .unwrap_err()
            .class(),
        Class::NotFound
    );
}

#[tokio::test]
async fn a_domain_has_one_mapping_and_is_nobody_elses_host() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store
        .freeze_settings(Settings {
            project: "demo".parse().unwrap(),
            region: "r".parse().unwrap(),
            domain: "run.example.com".to_owned(),
        })
        .await
        .unwrap();
    create(&store, "demo/r/a", 5).await;
    let mapping = |name: &str, route: &str, uid: &str, force_override| DomainMapping {
        name: name.parse().unwrap(),
        project: "demo".parse().unwrap(),
        region: "r".parse().unwrap(),
        meta: Meta {
            uid: uid.to_owned(),
            ..Meta::default()
        },
        spec: DomainSpec {
            route: route.parse().unwrap(),
            certificate: CertificateMode::Automatic,
            force_override,
        },
        status: DomainStatus::default(),
    };
    let made = |mapping| store.create_domain(mapping);
    let first = made(mapping("www.example.com", "a", "1", false))
        .await
        .unwrap();
    assert_eq!(store.domain(&first.name).unwrap().as_ref(), Some(&first));
    for (name, force) in [("www.example.com", false), ("a.run.example.com", true)] {
        let error = made(mapping(name, "b", "2", force)).await.unwrap_err();
        assert_eq!(error.class(), Class::AlreadyExists, "{name}: {error}");
        assert_eq!(
            matches!(error, StoreError::OwnAddress { ref of, .. } if of.service.as_str() == "a"),
            force,
            "{error:?}"
        );
    }
    // Nor does a service get a host that is mapped.
    made(mapping("c.run.example.com", "a", "3", false))
        .await
        .unwrap();
    let service = service("demo/r/c", 6);
    let operation = operation(&service, "c", OperationKind::Create);
    let error = store.create_service(service, operation).await.unwrap_err();
    assert_eq!(error.class(), Class::AlreadyExists, "{error}");
    assert_eq!(
        error.to_string(),
        "the address c.run.example.com of service demo/r/c leads to service demo/r/a by a domain mapping"
    );
    // Taken by force; the mapping that had it can't remove it any more.
    let taken = made(mapping("www.example.com", "b", "4", true))
        .await
        .unwrap();
    store.remove_domain(&first.name, "1").await.unwrap();
    assert_eq!(store.domain(&first.name).unwrap(), Some(taken.clone()));
    assert_eq!(store.domains_of(&taken.service()).unwrap(), [taken]);
    assert_eq!(store.all_domains().unwrap().len(), 2);
    store.remove_domain(&first.name, "4").await.unwrap();
    assert_eq!(store.domain(&first.name).unwrap(), None);
}
