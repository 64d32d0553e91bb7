//! Tests of the module above.

use utsuwa_model::service::Container;

use super::*;

fn set(pairs: &[(&str, &str)]) -> Annotations {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn what_was_written_reads_back_in_its_own_words() {
    for written in [
        set(&[
            ("run.googleapis.com/startup-cpu-boost", "True"),
            ("autoscaling.knative.dev/min-scale", "2"),
            ("a", "b"),
        ]),
        set(&[
            ("run.googleapis.com/startup-cpu-boost", "true"),
            ("autoscaling.knative.dev/maxScale", "3"),
        ]),
        set(&[
            ("run.googleapis.com/cpu-throttling", "False"),
            ("run.googleapis.com/execution-environment", "GEN2"),
        ]),
    ] {
        let mut stored = written.clone();
        let (mut template, mut found) = (RevisionTemplate::default(), Violations::default());
        read_template(&mut stored, &mut template, &mut found);
        assert_eq!(found, Violations::default());
        template.annotations = stored;
        assert_eq!(write_template(&template), written);
    }
    let written = set(&[
        ("run.googleapis.com/ingress", "all"),
        ("run.googleapis.com/minScale", "1"),
        ("run.googleapis.com/scalingMode", "manual"),
        ("run.googleapis.com/manualInstanceCount", "3"),
        ("run.googleapis.com/custom-audiences", "[\"a\", \"b\"]"),
    ]);
    let (mut stored, mut spec) = (written.clone(), ServiceSpec::default());
    read_service(&mut stored, &mut spec, &mut Violations::default());
    assert_eq!(spec.custom_audiences, ["a", "b"]);
    assert_eq!(write_service(&stored, &spec), written);
}

#[test]
fn a_field_changed_elsewhere_wins_over_old_words() {
    let mut stored = set(&[
        ("autoscaling.knative.dev/min-scale", "2"),
        ("run.googleapis.com/sessionAffinity", "True"),
    ]);
    let mut template = RevisionTemplate::default();
    read_template(&mut stored, &mut template, &mut Violations::default());
    template.annotations = stored;
    template.min_instances = Some(5);
    template.session_affinity = None;
    assert_eq!(
        write_template(&template),
        set(&[("autoscaling.knative.dev/minScale", "5")])
    );
}

#[test]
fn output_is_dropped_and_nonsense_named() {
    let mut stored = set(&[
        ("serving.knative.dev/creator", "me"),
        ("run.googleapis.com/ingress", "everywhere"),
        ("run.googleapis.com/invoker-iam-disabled", "maybe"),
        ("run.googleapis.com/maxScale", "-1"),
    ]);
    let mut found = Violations::default();
    read_service(&mut stored, &mut ServiceSpec::default(), &mut found);
    assert!(!stored.contains_key("serving.knative.dev/creator"));
    let fields: Vec<&str> = found.0.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "metadata.annotations[run.googleapis.com/ingress]",
            "metadata.annotations[run.googleapis.com/maxScale]",
            "metadata.annotations[run.googleapis.com/invoker-iam-disabled]"
        ]
    );
}

#[test]
fn what_containers_wait_for_is_a_field_of_theirs() {
    const NAME: &str = "run.googleapis.com/container-dependencies";
    let containers = || {
        ["app", "side"].map(|name| Container {
            name: name.to_owned(),
            ..Container::default()
        })
    };
    let read = |text: &str| {
        let mut template = RevisionTemplate {
            annotations: set(&[(NAME, text)]),
            containers: containers().to_vec(),
            ..RevisionTemplate::default()
        };
        let mut found = Violations::default();
        dependencies::read(&mut template, &mut found);
        (template, found)
    };
    for written in [
        "{\"app\":[\"side\"]}",
        "{ \"app\": [\"side\"], \"side\": [] }",
    ] {
        let (mut template, found) = read(written);
        assert_eq!(found, Violations::default());
        assert_eq!(template.containers[0].depends_on, ["side"]);
        assert_eq!(write_template(&template), set(&[(NAME, written)]));
        // A canonical text is not stored beside its field.
        assert_eq!(template.annotations.is_empty(), !written.contains(' '));
        template.containers[0].depends_on.clear();
        assert_eq!(write_template(&template), Annotations::new());
        template.containers[1].depends_on.push("app".to_owned());
        let turned = set(&[(NAME, "{\"side\":[\"app\"]}")]);
        assert_eq!(write_template(&template), turned);
    }
    for wrong in ["side", "[1]", "{\"other\":[\"app\"]}"] {
        let (_, found) = read(wrong);
        let field = format!("spec.template.metadata.annotations[{NAME}]");
        assert_eq!(found.0[0].field, field, "{wrong}");
    }
}
