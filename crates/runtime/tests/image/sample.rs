//! The built-in sample image.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use crate::fixture::{Store, is_root};

#[tokio::test]
async fn the_sample_needs_no_network_and_runs() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let store = Store::new(|_settings| {});
    let image = store.store.ensure("gcr.io/cloudrun/hello").await.unwrap();
    assert_eq!(image.reference, "gcr.io/cloudrun/hello");
    assert!(
        image.pinned.starts_with("utsuwa.local/hello@sha256:"),
        "{}",
        image.pinned
    );
    assert_eq!(image.config.entrypoint, ["/hello"]);
    let again = store.store.ensure(&image.pinned).await.unwrap();
    assert_eq!(
        (&again.manifest, &again.layers),
        (&image.manifest, &image.layers)
    );
    let other = Store::new(|_settings| {})
        .store
        .ensure("utsuwa.local/hello")
        .await
        .unwrap();
    assert_eq!(
        other.manifest, image.manifest,
        "the same build makes the same image"
    );

    // The program itself, without a sandbox.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut child = Command::new(store.layer(&image.layers[0]).join("hello"))
        .env("PORT", port.to_string())
        .env("K_SERVICE", "shop<&>")
        .env("K_REVISION", "shop-00001")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("listens on port"));
    let ask = |target: &str| {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(
            connection,
            "GET {target} HTTP/1.1\r\nhost: x.example\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    };
    let page = ask("/");
    assert!(
        page.contains("shop&lt;&amp;&gt;") && page.contains("shop-00001"),
        "{page}"
    );
    let environment = ask("/env");
    let (_head, body) = environment.split_once("\r\n\r\n").unwrap();
    let parsed: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(parsed["K_SERVICE"], "shop<&>");
    assert!(ask("/headers").contains("\"host\": \"x.example\""));
    assert!(ask("/alloc?mb=3").contains("held 3 MiB"));
    assert!(ask("/sleep?ms=x").starts_with("HTTP/1.1 400"));
    assert!(ask("/log?severity=WARNING&message=a%20%22b%22").contains("logged 1"));
    let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(
        (line["severity"].as_str(), line["message"].as_str()),
        (Some("WARNING"), Some("a \"b\""))
    );
    // More than the pipe holds: read while it is written.
    let (answer, line) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask("/log?message=long&bytes=100000"));
        let line = lines.next().unwrap().unwrap();
        (asked.join().unwrap(), line)
    });
    assert!(answer.contains("logged 1"));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let message = line["message"].as_str().unwrap();
    assert_eq!(
        (message.len(), message.trim_end_matches('.')),
        (100_000, "long")
    );
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(lines.next().unwrap().unwrap().contains("SIGTERM"));
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
}

#[tokio::test]
async fn images_nobody_pins_are_collected_and_pinned_ones_stay() {
    if !is_root(crate::skip::here!()) {
        return;
    }
    let store = Store::new(|settings| settings.grace = std::time::Duration::ZERO);
    let image = store.store.ensure("utsuwa.local/hello").await.unwrap();
    store.store.close().await;
    let kept = store
        .store
        .collect(&BTreeSet::from([image.manifest.clone()]))
        .await
        .unwrap();
    assert_eq!((kept.images, kept.layers), (0, 0));
    assert!(store.layer(&image.layers[0]).join("hello").exists());
    // The compressed layer went when the unpacked one was safe; manifest and configuration stay.
    assert_eq!(store.names("blobs/sha256").len(), 2);
    let collected = store.store.collect(&BTreeSet::new()).await.unwrap();
    assert_eq!(
        (collected.images, collected.layers, collected.blobs),
        (1, 1, 2)
    );
    assert_eq!(store.names("layers"), Vec::<String>::new());
    assert!(store.store.list().is_empty());
    let again = Store::at(store.directory, |_settings| {});
    again.store.ensure("utsuwa.local/hello").await.unwrap();
    assert!(again.layer(&image.layers[0]).join("hello").exists());
}

#[tokio::test]
async fn other_local_names_are_not_found() {
    let store = Store::new(|_settings| {});
    let error = store
        .store
        .ensure("utsuwa.local/loaded/app:v1")
        .await
        .unwrap_err();
    assert_eq!(error.class(), utsuwa_runtime::image::ErrorClass::NotFound);
    assert!(
        error
            .to_string()
            .starts_with("Image 'utsuwa.local/loaded/app:v1' not found."),
        "{error}"
    );
}
