//! Rules of several containers.

use super::*;

fn probe(port: Option<u16>) -> Option<Probe> {
    Some(Probe {
        initial_delay_secs: None,
        timeout_secs: None,
        period_secs: None,
        failure_threshold: None,
        success_threshold: None,
        action: ProbeAction::Tcp { port },
    })
}

/// `app` takes requests; `side` and `base` have startup probes.
fn three(service: &mut Service) -> &mut [Container] {
    let one = |name: &str| Container {
        name: name.to_owned(),
        image: "example.test/image".to_owned(),
        startup_probe: probe(Some(7000)),
        ..Container::default()
    };
    let mut app = one("app");
    app.startup_probe = None;
    app.ports.push(ContainerPort {
        name: String::new(),
        container_port: 8080,
    });
    let template = &mut service.spec.template;
    template.containers = vec![app, one("side"), one("base")];
    &mut template.containers
}

fn waits(container: &mut Container, names: &[&str]) {
    container.depends_on = names.iter().map(|&name| name.to_owned()).collect();
}

#[test]
fn several_containers_and_their_order() {
    accepted(&[
        |s| three(s)[0].args.clear(),
        |s| {
            let all = three(s);
            waits(&mut all[0], &["side", "base"]);
            waits(&mut all[1], &["base"]);
        },
        // The one that takes requests has a startup probe by default.
        |s| waits(&mut three(s)[1], &["app"]),
        |s| {
            three(s)[2].env.push(EnvVar {
                name: "PORT".to_owned(),
                value: EnvValue::Literal("5".to_owned()),
            });
        },
    ]);
    refused(&[
        ("template.containers[1].name: missing", |s| {
            three(s)[1].name.clear()
        }),
        (
            "template.containers[2].name: \"side\" must be unique",
            |s| three(s)[2].name = "side".to_owned(),
        ),
        (
            "template.containers: exactly one container must have a port, 0",
            |s| three(s)[0].ports.clear(),
        ),
        (
            "template.containers: exactly one container must have a port, 2",
            |s| {
                let all = three(s);
                all[1].ports = all[0].ports.clone();
            },
        ),
        (
            "template.containers[0].dependsOn: \"else\" is no container",
            |s| waits(&mut three(s)[0], &["else"]),
        ),
        (
            "template.containers[1].dependsOn: the containers wait for each other in a circle: side -> base -> side",
            |s| {
                let all = three(s);
                waits(&mut all[0], &["side"]);
                waits(&mut all[1], &["base"]);
                waits(&mut all[2], &["side"]);
            },
        ),
        (
            "template.containers[2].dependsOn: the containers wait for each other in a circle: base -> base",
            |s| waits(&mut three(s)[2], &["base"]),
        ),
        (
            "template.containers[1].startupProbe: missing: other containers depend on \"side\"",
            |s| {
                let all = three(s);
                all[1].startup_probe = None;
                waits(&mut all[0], &["side"]);
            },
        ),
        (
            "template.containers[1].startupProbe.tcpSocket.port: missing",
            |s| three(s)[1].startup_probe = probe(None),
        ),
        ("template.containers[2].livenessProbe: ", |s| {
            three(s)[2].liveness_probe = probe(Some(1))
        }),
        (
            "template.containers[0].dependsOn: \"x\" is no container",
            |s| waits(container(s), &["x"]),
        ),
        (
            "template.containers[0].env: The following reserved env names were provided: PORT.",
            |s| {
                three(s)[0].env.push(EnvVar {
                    name: "PORT".to_owned(),
                    value: EnvValue::Literal("5".to_owned()),
                });
            },
        ),
    ]);
}

#[test]
fn containers_are_numbered_from_the_one_that_takes_requests() {
    let mut service = good();
    three(&mut service).rotate_left(1);
    let template = &mut service.spec.template;
    waits(&mut template.containers[0], &["base"]);
    waits(&mut template.containers[2], &["side"]);
    let numbered: Vec<(usize, &str)> = template
        .numbered()
        .into_iter()
        .map(|(index, one)| (index, one.name.as_str()))
        .collect();
    assert_eq!(numbered, [(2, "app"), (0, "side"), (1, "base")]);
    assert_eq!(template.dependencies(), [vec![1], vec![2], vec![]]);
    let startup = template.startup_of_each();
    assert_eq!(startup[0], Some(template.startup()));
    let check = crate::route::StartupCheck::Tcp { port: 7000 };
    assert!(startup[1..].iter().flatten().all(|one| one.check == check));
    assert_eq!(startup.len(), 3);
}
