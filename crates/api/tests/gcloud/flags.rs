//! Everything that can be said about a service, by flag and by file.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcloud_replaces_from_yaml_and_shows_errors() {
    if !installed("gcloud_replaces_from_yaml_and_shows_errors") {
        return;
    }
    let world = World::start().await;
    let cli = gcloud(&world, false);
    let file = cli.home.path().join("service.yaml");
    let yaml = "apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: yaml
  annotations:
    run.googleapis.com/ingress: internal
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/min-scale: '1'
        autoscaling.knative.dev/window: 6s
    spec:
      containers:
      - image: gcr.io/cloudrun/hello
        env:
        - name: GREETING
          value: hi
        startupProbe:
          httpGet:
            path: /healthy
  traffic:
  - percent: 100
    latestRevision: true
";
    std::fs::write(&file, yaml).expect("writes");
    let path = file.to_str().expect("text");
    for round in 0..2 {
        let said = cli.run(&["run", "services", "replace", path]).await;
        assert!(said.ok, "round {round}: {said:?}");
    }
    let key = "demo/us-central1/yaml".parse().expect("a key");
    assert_eq!(
        world.store.revisions_of(&key).expect("reads").len(),
        1,
        "the same again makes no revision"
    );
    let shown = cli.json(&["run", "services", "describe", "yaml"]).await;
    let annotations = &shown["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(
        annotations["autoscaling.knative.dev/min-scale"], "1",
        "as written: {annotations}"
    );
    assert_eq!(annotations["autoscaling.knative.dev/window"], "6s");
    assert_eq!(
        shown["metadata"]["annotations"]["run.googleapis.com/ingress-status"],
        "internal"
    );

    // What a user did wrong is said with the field and without half a minute of retries.
    let started = tokio::time::Instant::now();
    for (args, expected) in [
        (
            vec!["--memory=64Mi"],
            "spec.template.spec.containers[0].resources.limits.memory",
        ),
        (
            vec!["--set-env-vars=PORT=1"],
            "reserved env names were provided: PORT",
        ),
        (
            vec!["--cpu=0.5", "--concurrency=10"],
            "Total cpu < 1 is not supported with concurrency > 1",
        ),
        (vec!["--set-secrets=A=s:1"], "secrets are not built"),
        (
            vec!["--image=gcr.io/x/missing"],
            "Image 'gcr.io/x/missing' not found.",
        ),
    ] {
        let mut all = vec!["run", "deploy", "wrong", "--no-allow-unauthenticated"];
        if !args.iter().any(|a| a.starts_with("--image")) {
            all.extend(["--image", IMAGE]);
        }
        all.extend(args);
        let said = cli.run(&all).await;
        assert!(!said.ok && said.err.contains(expected), "{all:?}: {said:?}");
    }
    assert!(started.elapsed().as_secs() < 100, "gcloud retried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcloud_sets_every_flag_we_have() {
    if !installed("gcloud_sets_every_flag_we_have") {
        return;
    }
    let world = World::start().await;
    let cli = gcloud(&world, false);
    let said = cli
        .run(&[
            "beta",
            "run",
            "deploy",
            "flags",
            "--image",
            IMAGE,
            "--no-allow-unauthenticated",
            "--use-http2",
            "--port=9000",
            "--command=/bin/app",
            "--args=a,b",
            "--service-account=me@example.com",
            "--execution-environment=gen2",
            "--session-affinity",
            "--no-cpu-throttling",
            "--no-cpu-boost",
            "--ingress=internal",
            "--description=some words",
            "--no-invoker-iam-check",
            "--min=1",
            "--max=4",
            "--min-instances=1",
            "--max-instances=3",
            "--revision-suffix=one",
            "--startup-probe=httpGet.path=/up,periodSeconds=3,timeoutSeconds=2",
            "--async",
        ])
        .await;
    assert!(said.ok, "{said:?}");
    let key = "demo/us-central1/flags".parse().expect("a key");
    let spec = world
        .store
        .service(&key)
        .expect("reads")
        .expect("exists")
        .spec;
    let template = &spec.template;
    let container = &template.containers[0];
    assert_eq!(
        (container.command.as_slice(), container.args.as_slice()),
        (
            &["/bin/app".to_owned()][..],
            &["a".to_owned(), "b".to_owned()][..]
        )
    );
    assert_eq!(
        (
            container.ports[0].name.as_str(),
            container.ports[0].container_port
        ),
        ("h2c", 9000)
    );
    assert!(container.startup_probe.is_some());
    assert_eq!(template.service_account.as_deref(), Some("me@example.com"));
    assert_eq!(
        template.execution_environment,
        Some(ExecutionEnvironment::Gen2)
    );
    assert_eq!(
        (
            template.session_affinity,
            template.cpu_idle,
            template.startup_cpu_boost
        ),
        (Some(true), Some(false), Some(false))
    );
    assert_eq!(
        (template.min_instances, template.max_instances),
        (Some(1), Some(3))
    );
    assert_eq!(
        template.revision.as_ref().map(|r| r.as_str()),
        Some("flags-one")
    );
    assert_eq!(
        (spec.ingress, spec.description.as_str()),
        (IngressSetting::InternalOnly, "some words")
    );
    assert_eq!(
        (
            spec.scaling.min,
            spec.scaling.max,
            spec.invoker_iam_disabled
        ),
        (Some(1), Some(4), true)
    );

    // The same name for another configuration is refused; manual scaling, and what was set can be taken away.
    let said = cli
        .run(&[
            "run",
            "services",
            "update",
            "flags",
            "--revision-suffix=one",
            "--concurrency=3",
        ])
        .await;
    assert!(!said.ok && said.err.contains("flags-one"), "{said:?}");
    let said = cli
        .run(&[
            "beta",
            "run",
            "services",
            "update",
            "flags",
            "--scaling=2",
            "--remove-env-vars=NONE",
            "--ingress=all",
        ])
        .await;
    assert!(said.ok, "{said:?}");
    let spec = world
        .store
        .service(&key)
        .expect("reads")
        .expect("exists")
        .spec;
    assert_eq!(
        (spec.scaling.mode, spec.scaling.manual, spec.ingress),
        (ScalingMode::Manual, Some(2), IngressSetting::All)
    );
    let said = cli
        .run(&[
            "beta",
            "run",
            "services",
            "update",
            "flags",
            "--scaling=auto",
            "--cpu=0.5",
            "--concurrency=1",
            "--cpu-throttling",
            "--execution-environment=gen1",
        ])
        .await;
    assert!(said.ok, "{said:?}");
    let spec = world
        .store
        .service(&key)
        .expect("reads")
        .expect("exists")
        .spec;
    assert_eq!(
        (spec.scaling.mode, spec.scaling.manual),
        (ScalingMode::Automatic, None)
    );
    assert_eq!(
        spec.template.execution_environment,
        Some(ExecutionEnvironment::Gen1)
    );

    // What clients look at first.
    let project = cli.json(&["projects", "describe", "demo"]).await;
    assert_eq!(project["projectId"], "demo");
    cli.must(&["services", "enable", "run.googleapis.com"])
        .await;
    let said = cli.run(&["run", "jobs", "list"]).await;
    assert!(!said.ok && said.err.contains("not built"), "{said:?}");
}

/// The flag for readiness is in gcloud's alpha track only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcloud_sets_and_clears_probes() {
    if !installed("gcloud_sets_and_clears_probes") {
        return;
    }
    let world = World::start().await;
    let cli = gcloud(&world, false);
    let said = cli
        .run(&[
            "alpha",
            "run",
            "deploy",
            "probed",
            "--image",
            IMAGE,
            "--no-allow-unauthenticated",
            "--startup-probe=httpGet.path=/up,periodSeconds=3,timeoutSeconds=2",
            "--liveness-probe=httpGet.path=/live,httpGet.port=9001,periodSeconds=5,failureThreshold=2",
            "--readiness-probe=grpc.port=9002,grpc.service=a.B,successThreshold=4",
        ])
        .await;
    assert!(said.ok, "{said:?}");
    let key = "demo/us-central1/probed".parse().expect("a key");
    let template = || {
        let stored = world.store.service(&key).expect("reads");
        stored.expect("exists").spec.template
    };
    let probed = template();
    let live = probed.liveness().expect("a liveness probe");
    assert_eq!(live.check.describe(), "GET /live on port 9001");
    assert_eq!((live.period.as_secs(), live.failure_threshold), (5, 2));
    let ready = probed.readiness().expect("a readiness probe");
    assert_eq!((ready.check.port(), ready.success_threshold), (9002, 4));
    assert_eq!(probed.startup().period.as_secs(), 3);

    let said = cli.run(&["run", "services", "describe", "probed"]).await;
    assert!(
        said.ok && said.out.contains("HTTP every 5s") && said.out.contains("GRPC every 10s"),
        "{said:?}"
    );
    let said = cli
        .run(&[
            "alpha",
            "run",
            "services",
            "update",
            "probed",
            "--liveness-probe=",
            "--readiness-probe=",
        ])
        .await;
    assert!(said.ok, "{said:?}");
    let cleared = template();
    assert_eq!((cleared.liveness(), cleared.readiness()), (None, None));
    assert_eq!(cleared.startup().period.as_secs(), 3, "left alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcloud_adds_and_removes_volumes_in_memory() {
    if !installed("gcloud_adds_and_removes_volumes_in_memory") {
        return;
    }
    let world = World::start().await;
    let cli = gcloud(&world, false);
    let said = cli
        .run(&[
            "run",
            "deploy",
            "cached",
            "--image",
            IMAGE,
            "--no-allow-unauthenticated",
            "--add-volume=name=cache,type=in-memory,size-limit=64Mi",
            "--add-volume-mount=volume=cache,mount-path=/cache",
        ])
        .await;
    assert!(said.ok, "{said:?}");
    let key = "demo/us-central1/cached".parse().expect("a key");
    let volumes = || {
        let stored = world.store.service(&key).expect("reads");
        let template = stored.expect("exists").spec.template;
        template.memory_volumes(&template.containers[0])
    };
    let made = volumes();
    assert_eq!(made.len(), 1);
    assert_eq!(
        (made[0].size.0, made[0].mounts[0].path.as_str()),
        (64 << 20, "/cache")
    );
    let shown = cli.json(&["run", "services", "describe", "cached"]).await;
    assert_eq!(
        shown["spec"]["template"]["spec"]["volumes"][0]["emptyDir"],
        serde_json::json!({"medium": "Memory", "sizeLimit": "64Mi"})
    );
    let said = cli
        .run(&[
            "run",
            "services",
            "update",
            "cached",
            "--remove-volume-mount=/cache",
            "--remove-volume=cache",
        ])
        .await;
    assert!(said.ok, "{said:?}");
    assert_eq!(volumes(), []);
}
