//! Are our descriptions of Google's API still true? Compares `proto/` with Google's own files where the npm package
//! `google-proto-files` (5.0.3) is unpacked: `UTSUWA_GOOGLE_PROTOS` names the folder that holds `google/`. Elsewhere the
//! comparison is reported as skipped.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "../../../tests/skip.rs"]
mod skip;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage,
    ServiceDescriptor, Value,
};

/// Google's files for every file of ours; the well-known types come with the compiler.
fn theirs(test: &str) -> Option<DescriptorPool> {
    let Some(root) = std::env::var_os("UTSUWA_GOOGLE_PROTOS").map(PathBuf::from) else {
        skip::skip(
            test,
            "set UTSUWA_GOOGLE_PROTOS to the folder of the npm package google-proto-files@5.0.3",
        );
        return None;
    };
    assert!(
        root.join("google/api/http.proto").is_file(),
        "{} holds no google/api/http.proto",
        root.display()
    );
    // Without its google/protobuf: the compiler has the well-known types, and two of each would clash.
    let mut compiler = protox::Compiler::with_file_resolver({
        let mut chain = protox::file::ChainFileResolver::new();
        chain.add(protox::file::GoogleFileResolver::new());
        chain.add(protox::file::IncludeFileResolver::new(root.clone()));
        chain
    });
    compiler.include_imports(true);
    for file in ours()
        .files()
        .filter(|f| !f.name().starts_with("google/protobuf/"))
    {
        compiler
            .open_file(file.name())
            .unwrap_or_else(|e| panic!("{}: Google has no such file: {e}", file.name()));
    }
    Some(DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap())
}

fn ours() -> DescriptorPool {
    utsuwa_wire::pool().clone()
}

fn is_ours(full_name: &str) -> bool {
    full_name.starts_with("google.") && !full_name.starts_with("google.protobuf.")
}

/// What a field is, apart from its number: type with full names, repetition, presence, JSON name, oneof.
fn shape(field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Message(message) if !message.is_map_entry() => {
            format!("message {}", message.full_name())
        }
        Kind::Enum(values) => format!("enum {}", values.full_name()),
        Kind::Message(_) => {
            let Kind::Message(entry) = field.kind() else {
                unreachable!("matched above")
            };
            format!(
                "map of {} to {}",
                shape(&entry.map_entry_key_field()),
                shape(&entry.map_entry_value_field())
            )
        }
        scalar => format!("{scalar:?}"),
    };
    let oneof = field
        .containing_oneof()
        .map(|o| o.name().to_owned())
        .unwrap_or_default();
    format!(
        "{kind} {:?} presence={} json={} oneof={oneof}",
        field.cardinality(),
        field.supports_presence(),
        field.json_name()
    )
}

fn compare_message(ours: &MessageDescriptor, theirs: &MessageDescriptor, wrong: &mut Vec<String>) {
    for field in ours.fields() {
        let Some(real) = theirs.get_field_by_name(field.name()) else {
            wrong.push(format!("{}: Google has no such field", field.full_name()));
            continue;
        };
        if field.number() != real.number() {
            wrong.push(format!(
                "{}: number {}, Google's is {}",
                field.full_name(),
                field.number(),
                real.number()
            ));
        }
        if shape(&field) != shape(&real) {
            wrong.push(format!(
                "{}: {}, Google's is {}",
                field.full_name(),
                shape(&field),
                shape(&real)
            ));
        }
    }
}

fn compare_enum(ours: &EnumDescriptor, theirs: &EnumDescriptor, wrong: &mut Vec<String>) {
    for value in ours.values() {
        match theirs.get_value_by_name(value.name()) {
            None => wrong.push(format!(
                "{}: Google has no value {}",
                ours.full_name(),
                value.name()
            )),
            Some(real) if real.number() != value.number() => {
                wrong.push(format!(
                    "{}.{}: {}, Google's is {}",
                    ours.full_name(),
                    value.name(),
                    value.number(),
                    real.number()
                ));
            }
            Some(_) => {}
        }
    }
    // Half an enum would refuse values that clients may send.
    for value in theirs
        .values()
        .filter(|v| ours.get_value_by_name(v.name()).is_none())
    {
        wrong.push(format!(
            "{}: value {} is missing",
            ours.full_name(),
            value.name()
        ));
    }
}

/// All routes of a method as text: verb, path, body.
fn routes(
    pool: &DescriptorPool,
    service: &ServiceDescriptor,
) -> BTreeMap<String, BTreeSet<String>> {
    let extension = pool.get_extension_by_name("google.api.http").unwrap();
    let text = |rule: &prost_reflect::DynamicMessage| {
        let descriptor = rule.descriptor();
        let pattern = descriptor.oneofs().find(|o| o.name() == "pattern").unwrap();
        let field = pattern.fields().find(|f| rule.has_field(f)).unwrap();
        let path = rule
            .get_field(&field)
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let body = rule
            .get_field_by_name("body")
            .and_then(|b| b.as_str().map(str::to_owned))
            .unwrap_or_default();
        format!("{} {path} body={body:?}", field.name())
    };
    let mut all = BTreeMap::new();
    for method in service.methods() {
        let options = method.options();
        let mut routes = BTreeSet::new();
        if options.has_extension(&extension) {
            let value = options.get_extension(&extension);
            let rule = value.as_message().unwrap();
            routes.insert(text(rule));
            if let Some(more) = rule.get_field_by_name("additional_bindings") {
                routes.extend(
                    more.as_list()
                        .unwrap_or_default()
                        .iter()
                        .filter_map(Value::as_message)
                        .map(text),
                );
            }
        }
        all.insert(method.name().to_owned(), routes);
    }
    all
}

#[test]
fn every_name_number_type_and_route_is_googles() {
    let Some(theirs) = theirs(skip::here!()) else {
        return;
    };
    let ours = ours();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for message in ours.all_messages().filter(|m| is_ours(m.full_name())) {
        match theirs.get_message_by_name(message.full_name()) {
            Some(real) => compare_message(&message, &real, &mut wrong),
            None => wrong.push(format!(
                "{}: Google has no such message",
                message.full_name()
            )),
        }
        compared += 1;
    }
    for values in ours.all_enums().filter(|e| is_ours(e.full_name())) {
        match theirs.get_enum_by_name(values.full_name()) {
            Some(real) => compare_enum(&values, &real, &mut wrong),
            None => wrong.push(format!("{}: Google has no such enum", values.full_name())),
        }
        compared += 1;
    }
    for service in ours.services().filter(|s| is_ours(s.full_name())) {
        let Some(real) = theirs.get_service_by_name(service.full_name()) else {
            wrong.push(format!(
                "{}: Google has no such service",
                service.full_name()
            ));
            continue;
        };
        let (our_routes, their_routes) = (routes(&ours, &service), routes(&theirs, &real));
        for method in service.methods() {
            let Some(same) = real.methods().find(|m| m.name() == method.name()) else {
                wrong.push(format!("{}: Google has no such method", method.full_name()));
                continue;
            };
            let signature = |m: &prost_reflect::MethodDescriptor| {
                (
                    m.input().full_name().to_owned(),
                    m.output().full_name().to_owned(),
                    m.is_client_streaming(),
                    m.is_server_streaming(),
                )
            };
            if signature(&method) != signature(&same) {
                wrong.push(format!(
                    "{}: {:?}, Google's is {:?}",
                    method.full_name(),
                    signature(&method),
                    signature(&same)
                ));
            }
            for route in our_routes[method.name()].difference(&their_routes[method.name()]) {
                wrong.push(format!(
                    "{}: Google has no route {route}",
                    method.full_name()
                ));
            }
        }
    }
    let number = |pool: &DescriptorPool| {
        pool.get_extension_by_name("google.api.http")
            .unwrap()
            .number()
    };
    assert_eq!(
        number(&ours),
        number(&theirs),
        "the number of google.api.http"
    );
    assert!(
        wrong.is_empty(),
        "{} of {compared} descriptions differ from Google's:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 60, "only {compared} descriptions were compared");
}

#[test]
fn the_comparison_finds_differences() {
    let pool = ours();
    let message = |name: &str| pool.get_message_by_name(name).unwrap();
    let mut wrong = Vec::new();
    compare_message(
        &message("google.cloud.run.v2.Service"),
        &message("google.cloud.run.v2.Revision"),
        &mut wrong,
    );
    for text in [
        "Service.uid: number 3, Google's is 2",
        "Service.template: Google has no such field",
        "Service.generation: number 4",
    ] {
        assert!(
            wrong.iter().any(|w| w.contains(text)),
            "{text} in {wrong:?}"
        );
    }
    let mut wrong = Vec::new();
    let values = |name: &str| pool.get_enum_by_name(name).unwrap();
    let (one, other) = (
        "google.cloud.run.v2.Condition.State",
        "google.cloud.run.v2.Condition.Severity",
    );
    compare_enum(&values(one), &values(other), &mut wrong);
    assert!(
        wrong.iter().any(|w| w.contains("value WARNING is missing")),
        "{wrong:?}"
    );
}

/// What Google has and we don't, of the messages and services that we have: the list for `docs/compat.md`.
#[test]
fn what_is_left_out_is_listed() {
    let Some(theirs) = theirs(skip::here!()) else {
        return;
    };
    let ours = ours();
    let mut missing = Vec::new();
    for message in ours
        .all_messages()
        .filter(|m| m.full_name().starts_with("google.cloud.run.v2.") && !m.is_map_entry())
    {
        let Some(real) = theirs.get_message_by_name(message.full_name()) else {
            continue;
        };
        for field in real
            .fields()
            .filter(|f| message.get_field_by_name(f.name()).is_none())
        {
            missing.push(field.full_name().to_owned());
        }
    }
    for service in ours
        .services()
        .filter(|s| s.full_name().starts_with("google.cloud.run.v2."))
    {
        let real = theirs.get_service_by_name(service.full_name()).unwrap();
        for method in real
            .methods()
            .filter(|m| service.methods().all(|o| o.name() != m.name()))
        {
            missing.push(method.full_name().to_owned());
        }
    }
    missing.sort();
    insta::assert_snapshot!(missing.join("\n"));
}
