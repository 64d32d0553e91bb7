use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    traffic: TrafficArgs,
}

/// As typed after `update-traffic`.
fn args(text: &str) -> TrafficArgs {
    let words = ["update-traffic"].into_iter().chain(text.split(' '));
    Line::try_parse_from(words).unwrap().traffic
}

const OWN: &str = "projects/p/locations/r/services/s";

/// `a` has 40 percent, the newest 60; `a` is tagged `old`, the newest `new`.
fn before() -> Vec<Value> {
    vec![
        json!({"type": LATEST, "percent": 60}),
        json!({"type": REVISION, "revision": "a", "percent": 40}),
        json!({"type": REVISION, "revision": "a", "tag": "old"}),
        json!({"type": LATEST, "tag": "new"}),
    ]
}

/// What comes of `text`: `REVISION=PERCENT` and `TAG:REVISION`.
fn after(text: &str) -> Result<String, Failure> {
    let word = |t: &Value| {
        let revision = t["revision"].as_str().unwrap_or("LATEST");
        match (t["tag"].as_str(), t["percent"].as_u64()) {
            (Some(tag), None) => format!("{tag}:{revision}"),
            (None, Some(percent)) => format!("{revision}={percent}"),
            _ => format!("odd {t}"),
        }
    };
    let new = new_traffic(before(), &args(text), OWN)?;
    Ok(new.iter().map(word).collect::<Vec<_>>().join(" "))
}

#[test]
fn traffic_that_was_never_set_is_all_the_newest_ones() {
    for (text, expected) in [
        (
            "s --update-tags blue=a",
            json!([{"type": LATEST, "percent": 100}, {"type": REVISION, "revision": "a", "tag": "blue"}]),
        ),
        (
            "s --set-tags blue=LATEST",
            json!([{"type": LATEST, "percent": 100}, {"type": LATEST, "tag": "blue"}]),
        ),
        (
            "s --to-revisions a=10",
            json!([{"type": REVISION, "revision": "a", "percent": 10}, {"type": LATEST, "percent": 90}]),
        ),
    ] {
        let new = new_traffic(Vec::new(), &args(text), OWN).unwrap();
        assert_eq!(json!(new), expected, "{text}");
    }
}

#[test]
fn each_flag_does_what_gclouds_does() {
    for (text, expected) in [
        ("s --to-latest", "LATEST=100 old:a new:LATEST"),
        // The rest goes on in proportion.
        (
            "s --to-revisions b=10",
            "b=10 LATEST=54 a=36 old:a new:LATEST",
        ),
        ("s --to-revisions a=100", "a=100 old:a new:LATEST"),
        ("s --to-tags old=90", "a=90 LATEST=10 old:a new:LATEST"),
        ("s --to-tags new=100", "LATEST=100 old:a new:LATEST"),
        ("s --clear-tags", "LATEST=60 a=40"),
        ("s --remove-tags old,none", "LATEST=60 a=40 new:LATEST"),
        ("s --set-tags next=b", "LATEST=60 a=40 next:b"),
        (
            "s --update-tags old=b,x=LATEST",
            "LATEST=60 a=40 new:LATEST old:b x:LATEST",
        ),
        (
            "s --remove-tags new --update-tags new=c",
            "LATEST=60 a=40 old:a new:c",
        ),
        // Tags first, then percentages.
        (
            "s --update-tags next=b --to-tags next=100",
            "b=100 old:a new:LATEST next:b",
        ),
        (
            "s --update-tags x=a --to-tags x=20,old=30",
            "a=50 LATEST=50 old:a new:LATEST x:a",
        ),
    ] {
        assert_eq!(after(text).ok().unwrap(), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_flag() {
    for (text, message, hint) in [
        (
            "s --set-tags Bad_Tag=a",
            "--set-tags: the tag in \"Bad_Tag=a\": not a DNS 1035 label",
            "TAG---s",
        ),
        (
            "s --update-tags 1=a",
            "--update-tags: the tag in \"1=a\"",
            "--update-tags takes TAG=REVISION",
        ),
        (
            "s --update-tags a2345678901234567890123456789012345678901234567=a",
            "46 characters together",
            "address",
        ),
        ("s --update-tags x", "must be TAG=REVISION", ""),
        ("s --update-tags x=a,x=b", "names tag \"x\" twice", ""),
        (
            "s --to-tags od=10",
            "[s] has no tag \"od\"",
            "did you mean old?",
        ),
        ("s --to-tags zzzz=10", "has no tag", "it has old, new"),
        (
            "s --clear-tags --to-tags zzzz=10",
            "has no tag",
            "--update-tags zzzz=REVISION",
        ),
        ("s --to-revisions b=x", "whole number from 0 to 100", ""),
        ("s --to-revisions b=60,c=50", "add up to 110", ""),
        (
            "s --to-revisions LATEST=10,a=10",
            "80 percent go nowhere",
            "",
        ),
    ] {
        let failure = after(text).err().unwrap_or_else(|| panic!("{text}"));
        assert!(failure.message.contains(message), "{text}: {failure}");
        let said = failure.hint.unwrap_or_default();
        assert!(said.contains(hint), "{text}: {said}");
        assert_eq!(failure.status, 2, "{text}");
    }
    for together in [
        "s --to-latest --to-tags a=1",
        "s --set-tags a=b --update-tags a=b",
        "s --clear-tags --remove-tags a",
        "s --to-tags a=1 --to-revisions a=1",
    ] {
        let words = ["update-traffic"].into_iter().chain(together.split(' '));
        assert!(Line::try_parse_from(words).is_err(), "{together}");
    }
}

#[test]
fn an_entry_with_both_becomes_two() {
    let both = vec![json!({"type": LATEST, "percent": 100, "tag": "live"})];
    let new = new_traffic(both, &args("s --clear-tags"), OWN)
        .ok()
        .unwrap();
    assert_eq!(new, [json!({"type": LATEST, "percent": 100})]);
}

#[test]
fn the_revision_that_was_meant_is_named() {
    let there = ["s-00001-abc".to_owned(), "s-00002-xyz".to_owned()];
    let targets = json!([
        {"type": LATEST, "percent": 10},
        {"revision": "s-00002-xyz", "percent": 20},
        {"revision": "s-00001", "percent": 70},
    ]);
    let found = meant(&targets, &there);
    assert_eq!(found, Some(("s-00001".to_owned(), "s-00001-abc")));
    assert_eq!(meant(&json!([{"revision": "other"}]), &there), None);
}

#[test]
fn revisions_are_spoken_of_only_where_the_traffic_is_wrong() {
    let there = ["s-00001-abc".to_owned()];
    let hint = |field: &str, revision: &str| {
        let refused = Failure::failed("no");
        let refused = refused.with_violations(vec![(field.to_owned(), "no".to_owned())]);
        hinted("s", refused, &json!([{"revision": revision}]), &there).hint
    };
    let all = "`utsuwa revisions list --service s` shows the revisions there are";
    assert_eq!(hint("traffic", "s-00001-abc").as_deref(), Some(all));
    let meant = "there is no revision s-00001; did you mean s-00001-abc?";
    assert_eq!(
        hint("traffic[0].revision", "s-00001").as_deref(),
        Some(meant)
    );
    assert_eq!(hint("template.annotations[a/b]", "s-00001-abc"), None);
}

#[test]
fn a_revision_may_be_named_in_full_within_its_service() {
    let full = format!("{OWN}/revisions/b");
    assert_eq!(
        after(&format!("s --to-revisions {full}=100")).unwrap(),
        after("s --to-revisions b=100").unwrap()
    );
    assert_eq!(
        after(&format!("s --update-tags old={full}")).unwrap(),
        after("s --update-tags old=b").unwrap()
    );
    let refused = |text: &str| after(text).unwrap_err();
    let twice = refused(&format!("s --to-revisions {full}=50,b=50"));
    assert!(twice.message.contains("names b twice"), "{twice}");
    for other in [
        "projects/p/locations/r/services/other/revisions/b",
        "projects/p/locations/there/services/s/revisions/b",
        "projects/q/locations/r/services/s/revisions/b",
        "projects/p/locations/r/services/s2/revisions/b",
        "projects/p/locations/r/services/s/revisions/",
        "projects/p/locations/r/services/s",
        "revisions/b",
    ] {
        for flag in ["--to-revisions", "--set-tags"] {
            let list = match flag {
                "--set-tags" => format!("t={other}"),
                _ => format!("{other}=100"),
            };
            let said = refused(&format!("s {flag} {list}"));
            assert_eq!(said.status, 2);
            let wanted = format!("{flag}: {other} is no revision of {OWN}");
            assert!(said.message.contains(&wanted), "{said}");
        }
    }
}
