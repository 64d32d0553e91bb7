#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

#[test]
fn redirects_never_lead_from_https_to_plain_http() {
    let registry = Registry::new(RegistrySettings {
        insecure: vec!["plain.example".to_owned(), "127.0.0.1:5000".to_owned()],
        ..RegistrySettings::default()
    });
    let image = Reference::parse("r.example/x").unwrap();
    for (from, to, allowed) in [
        ("https://r.example/", "https://cdn.example/b", true),
        ("https://r.example/", "http://cdn.example/b", false),
        ("https://r.example/", "http://plain.example:81/b", true),
        ("https://r.example/", "http://127.0.0.1:5001/b", false),
        ("https://r.example/", "ftp://cdn.example/b", false),
        ("http://127.0.0.1:5000/", "http://cdn.example/b", true),
        ("http://127.0.0.1:5000/", "file:///etc/passwd", false),
    ] {
        let outcome = registry.allow(&image, &Url::parse(from).unwrap(), &Url::parse(to).unwrap());
        assert_eq!(outcome.is_ok(), allowed, "{from} → {to}: {outcome:?}");
    }
}
