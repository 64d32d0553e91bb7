use super::*;

#[test]
fn versions_are_read() {
    assert_eq!(version("6.1.0-18-amd64"), (6, 1));
    assert_eq!(version("5.15.0"), (5, 15));
    assert_eq!(version("6.18.44-fc-v669"), (6, 18));
    assert!(version("10.0") > version("6.18"));
}

#[test]
fn every_lack_has_a_text() {
    for (name, feature) in probe().all() {
        if let Err(missing) = feature {
            assert!(!missing.what.is_empty(), "{name}");
        }
    }
}
