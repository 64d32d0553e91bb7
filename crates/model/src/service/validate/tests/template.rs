//! Rules of a template and of traffic.

use super::*;

#[test]
fn counts_times_and_annotations() {
    refused(&[
        (
            "template.maxInstanceRequestConcurrency: expected 0 <= 1001 <= 1000",
            |s| s.spec.template.concurrency = Some(1001),
        ),
        ("template.timeout: expected 0 <= 3601 <= 3600", |s| {
            s.spec.template.timeout_secs = Some(3601)
        }),
        (
            "template.scaling.maxInstanceCount: max-scale=1 is less than min-scale=2",
            |s| {
                s.spec.template.min_instances = Some(2);
                s.spec.template.max_instances = Some(1);
            },
        ),
        (
            "template.scaling.maxInstanceCount: max-scale=1 is less than initial-scale=2",
            |s| {
                s.spec.template.max_instances = Some(1);
                note(s, "initial-scale", "2");
            },
        ),
        (
            "template.scaling.minInstanceCount: max-scale=100, the default, is less than min-scale=150",
            |s| s.spec.template.min_instances = Some(150),
        ),
        (
            "template.scaling.minInstanceCount: max-scale=100, the default, is less than min-scale=101",
            |s| note(s, "minScale", "101"),
        ),
        (
            "template.annotations[autoscaling.knative.dev/initial-scale]: max-scale=100, the default, is less",
            |s| note(s, "initial-scale", "101"),
        ),
        (
            "scaling.minInstanceCount: min-scale=150 with 100 % of the traffic is 150 instances",
            |s| s.spec.scaling.min = Some(150),
        ),
        (
            "scaling.maxInstanceCount: max-scale=1 is less than min-scale=2",
            |s| {
                s.spec.scaling.min = Some(2);
                s.spec.scaling.max = Some(1);
            },
        ),
        ("scaling.manualInstanceCount: is required", |s| {
            s.spec.scaling.mode = ScalingMode::Manual
        }),
        ("scaling.manualInstanceCount: may be set only", |s| {
            s.spec.scaling.manual = Some(1)
        }),
        (
            "annotations[autoscaling.knative.dev/window]: autoscaling annotations must be put under",
            |s| {
                s.meta
                    .annotations
                    .insert("autoscaling.knative.dev/window".to_owned(), "6s".to_owned());
            },
        ),
        (
            "annotations[run.googleapis.com/iap-enabled]: run.googleapis.com/iap-enabled is not built",
            |s| {
                s.meta.annotations.insert(
                    "run.googleapis.com/iap-enabled".to_owned(),
                    "true".to_owned(),
                );
            },
        ),
        (
            "template.annotations[run.googleapis.com/cloudsql-instances]:",
            |s| {
                s.spec.template.annotations.insert(
                    "run.googleapis.com/cloudsql-instances".to_owned(),
                    "a:b:c".to_owned(),
                );
            },
        ),
        ("template.nodeSelector: accelerators", |s| {
            s.spec.template.node_selector.insert(
                "run.googleapis.com/accelerator".to_owned(),
                "nvidia-l4".to_owned(),
            );
        }),
    ]);
    accepted(&[
        |s| s.spec.template.min_instances = Some(100),
        |s| {
            s.spec.template.min_instances = Some(150);
            s.spec.template.max_instances = Some(150);
        },
        // Unlimited, as Knative writes it.
        |s| {
            note(s, "min-scale", "150");
            note(s, "max-scale", "0");
        },
        |s| {
            s.spec.scaling.min = Some(150);
            s.spec.template.max_instances = Some(150);
        },
        |s| note(s, "scaleToZeroPodRetentionPeriod", "10m"),
        |s| note(s, "metricAggregationAlgorithm", "weightedExponential"),
        // Keys that clients of Google's send, and later ones of theirs.
        |s| {
            for key in [
                "client.knative.dev/nonce",
                "run.googleapis.com/later",
                "my.dev/x",
            ] {
                let notes = &mut s.spec.template.annotations;
                notes.insert(key.to_owned(), "x".to_owned());
            }
        },
    ]);
    for (name, value, expected) in [
        ("window", "5s", "expected 6s <= 5s <= 1h"),
        ("window", "61m", "expected 6s <= 61m <= 1h"),
        (
            "window",
            "6500ms",
            "invalid value: \"6500ms\": must be whole seconds",
        ),
        ("window", "soon", "invalid duration \"soon\""),
        ("target", "0", "expected 0.01 <= 0"),
        ("target", "x", "invalid value: \"x\" is not a number"),
        (
            "target-utilization-percentage",
            "101",
            "expected 1 <= 101 <= 100",
        ),
        ("target-burst-capacity", "-2", "invalid value"),
        ("panic-window-percentage", "0", "expected 1 <= 0 <= 100"),
        (
            "panic-threshold-percentage",
            "100",
            "expected 110 <= 100 <= 1000",
        ),
        ("activation-scale", "1", "expected 2 <= 1"),
        ("initial-scale", "-1", "expected 1 <= -1"),
        ("initial-scale", "0", "expected 1 <= 0"),
        ("scale-down-delay", "2h", "expected 0s <= 2h <= 1h"),
        (
            "scale-to-zero-pod-retention-period",
            "-1s",
            "invalid duration",
        ),
        (
            "class",
            "hpa.autoscaling.knative.dev",
            "the class hpa.autoscaling.knative.dev is not built",
        ),
        ("class", "mine", "invalid value"),
        ("metric", "cpu", "metric \"cpu\" needs"),
        ("metric", "luck", "invalid value"),
        (
            "windw",
            "6s",
            "there is no such setting: did you mean autoscaling.knative.dev/window?",
        ),
        (
            "minscale",
            "1",
            "there is no such setting: did you mean autoscaling.knative.dev/min-scale?",
        ),
        (
            "weather",
            "fine",
            "there is no such setting; those there are: activation-scale, class,",
        ),
    ] {
        let mut service = good();
        note(&mut service, name, value);
        let found = said(&service, &Context::default());
        let expected = format!("template.annotations[autoscaling.knative.dev/{name}]: {expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "expected {expected:?}, found {found:?}"
        );
    }
}

/// Stored when every name was taken, it would hold the whole service fast, its traffic included.
#[test]
fn an_unknown_setting_that_was_there_before_stands_in_nobody_s_way() {
    let mut old = good();
    note(&mut old, "windw", "6s");
    let mut changed = old.clone();
    changed.spec.traffic = vec![target(None, Some(100), Some("live"))];
    let context = Context {
        old: Some(&old),
        ..Context::default()
    };
    assert_eq!(said(&changed, &context), Vec::<String>::new());
    note(&mut changed, "widow", "6s");
    assert_eq!(said(&changed, &context).len(), 1, "a new one");
    let mut other = old.clone();
    note(&mut other, "windw", "7s");
    assert_eq!(said(&other, &context).len(), 1, "another value");
}

#[test]
fn traffic() {
    refused(&[
        ("traffic: Traffic targets sum to 90, want 100", |s| {
            s.spec.traffic = vec![target(None, Some(90), None)]
        }),
        ("traffic: Traffic targets sum to 0, want 100", |s| {
            s.spec.traffic = vec![target(None, None, Some("a"))]
        }),
        ("traffic[0].percent: expected 0 <= 101 <= 100", |s| {
            s.spec.traffic = vec![target(None, Some(101), None)]
        }),
        (
            "traffic[0].revision: may not set revisionName \"hello-x\" when latestRevision is true",
            |s| {
                s.spec.traffic = vec![TrafficTarget {
                    latest: true,
                    ..target(Some("hello-x"), Some(100), None)
                }];
            },
        ),
        ("traffic[0].revision: missing", |s| {
            s.spec.traffic = vec![TrafficTarget {
                latest: false,
                ..target(None, Some(100), None)
            }];
        }),
        (
            "traffic[0].revision: Revision \"hello-x\" referenced in traffic not found",
            |s| {
                s.spec.traffic = vec![target(Some("hello-x"), Some(100), None)];
            },
        ),
        ("traffic[0].tag: not a DNS 1035 label", |s| {
            s.spec.traffic = vec![target(None, Some(100), Some("Blue"))]
        }),
        ("traffic[0].tag: tag and service name may have 46", |s| {
            s.spec.traffic = vec![target(None, Some(100), Some(&"t".repeat(42)))];
        }),
        ("traffic[2].tag: Multiple definitions for \"a\"", |s| {
            s.spec.traffic = vec![
                target(None, Some(50), Some("a")),
                target(None, Some(50), None),
                target(None, None, Some("a")),
            ];
        }),
    ]);
    let mut service = good();
    service.spec.traffic = vec![target(Some("hello-x"), Some(100), None)];
    let known = [revision_named("hello-x")];
    assert!(
        said(
            &service,
            &Context {
                old: None,
                revisions: &known,
                ..Context::default()
            }
        )
        .is_empty()
    );
    let mut going = known;
    going[0].meta.delete_time = Some(Timestamp(2));
    assert_eq!(
        said(
            &service,
            &Context {
                old: None,
                revisions: &going,
                ..Context::default()
            }
        )
        .len(),
        1,
        "one that is being deleted can't be routed"
    );
    // gcloud deploy --tag names the revision that the same request makes.
    service.spec.template.revision = Some("hello-x".parse().expect("ok"));
    assert!(said(&service, &Context::default()).is_empty());
}

#[test]
fn a_named_revision_changes_only_with_its_name() {
    let mut old = good();
    old.spec.template.revision = Some("hello-a".parse().expect("ok"));
    let mut new = old.clone();
    let context = Context {
        old: Some(&old),
        revisions: &[],
        ..Context::default()
    };
    new.spec.template.concurrency = Some(80);
    assert!(
        said(&new, &context).is_empty(),
        "writing a default out is no change"
    );
    new.spec.template.concurrency = Some(2);
    let found = said(&new, &context);
    assert!(
        found[0].starts_with(
            "template.revision: Saw the following changes without a name change: concurrency."
        ),
        "{found:?}"
    );
    new.spec.template.revision = Some("hello-b".parse().expect("ok"));
    assert!(said(&new, &context).is_empty());
    let taken = [revision_named("hello-b")];
    let context = Context {
        old: Some(&old),
        revisions: &taken,
        ..Context::default()
    };
    let found = said(&new, &context);
    assert!(
        found[0].contains("Revision named 'hello-b' with different configuration already exists."),
        "{found:?}"
    );
    new.spec.template.concurrency = None;
    assert!(
        said(&new, &context).is_empty(),
        "the same configuration under its old name is a way back"
    );
}
