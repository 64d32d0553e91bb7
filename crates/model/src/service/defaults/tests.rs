//! Tests of the module above.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

fn with_container(container: Container) -> RevisionTemplate {
    RevisionTemplate {
        containers: vec![container],
        ..RevisionTemplate::default()
    }
}

fn cpu(limit: &str) -> RevisionTemplate {
    let limits = [("cpu".to_owned(), limit.to_owned())].into();
    with_container(Container {
        limits,
        ..Container::default()
    })
}

#[test]
fn nothing_written_means_cloud_runs_defaults() {
    let template = with_container(Container::default());
    assert_eq!(template.effective_concurrency(), 80);
    assert_eq!(template.timeout(), Duration::from_secs(300));
    assert_eq!(
        (template.port(), template.protocol()),
        (8080, Protocol::Http1)
    );
    assert_eq!(
        (template.cpu(), template.memory()),
        (MilliCpu(1000), MemoryBytes(512 << 20))
    );
    assert_eq!(template.startup(), StartupProbe::tcp(8080));
    assert_eq!(template.startup().deadline(), Duration::from_secs(240));
}

#[test]
fn concurrency_follows_the_cpu_unless_written() {
    for (limit, written, expected) in [
        ("1", None, 80),
        ("1000m", Some(0), 80),
        ("0.5", None, 1),
        ("500m", Some(0), 1),
        ("2", Some(7), 7),
        ("nonsense", None, 80),
    ] {
        let template = RevisionTemplate {
            concurrency: written,
            ..cpu(limit)
        };
        assert_eq!(
            template.effective_concurrency(),
            expected,
            "{limit} {written:?}"
        );
    }
}

#[test]
fn the_container_with_a_port_takes_requests() {
    let port = ContainerPort {
        name: "h2c".to_owned(),
        container_port: 9000,
    };
    let template = RevisionTemplate {
        containers: vec![
            Container {
                name: "side".to_owned(),
                ..Container::default()
            },
            Container {
                name: "app".to_owned(),
                ports: vec![port],
                ..Container::default()
            },
        ],
        ..RevisionTemplate::default()
    };
    assert_eq!(
        template.ingress_container().map(|c| c.name.as_str()),
        Some("app")
    );
    assert_eq!(
        (template.port(), template.protocol()),
        (9000, Protocol::H2c)
    );
    let full = template.defaulted();
    assert!(
        full.containers[0].startup_probe.is_none(),
        "only the ingress container is probed by default"
    );
    assert_eq!(full.containers[1].startup_probe, Some(startup_probe(9000)));
}

#[test]
fn a_written_probe_gets_the_other_defaults() {
    let probe = Probe {
        initial_delay_secs: None,
        timeout_secs: None,
        period_secs: Some(3),
        failure_threshold: None,
        success_threshold: None,
        action: ProbeAction::Http {
            path: String::new(),
            port: None,
            headers: Vec::new(),
        },
    };
    let template = with_container(Container {
        startup_probe: Some(probe.clone()),
        liveness_probe: Some(probe.clone()),
        readiness_probe: Some(probe),
        ..Container::default()
    });
    let (live, ready) = (template.liveness().unwrap(), template.readiness().unwrap());
    assert_eq!((live.period.as_secs(), live.timeout.as_secs()), (3, 1));
    assert_eq!((live.failure_threshold, live.success_threshold), (3, 1));
    assert_eq!((ready.failure_threshold, ready.success_threshold), (3, 2));
    assert_eq!(ready.check.describe(), "GET / on port 8080");
    let shown = &template.defaulted().containers[0];
    let successes = |probe: &Option<Probe>| probe.as_ref().unwrap().success_threshold;
    assert_eq!(successes(&shown.readiness_probe), Some(2));
    assert_eq!(successes(&shown.liveness_probe), None);
    let none = with_container(Container::default());
    assert_eq!((none.liveness(), none.readiness()), (None, None));
    let startup = template.startup();
    assert_eq!(
        startup.check,
        StartupCheck::Http {
            port: 8080,
            path: "/".to_owned(),
            headers: Vec::new()
        }
    );
    assert_eq!(
        (
            startup.period.as_secs(),
            startup.timeout.as_secs(),
            startup.failure_threshold
        ),
        (3, 1, 3)
    );
    let unchecked = RevisionTemplate {
        health_check_disabled: Some(true),
        ..template
    };
    assert_eq!(unchecked.startup().check, StartupCheck::None);
}

#[test]
fn defaulting_twice_changes_nothing_and_compares_what_is_meant() {
    let plain = with_container(Container {
        image: "a".to_owned(),
        ..Container::default()
    });
    let full = plain.defaulted();
    assert_eq!(full.defaulted(), full);
    assert!(plain.same_as(&full));
    let mut other = full.clone();
    other.concurrency = Some(3);
    assert!(!plain.same_as(&other));
    let spelt = RevisionTemplate {
        min_instances: Some(0),
        max_instances: Some(0),
        cpu_idle: Some(true),
        startup_cpu_boost: Some(false),
        session_affinity: Some(false),
        health_check_disabled: Some(false),
        ..plain.clone()
    };
    assert!(plain.same_as(&spelt));
    for other in [
        RevisionTemplate {
            min_instances: Some(1),
            ..plain.clone()
        },
        RevisionTemplate {
            cpu_idle: Some(false),
            ..plain.clone()
        },
        RevisionTemplate {
            session_affinity: Some(true),
            ..plain.clone()
        },
    ] {
        assert!(!plain.same_as(&other));
    }
}
