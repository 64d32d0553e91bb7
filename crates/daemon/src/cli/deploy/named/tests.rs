use serde_json::json;
use utsuwa_model::ServiceKey;
use utsuwa_model::service::validate::{Context, validate};
use utsuwa_model::service::*;

use super::*;

/// What is told of `violations` in what was sent with a service like this.
fn told(service: &Service, violations: Vec<(String, String)>) -> String {
    let (field, description) = &violations[0];
    let refused = Failure::failed(format!("{field}: {description}")).with_violations(violations);
    let ports = |one: &Container| json!({"ports": vec![json!({}); one.ports.len()]});
    let containers: Vec<Value> = service.spec.template.containers.iter().map(ports).collect();
    flags(refused, &json!({"containers": containers})).message
}

/// What is told of a good service with `change`: in the server's own words, which must not change without these.
fn refused(change: impl FnOnce(&mut Service)) -> String {
    let container = Container {
        image: "gcr.io/cloudrun/hello".to_owned(),
        ..Container::default()
    };
    let mut service = Service {
        key: "demo/us-central1/hello".parse::<ServiceKey>().unwrap(),
        meta: Meta::default(),
        spec: ServiceSpec::default(),
        status: ServiceStatus::default(),
    };
    service.spec.template.containers = vec![container];
    change(&mut service);
    let found = validate(&service, &Context::default());
    let found = found.0.into_iter().map(|one| (one.field, one.description));
    told(&service, found.collect())
}

fn annotated(service: &mut Service, key: &str, value: &str) {
    let annotations = &mut service.spec.template.annotations;
    annotations.insert(key.to_owned(), value.to_owned());
}

fn container(service: &mut Service) -> &mut Container {
    &mut service.spec.template.containers[0]
}

fn variable(name: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: EnvValue::Literal(String::new()),
    }
}

fn port(container_port: u16) -> ContainerPort {
    ContainerPort {
        name: String::new(),
        container_port,
    }
}

type Change = fn(&mut Service);

#[test]
fn a_wrong_field_is_named_by_the_flag_that_sets_it() {
    let rows: &[(&str, Change)] = &[
        (
            "--min-instances: --max-instances 100, the default, is less than --min-instances 150: set the maximum as well",
            |s| s.spec.template.min_instances = Some(150),
        ),
        ("--max: --max 1 is less than --min 2", |s| {
            s.spec.scaling.min = Some(2);
            s.spec.scaling.max = Some(1);
        }),
        // The service's minimum against the revision's maximum.
        (
            "--min: --min 5 with 100 % of the traffic is 5 instances of the newest revision, more than its --max-instances 3: raise \
             --max-instances",
            |s| {
                s.spec.scaling.min = Some(5);
                s.spec.template.max_instances = Some(3);
            },
        ),
        (
            "--cpu: Invalid value specified for cpu. Total cpu < 1 is not supported with --no-cpu-throttling.",
            |s| {
                s.spec.template.cpu_idle = Some(false);
                let limits = &mut container(s).limits;
                limits.insert("cpu".to_owned(), "500m".to_owned());
            },
        ),
        (
            "--annotations autoscaling.knative.dev/windw: there is no such setting: did you mean autoscaling.knative.dev/window?",
            |s| annotated(s, "autoscaling.knative.dev/windw", "6s"),
        ),
        (
            "--annotations autoscaling.knative.dev/minscale: there is no such setting: did you mean --min-instances?",
            |s| annotated(s, "autoscaling.knative.dev/minscale", "1"),
        ),
        ("--port: 8012 is a reserved port (", |s| {
            container(s).ports = vec![port(8012)]
        }),
        ("--labels Team: only lower-case letters", |s| {
            let labels = &mut s.spec.template.labels;
            labels.insert("Team".to_owned(), "x".to_owned());
        }),
        // One flag sets both, and it is told once.
        ("--labels Team: only lower-case letters", |s| {
            for labels in [&mut s.meta.labels, &mut s.spec.template.labels] {
                labels.insert("Team".to_owned(), "x".to_owned());
            }
        }),
        ("--set-env-vars, variable 2 of all: missing", |s| {
            container(s).env = vec![variable("A"), variable("")]
        }),
        ("--tag: ", |s| {
            s.spec.traffic = vec![TrafficTarget {
                latest: true,
                percent: Some(100),
                tag: Some("A".to_owned()),
                ..TrafficTarget::default()
            }]
        }),
        ("--image: missing: name the image to run", |s| {
            container(s).image.clear()
        }),
        // What has no flag keeps its name.
        ("launchStage: \"x\" is not a launch stage", |s| {
            s.spec.launch_stage = "x".to_owned()
        }),
    ];
    for (expected, change) in rows {
        let said = refused(change);
        assert!(said.starts_with(expected), "{expected:?}, not {said:?}");
    }
}

/// The flags are those of the container that takes the requests: another image there would mend nothing.
#[test]
fn a_container_beside_keeps_its_field() {
    let both = |service: &mut Service, wrong: usize| {
        let port = port(8080);
        let mut beside = container(service).clone();
        beside.name = "beside".to_owned();
        container(service).name = "app".to_owned();
        container(service).ports = vec![port];
        service.spec.template.containers.insert(0, beside);
        service.spec.template.containers[wrong].image.clear();
    };
    let beside = refused(|service| both(service, 0));
    assert_eq!(
        beside,
        "template.containers[0].image: missing: name the image to run"
    );
    let app = refused(|service| both(service, 1));
    assert_eq!(app, "--image: missing: name the image to run");
}

#[test]
fn several_have_a_line_each() {
    let both = refused(|service| {
        service.spec.template.timeout_secs = Some(3601);
        service.spec.launch_stage = "x".to_owned();
    });
    assert_eq!(
        both,
        "2 things are wrong; nothing was changed\n  launchStage: \"x\" is not a launch stage: write GA, BETA or ALPHA\n  --timeout: \
         expected 0 <= 3601 <= 3600"
    );
}

/// The edge of the API refuses these before anything is validated, in words about fields.
#[test]
fn an_annotation_that_has_a_flag_is_told_of_by_it() {
    for (key, flag) in [
        ("autoscaling.knative.dev/minScale", "--min-instances"),
        (
            "run.googleapis.com/cpu-throttling",
            "--cpu-throttling or --no-cpu-throttling",
        ),
    ] {
        let field = format!("template.annotations[{key}]");
        let wrong = vec![(field, "not taken in v2".to_owned())];
        let refused = flags(Failure::failed("no").with_violations(wrong), &Value::Null);
        let said = format!("--annotations {key}: has a flag of its own: {flag}");
        assert_eq!(refused.message, said);
    }
}

/// What only this server knows is taken as an annotation, too.
#[test]
fn one_of_ours_is_told_of_by_its_value() {
    let field = "template.annotations[utsuwa.local/waiting-page]".to_owned();
    let wrong = vec![(field, "write \"true\" or \"false\"".to_owned())];
    let refused = flags(Failure::failed("no").with_violations(wrong), &Value::Null);
    assert_eq!(
        refused.message,
        "--annotations utsuwa.local/waiting-page: write \"true\" or \"false\" (its flag: --waiting-page or --no-waiting-page)"
    );
}

/// A flag that isn't there would send people on a search.
#[test]
fn each_flag_is_one_of_deploys() {
    use clap::Args;
    let known = super::super::DeployArgs::augment_args(clap::Command::new("deploy"));
    let all = FIELDS.iter().chain(ANNOTATIONS).map(|(_, flag)| *flag);
    for flag in all.flat_map(|flag| flag.split(" or ")) {
        let name = flag.strip_prefix("--");
        assert!(
            known.get_arguments().any(|one| one.get_long() == name),
            "{flag}"
        );
    }
}
