//! `docs/compat.md` must name every method and field that our protos describe, and those of Google's that they leave out.

use std::path::Path;

const PAGE: &str = "docs/compat.md";
const PROTOS: &str = "proto/google/cloud/run/v2";
const LEFT_OUT: &str = "crates/wire/tests/snapshots/facts__what_is_left_out_is_listed.snap";

pub(super) fn check(root: &Path, problems: &mut Vec<String>) {
    let page = std::fs::read_to_string(root.join(PAGE)).unwrap_or_default();
    let mut names = Vec::new();
    for file in super::files(&root.join(PROTOS), "proto") {
        names.extend(described(
            &std::fs::read_to_string(&file).unwrap_or_default(),
        ));
    }
    let left_out = std::fs::read_to_string(root.join(LEFT_OUT)).unwrap_or_default();
    names.extend(
        left_out
            .lines()
            .filter(|l| l.starts_with("google."))
            .filter_map(|l| l.rsplit('.').next())
            .map(camel),
    );
    if names.is_empty() {
        problems.push(format!("{PROTOS}: no field is found there"));
    }
    names.sort();
    names.dedup();
    for name in names {
        if !page.contains(&format!("`{name}`")) {
            problems.push(format!(
                "{PAGE}: says nothing about `{name}`; add whether it works, is refused or has no effect"
            ));
        }
    }
}

/// Methods, and fields in their JSON spelling.
fn described(proto: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in proto.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("rpc ") {
            found.extend(rest.split('(').next().map(str::to_owned));
        } else if !line.starts_with("//")
            && let Some((left, right)) = line.split_once(" = ")
            && right
                .trim_end_matches(';')
                .split(' ')
                .next()
                .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
            && left.split_whitespace().count() > 1
            && let Some(name) = left.split_whitespace().last()
        {
            found.push(camel(name));
        }
    }
    found
}

fn camel(name: &str) -> String {
    let mut out = String::new();
    for (index, part) in name.split('_').enumerate() {
        let mut letters = part.chars();
        match letters.next() {
            Some(first) if index > 0 => {
                out.push(first.to_ascii_uppercase());
                out.push_str(letters.as_str());
            }
            Some(_) => out.push_str(part),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn fields_methods_and_nothing_else() {
        let proto = "syntax = \"proto3\";\nenum E {\n  A = 0;\n}\nrpc GetThing(A) returns (B) {\nmessage M {\n  // int32 old = 1;\n  map<string, string> node_selector = 3;\n  optional int32 count = 6;\n}";
        let found = super::described(proto);
        assert!(found.contains(&"GetThing".to_owned()), "{found:?}");
        assert!(found.contains(&"nodeSelector".to_owned()), "{found:?}");
        assert!(found.contains(&"count".to_owned()), "{found:?}");
        assert!(
            !["A", "syntax", "old"]
                .iter()
                .any(|n| found.contains(&(*n).to_owned())),
            "{found:?}"
        );
    }
}
