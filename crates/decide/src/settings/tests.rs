use utsuwa_model::service::Container;
use utsuwa_model::service::autoscaling::AUTOSCALING as PREFIX;

use super::*;

const IDLE: Duration = Duration::from_secs(900);

fn template(annotations: &[(&str, &str)]) -> RevisionTemplate {
    RevisionTemplate {
        annotations: annotations
            .iter()
            .map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned()))
            .collect(),
        containers: vec![Container::default()],
        ..RevisionTemplate::default()
    }
}

fn settings(annotations: &[(&str, &str)]) -> ScalingSettings {
    scaling_settings(
        &template(annotations),
        &ServiceScaling::default(),
        100,
        IDLE,
    )
}

#[test]
fn defaults_of_cloud_run() {
    let s = settings(&[]);
    assert_eq!(
        (s.container_concurrency, s.target, s.min, s.max),
        (80, 48.0, 0, Ceiling::AtMost(100))
    );
    assert_eq!(
        (
            s.stable_window.as_secs(),
            s.retention,
            s.initial_scale,
            s.manual
        ),
        (60, IDLE, 1, None)
    );
}

#[test]
fn less_than_a_cpu_means_one_at_a_time() {
    let mut small = template(&[]);
    small.containers[0]
        .limits
        .insert("cpu".into(), "500m".into());
    let s = scaling_settings(&small, &ServiceScaling::default(), 100, IDLE);
    assert_eq!((s.container_concurrency, s.target), (1, 0.6));
}

#[test]
fn target_by_annotation() {
    for (annotations, target) in [
        (vec![("target", "10")], 10.0),
        (vec![("target", "200")], 80.0),
        (vec![("target-utilization-percentage", "70")], 56.0),
        (
            vec![("target", "10"), ("target-utilization-percentage", "50")],
            5.0,
        ),
        (vec![("target", "0.001")], 0.01),
        (vec![("metric", "rps")], 140.0),
        (vec![("metric", "rps"), ("target", "30")], 30.0),
        (vec![("target", "many")], 48.0),
    ] {
        assert_eq!(settings(&annotations).target, target, "{annotations:?}");
    }
}

#[test]
fn idle_time_by_window_and_retention() {
    for (annotations, window, retention) in [
        (vec![], 60, 900),
        (vec![("window", "6s")], 6, 6),
        (
            vec![
                ("window", "6s"),
                ("scale-to-zero-pod-retention-period", "1m30s"),
            ],
            6,
            90,
        ),
        (vec![("scale-to-zero-pod-retention-period", "0s")], 60, 60),
    ] {
        let s = settings(&annotations);
        assert_eq!(
            (s.stable_window.as_secs(), s.retention.as_secs()),
            (window, retention),
            "{annotations:?}"
        );
    }
}

#[test]
fn bounds_from_fields_and_annotations() {
    let s = settings(&[
        ("min-scale", "2"),
        ("max-scale", "5"),
        ("initial-scale", "9"),
        ("activation-scale", "3"),
    ]);
    assert_eq!(
        (s.min, s.max, s.initial_scale, s.activation_scale),
        (2, Ceiling::AtMost(5), 5, 3)
    );
    assert_eq!(settings(&[("maxScale", "0")]).max, Ceiling::Unlimited);
    // Refused at the edge; a stored one reads as absent.
    assert_eq!(settings(&[("initial-scale", "0")]).initial_scale, 1);
    let typed = RevisionTemplate {
        max_instances: Some(7),
        min_instances: Some(1),
        ..template(&[("max-scale", "3")])
    };
    let s = scaling_settings(&typed, &ServiceScaling::default(), 100, IDLE);
    assert_eq!((s.min, s.max), (1, Ceiling::AtMost(7)));
}

#[test]
fn the_service_bounds_are_shared_out_by_traffic() {
    let service = ServiceScaling {
        min: Some(3),
        max: Some(10),
        ..ServiceScaling::default()
    };
    for (percent, min, max) in [(100, 3, 10), (50, 2, 5), (33, 1, 3), (0, 0, 1)] {
        let s = scaling_settings(&template(&[]), &service, percent, IDLE);
        assert_eq!((s.min, s.max), (min, Ceiling::AtMost(max)), "{percent}");
    }
    let manual = ServiceScaling {
        mode: ScalingMode::Manual,
        manual: Some(4),
        ..ServiceScaling::default()
    };
    for (percent, count) in [(100, 4), (30, 2), (0, 0)] {
        assert_eq!(
            scaling_settings(&template(&[]), &manual, percent, IDLE).manual,
            Some(count)
        );
    }
}

#[test]
fn durations_in_go_spelling() {
    for (text, millis) in [
        ("6s", 6_000),
        ("1m30s", 90_000),
        ("1h", 3_600_000),
        ("1.5s", 1_500),
        ("500ms", 500),
        ("0", 0),
    ] {
        assert_eq!(
            parse_duration(text),
            Some(Duration::from_millis(millis)),
            "{text}"
        );
    }
    for bad in ["", "6", "s", "-1s", "6 s", "1d", "1s2"] {
        assert_eq!(parse_duration(bad), None, "{bad}");
    }
}

#[test]
fn both_of_knatives_spellings_say_the_same() {
    for (kebab, camel, value) in [
        (
            "target-utilization-percentage",
            "targetUtilizationPercentage",
            "20",
        ),
        ("target-burst-capacity", "targetBurstCapacity", "7"),
        ("panic-window-percentage", "panicWindowPercentage", "20"),
        (
            "panic-threshold-percentage",
            "panicThresholdPercentage",
            "300",
        ),
        (
            "scale-to-zero-pod-retention-period",
            "scaleToZeroPodRetentionPeriod",
            "10m",
        ),
        ("scale-down-delay", "scaleDownDelay", "30s"),
        ("initial-scale", "initialScale", "3"),
        ("activation-scale", "activationScale", "3"),
        ("min-scale", "minScale", "3"),
        ("max-scale", "maxScale", "3"),
    ] {
        let found = settings(&[(camel, value)]);
        assert_eq!(found, settings(&[(kebab, value)]), "{camel}");
        assert_ne!(found, settings(&[]), "{camel}");
    }
}
