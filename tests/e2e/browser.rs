//! Debian's Chromium, headless: a page that opens an event stream and a WebSocket, plain and over TLS.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Server, until};
use crate::real_clients::{has, served};
use crate::trust::trust;

/// What the page shows once the event stream and the WebSocket have worked.
const SHOWN: [&str; 5] = [
    "page loaded",
    "event 0",
    "event 1",
    "event 2",
    "through the socket",
];

/// What the browser says of an authority that it doesn't know.
const UNKNOWN: &str = "ERR_CERT_AUTHORITY_INVALID";

/// The page as the browser has it, with `home` as home; and what it says besides.
fn look(home: &Path, url: &str) -> (String, String) {
    let output = Command::new("timeout")
        .args(["40", "chromium", "--headless", "--no-sandbox"])
        .args(["--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"])
        .arg("--virtual-time-budget=10000")
        .arg(format!(
            "--user-data-dir={}",
            home.join("profile").display()
        ))
        .arg(url)
        .env("HOME", home)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// It must have come as far as the certificate: one that crashed or was too slow has shown nothing either.
fn distrusts(home: &Path, url: &str) {
    let (page, said) = look(home, url);
    assert!(
        said.contains(UNKNOWN) && !page.contains("protocols"),
        "trusted by nobody: {page}\n{said}"
    );
}

/// Looks until the page shows everything: on a busy machine the browser's time may be over before.
fn until_shown(home: &Path, url: &str) {
    let page = until("the page to show all", Duration::from_secs(90), || {
        let (page, _) = look(home, url);
        let all = SHOWN
            .iter()
            .all(|text| page.contains(&format!("<p>{text}</p>")));
        all.then_some(page)
    });
    assert!(page.contains("<title>protocols</title>"), "{page}");
}

#[test]
fn chromium() {
    const NAME: &str = "browser::chromium";
    if !has(NAME, "chromium") {
        return;
    }
    let Some(server) = served(NAME, false) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    until_shown(
        home.path(),
        &format!("http://app.localhost:{}/page", server.http.port()),
    );
    server.finish();
}

/// The browser trusts the local authority because `utsuwa trust` was run, and for no other reason.
#[test]
fn chromium_over_tls() {
    const NAME: &str = "browser::chromium_over_tls";
    if !has(NAME, "chromium") {
        return;
    }
    let Some(server) = served(NAME, false) else {
        return;
    };
    let url = format!("https://app.localhost:{}/page", server.https.port());
    let dir = tempfile::tempdir().unwrap();
    let (home, store) = (dir.path().join("home"), dir.path().join("store"));
    let database = home.join(".pki/nssdb");
    for folder in [database.clone(), store.join("own"), store.join("certs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let made = Command::new("certutil")
        .args(["-N", "--empty-password", "-d"])
        .arg(format!("sql:{}", database.display()))
        .status();
    assert!(made.unwrap().success());
    distrusts(&home, &url);
    trusts(&server, &home, &store, "");
    until_shown(&home, &url);
    trusts(&server, &home, &store, "--remove");
    distrusts(&home, &url);
    server.finish();
}

fn trusts(server: &Server, home: &Path, store: &Path, args: &str) {
    let done = trust(server, home, store, args);
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("nssdb"), "{done:?}");
}
