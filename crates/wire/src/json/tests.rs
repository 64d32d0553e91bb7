use proptest::prelude::*;
use prost::Message;
use prost_reflect::ReflectMessage;
use serde_json::json;

use super::*;
use crate::pool;

fn service() -> MessageDescriptor {
    pool()
        .get_message_by_name("google.cloud.run.v2.Service")
        .unwrap()
}

#[test]
fn the_wrong_field_is_named() {
    for (value, field) in [
        (json!({"description": 7}), "description"),
        (
            json!({"template": {"containers": [{"image": "x"}, {"image": 7}]}}),
            "template.containers[1].image",
        ),
        (json!({"template": {"timeout": "soon"}}), "template.timeout"),
        (
            json!({"template": {"containers": {"image": "x"}}}),
            "template.containers",
        ),
        (
            json!({"labels": {"good": "x", "bad": 7}}),
            "labels[\"bad\"]",
        ),
        (json!({"ingress": "EVERYWHERE"}), "ingress"),
        (
            json!({"traffic": [{"percent": 1}, {"type": "LATEST"}]}),
            "traffic[1].type",
        ),
        (
            json!({"template": {"scaling": {"minInstanceCount": "many"}}}),
            "template.scaling.minInstanceCount",
        ),
        (json!([]), ""),
    ] {
        let error = parse(&service(), &value).err().unwrap();
        assert_eq!(error.field, field, "{value}: {error}");
        assert!(!error.why.is_empty());
    }
}

#[test]
fn unknown_fields_are_ignored_and_both_spellings_are_read() {
    let message = parse(
        &service(),
        &json!({"brandNew": {"x": 1}, "invoker_iam_disabled": true, "generation": "12"}),
    )
    .unwrap();
    let back = render(&message, Style::default()).unwrap();
    assert_eq!(
        back,
        json!({"invokerIamDisabled": true, "generation": "12"})
    );
}

#[test]
fn enums_are_names_or_numbers() {
    let message = parse(&service(), &json!({"ingress": "INGRESS_TRAFFIC_ALL"})).unwrap();
    assert_eq!(
        render(&message, Style { enum_numbers: true }).unwrap(),
        json!({"ingress": 1})
    );
    assert_eq!(parse(&service(), &json!({"ingress": 1})).unwrap(), message);
}

#[test]
fn an_any_shows_its_type() {
    let operation = crate::google::longrunning::Operation {
        name: "projects/p/locations/r/operations/o".to_owned(),
        metadata: Some(crate::pack(&crate::google::cloud::run::v2::Service {
            uid: "u".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let descriptor = pool()
        .get_message_by_name("google.longrunning.Operation")
        .unwrap();
    let message = DynamicMessage::decode(descriptor, operation.encode_to_vec().as_slice()).unwrap();
    assert_eq!(
        render(&message, Style::default()).unwrap()["metadata"],
        json!({"@type": "type.googleapis.com/google.cloud.run.v2.Service", "uid": "u"})
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9.:-]{0,12}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("template".to_owned()),
        Just("containers".to_owned()),
        Just("labels".to_owned()),
        Just("image".to_owned()),
        Just("traffic".to_owned()),
        Just("percent".to_owned()),
        Just("createTime".to_owned()),
        Just("timeout".to_owned()),
        Just("ingress".to_owned()),
        Just("startupProbe".to_owned()),
        "[a-z]{1,6}",
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name.clone(), inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_is_read_is_read_back(value in any_json()) {
        if let Ok(message) = parse(&service(), &value) {
            // Compared as JSON: a list that is set but empty is no list.
            let written = render(&message, Style::default()).unwrap();
            let again = parse(&service(), &written).ok().unwrap();
            prop_assert_eq!(&render(&again, Style::default()).unwrap(), &written);
            let bytes = message.encode_to_vec();
            let decoded = DynamicMessage::decode(message.descriptor(), bytes.as_slice()).unwrap();
            prop_assert_eq!(&render(&decoded, Style::default()).unwrap(), &written);
        }
    }
}
