//! The files: locked, damaged, of other versions, forgotten in time.

use super::*;

#[tokio::test]
async fn a_second_server_is_refused_with_the_first_ones_pid() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, StoreError::Locked { pid, .. } if *pid == std::process::id().to_string()),
        "{error}"
    );
    assert_eq!(error.class(), Class::Unavailable);
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn files_that_cant_be_used_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    std::fs::write(
        &path,
        "this is no database, however long it may be, and never was one".repeat(40),
    )
    .unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("state.sqlite"), "{error}");
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .starts_with("this is no database")
    );

    std::fs::remove_file(&path).unwrap();
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(foreign);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");

    std::fs::remove_file(&path).unwrap();
    drop(Store::open(dir.path()).unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 77).unwrap();
    drop(newer);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::Newer { found: 77, .. }),
        "{error:?}"
    );
    for part in ["state.sqlite", "77", "newer version", "--data-dir"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_damaged_page_is_noticed_at_start() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        for n in 0..50 {
            create(&store, &format!("demo/r/s{n}"), n).await;
        }
    }
    let path = dir.path().join("state.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(
        bytes.len() > 20_000,
        "the log was moved into the file when it was closed"
    );
    for byte in &mut bytes[4096..12_288] {
        *byte = 0xa5;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

/// Making and removing services over and over leaves nothing behind for ever.
#[tokio::test]
async fn operations_of_gone_services_are_forgotten_after_a_month() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let day = 24 * 3600 * 1_000_000;
    let old = create(&store, "demo/r/old", 0).await;
    let outcome = Some((1, GenerationOutcome::Succeeded));
    store
        .update_service_status(&old.key, outcome, |_| false)
        .await
        .unwrap();
    store.remove_service(&old.key).await.unwrap();
    create(&store, "demo/r/next", 29 * day).await;
    assert!(store.operation("op-demo/r/old-0").unwrap().is_some());
    let rows = || {
        let reader = rusqlite::Connection::open(dir.path().join("state.sqlite")).unwrap();
        let count = |table: &str| -> i64 {
            let count = format!("SELECT count(*) FROM {table}");
            reader.query_row(&count, [], |row| row.get(0)).unwrap()
        };
        (count("outcomes"), count("removals"))
    };
    assert_eq!(rows(), (1, 1));
    create(&store, "demo/r/late", 31 * day).await;
    assert_eq!(store.operation("op-demo/r/old-0").unwrap(), None);
    assert_eq!(rows(), (0, 0), "nobody can ask for them");
    assert!(
        store
            .operation(&format!("op-demo/r/next-{}", 29 * day))
            .unwrap()
            .is_some()
    );
}

/// What a later version needs to know quickly is taken out of rows that an earlier version wrote.
#[tokio::test]
async fn an_older_database_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let written = {
        let store = Store::open(dir.path()).unwrap();
        let made = create(&store, "demo/r/a", 77).await;
        store
            .set_policy(&made.key, None, Policy::default())
            .await
            .unwrap();
        store
            .create_revision(revision(&made, "a-00001-abc", 5, "n"))
            .await
            .unwrap();
        made
    };
    let path = dir.path().join("state.sqlite");
    let older = rusqlite::Connection::open(&path).unwrap();
    older
        .execute_batch(
            "DROP TABLE domains; DROP INDEX revisions_going; ALTER TABLE services DROP COLUMN version; ALTER TABLE policies DROP COLUMN etag;
             ALTER TABLE revisions DROP COLUMN delete_time; PRAGMA user_version = 1",
        )
        .unwrap();
    drop(older);
    let store = Store::open(dir.path()).unwrap();
    let etag = store.policy(&written.key).unwrap().etag;
    store
        .update_revision(&store.revisions_of(&written.key).unwrap()[0].key, |r| {
            r.meta.delete_time = Some(Timestamp(9));
            true
        })
        .await
        .unwrap();
    let columns = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row(
            "SELECT s.version, p.etag, r.delete_time FROM services s, policies p, revisions r",
            [],
            |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?,
                ))
            },
        )
        .unwrap();
    assert_eq!(columns, (77, etag, 9));
}
