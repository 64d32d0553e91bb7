//! Every method of v2 over REST, on a store in memory.

mod bad;
mod operations;
mod others;
mod services;

use serde_json::{Value, json};

use super::{not_built, rules};
use crate::testing::Bench;

pub(super) const PARENT: &str = "/run/v2/projects/demo/locations/asia-northeast1";

pub(super) fn hello() -> Value {
    json!({"template": {"containers": [{"image": "utsuwa.local/hello"}]}})
}

pub(super) async fn created(bench: &Bench, name: &str) -> Value {
    let (status, operation) = bench
        .call(
            "POST",
            &format!("{PARENT}/services?serviceId={name}"),
            hello(),
        )
        .await;
    assert_eq!(status, 200, "{operation}");
    operation
}

/// Ids are random.
pub(super) fn redacted(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(object) => {
                for (name, inner) in object.iter_mut() {
                    if name == "uid" {
                        *inner = json!("UID");
                    }
                    walk(inner);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            Value::String(text) => {
                if let Some((front, _)) = text.split_once("/operations/") {
                    *text = format!("{front}/operations/ID");
                }
            }
            _ => {}
        }
    }
    walk(&mut value);
    value
}

#[test]
fn all_routes_can_be_read() {
    assert_eq!(rules().unwrap().len(), 17);
    assert!(not_built().len() > 40);
}
