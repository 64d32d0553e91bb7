use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn the_authority_is_made_once_and_kept_private() {
    let data = tempfile::tempdir().unwrap();
    let keys = data.path().join("keys");
    let path = ensure_ca(&keys).unwrap();
    let first = std::fs::read(&path).unwrap();
    Proxy::open(&keys).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first);
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&keys), mode(&path), mode(&keys.join("ca-key.pem"))),
        (0o700, 0o600, 0o600)
    );
}

#[test]
fn broken_files_are_named() {
    let data = tempfile::tempdir().unwrap();
    let path = ensure_ca(data.path()).unwrap();
    std::fs::write(&path, "nonsense").unwrap();
    let error = Proxy::open(data.path()).map(drop).unwrap_err().to_string();
    assert!(
        error.contains("ca.pem") && error.contains("remove"),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
    // Half a pair is of no use: both are made anew.
    Proxy::open(data.path()).unwrap();
}

#[test]
fn only_google_hosts_are_terminated() {
    let data = tempfile::tempdir().unwrap();
    let proxy = Proxy::open(data.path()).unwrap();
    for (host, port, served) in [
        ("run.googleapis.com", 443, true),
        ("us-central1-run.googleapis.com", 443, true),
        ("run.googleapis.com", 8443, false),
        ("googleapis.com", 443, false),
        ("example.test", 443, false),
    ] {
        assert_eq!(
            matches!(proxy.verdict(host, port), Verdict::Terminate(_)),
            served,
            "{host}:{port}"
        );
    }
}
