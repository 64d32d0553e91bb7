use super::*;
use crate::{json, pool};

fn service(text: &str) -> DynamicMessage {
    let descriptor = pool()
        .get_message_by_name("google.cloud.run.v2.Service")
        .unwrap();
    json::parse(&descriptor, &serde_json::from_str(text).unwrap()).unwrap()
}

fn masked(paths: &[&str], from: &str, into: &str) -> serde_json::Value {
    let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
    let mut target = service(into);
    apply(&paths, &service(from), &mut target).unwrap();
    json::render(&target, json::Style::default()).unwrap()
}

#[test]
fn only_what_the_mask_names_is_changed() {
    let old = r#"{"description":"old","labels":{"a":"1","b":"2"},"template":{"timeout":"10s","containers":[{"image":"x"}]}}"#;
    let new = r#"{"description":"new","labels":{"a":"9"},"template":{"timeout":"20s","containers":[{"image":"y"}]}}"#;
    let get = |paths: &[&str]| masked(paths, new, old);
    assert_eq!(get(&["description"])["description"], "new");
    assert_eq!(get(&["description"])["template"]["timeout"], "10s");
    assert_eq!(get(&["template.timeout"])["template"]["timeout"], "20s");
    assert_eq!(
        get(&["template.timeout"])["template"]["containers"][0]["image"],
        "x"
    );
    assert_eq!(
        get(&["template.containers"])["template"]["containers"][0]["image"],
        "y"
    );
    assert_eq!(get(&["labels"])["labels"], serde_json::json!({"a": "9"}));
    assert_eq!(
        get(&["labels.a"])["labels"],
        serde_json::json!({"a": "9", "b": "2"})
    );
    assert_eq!(get(&["labels.b"])["labels"], serde_json::json!({"a": "1"}));
    assert_eq!(get(&["*"])["description"], "new");
    assert_eq!(masked(&["description"], "{}", old).get("description"), None);
    assert_eq!(
        masked(&["template.vpcAccess.connector"], "{}", old),
        masked(&[], "{}", old)
    );
}

#[test]
fn a_path_to_nowhere_is_named() {
    for (path, why) in [
        ("nonsense", "names no field"),
        ("template.nonsense", "names no field"),
        ("uid.x", "goes too deep"),
    ] {
        let error = apply(&[path.to_owned()], &service("{}"), &mut service("{}")).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(error.path, path);
    }
}
