//! The unchanged `gcloud` against the API, through its forward proxy (`gcloud-protocol.md` §1.3, §3). Skipped by name where
//! `gcloud` isn't installed.

#![expect(clippy::print_stderr, reason = "a skipped test says so by name")]

#[path = "../../../tests/skip.rs"]
mod skip;
mod support;

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use support::World;
use utsuwa_model::service::{ExecutionEnvironment, IngressSetting, ScalingMode};

/// A `gcloud` that reaches the world under test and nothing else.
#[derive(Debug)]
struct Gcloud<'a> {
    world: &'a World,
    home: tempfile::TempDir,
    /// Method B (plain HTTP with endpoint overrides) instead of A (CONNECT and our authority).
    plain: bool,
}

#[derive(Debug)]
struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Gcloud<'_> {
    async fn run(&self, args: &[&str]) -> Said {
        let mut command = tokio::process::Command::new("gcloud");
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("CLOUDSDK_CONFIG", self.home.path())
            .env("CLOUDSDK_PROXY_TYPE", "http")
            .env("CLOUDSDK_PROXY_ADDRESS", "127.0.0.1")
            .env("CLOUDSDK_PROXY_PORT", self.world.address.port().to_string())
            .env("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true")
            .env("CLOUDSDK_CORE_PROJECT", "demo")
            .env("CLOUDSDK_RUN_REGION", "us-central1")
            .env("CLOUDSDK_CORE_DISABLE_PROMPTS", "1")
            .env("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "1")
            .env("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if self.plain {
            for api in ["run", "serviceusage", "cloudresourcemanager"] {
                command.env(
                    format!("CLOUDSDK_API_ENDPOINT_OVERRIDES_{}", api.to_uppercase()),
                    format!("http://{api}.googleapis.com/"),
                );
            }
        } else {
            command.env(
                "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
                self.world.keys.path().join("ca.pem"),
            );
        }
        let output = command.output().await.expect("gcloud starts");
        Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed; answers what it printed on stdout.
    #[track_caller]
    fn must(&self, args: &'static [&'static str]) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let said = self.run(args).await;
            assert!(
                said.ok,
                "{caller}: gcloud {args:?}\nstdout: {}\nstderr: {}",
                said.out, said.err
            );
            said.out
        }
    }

    async fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--format=json"]).collect();
        let said = self.run(&args).await;
        assert!(
            said.ok,
            "gcloud {args:?}\nstdout: {}\nstderr: {}",
            said.out, said.err
        );
        serde_json::from_str(&said.out).expect("JSON")
    }
}

fn installed(test: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|d| Path::new(&d).join("gcloud").is_file());
    if !found {
        skip::skip(test, "gcloud is not installed");
    }
    found
}

fn gcloud(world: &World, plain: bool) -> Gcloud<'_> {
    Gcloud {
        world,
        home: tempfile::tempdir().expect("a directory"),
        plain,
    }
}

const IMAGE: &str = "gcr.io/cloudrun/hello";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcloud_deploys_over_plain_http() {
    if !installed("gcloud_deploys_over_plain_http") {
        return;
    }
    let world = World::start().await;
    let cli = gcloud(&world, true);
    let said = cli
        .run(&[
            "run",
            "deploy",
            "plain",
            "--image",
            IMAGE,
            "--no-allow-unauthenticated",
        ])
        .await;
    assert!(
        said.ok && said.err.contains("has been deployed"),
        "{said:?}"
    );
    assert!(said.err.contains("http://plain.localhost:8080"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcloud_manages_a_service() {
    if !installed("gcloud_manages_a_service") {
        return;
    }
    let world = World::start().await;
    let cli = gcloud(&world, false);

    // A new service, open to everybody.
    let said = cli
        .run(&[
            "run",
            "deploy",
            "hello",
            "--image",
            IMAGE,
            "--allow-unauthenticated",
            "--memory=1Gi",
            "--cpu=1",
            "--timeout=300",
            "--concurrency=80",
            "--min-instances=0",
            "--max-instances=10",
            "--set-env-vars=A=1,B=two",
            "--port=8080",
            "--labels=team=a",
        ])
        .await;
    assert!(said.ok, "{said:?}");
    assert!(
        said.err.contains("Service [hello] revision [hello-00001-"),
        "{said:?}"
    );
    assert!(
        said.err.contains("serving 100 percent of traffic"),
        "{said:?}"
    );
    assert!(
        said.err
            .contains("Service URL: http://hello.localhost:8080"),
        "{said:?}"
    );
    let service = world
        .store
        .service(&"demo/us-central1/hello".parse().expect("a key"))
        .expect("reads")
        .expect("exists");
    let template = &service.spec.template;
    assert_eq!(
        (
            template.concurrency,
            template.timeout_secs,
            template.max_instances
        ),
        (Some(80), Some(300), Some(10))
    );
    assert_eq!(
        (template.startup_cpu_boost, template.min_instances),
        (Some(true), None)
    );
    assert!(world.store.policy(&service.key).expect("reads").is_public());

    // Reading it back.
    let shown = cli.json(&["run", "services", "describe", "hello"]).await;
    assert_eq!(shown["status"]["url"], "http://hello.localhost:8080");
    assert_eq!(
        shown["metadata"]["labels"]["cloud.googleapis.com/location"],
        "us-central1"
    );
    let text = cli.must(&["run", "services", "describe", "hello"]).await;
    assert!(
        text.contains("hello in region us-central1") && text.contains("100%"),
        "{text}"
    );
    let list = cli.must(&["run", "services", "list"]).await;
    assert!(
        list.contains("hello")
            && list.contains("us-central1")
            && list.contains("http://hello.localhost:8080"),
        "{list}"
    );
    let list = cli
        .must(&["run", "services", "list", "--region=us-central1"])
        .await;
    assert!(list.contains("hello"), "{list}");

    // A second revision from an update without a new image (gcloud looks for the first one by its nonce and pins its digest).
    cli.must(&[
        "run",
        "services",
        "update",
        "hello",
        "--update-env-vars=B=three",
        "--concurrency=5",
    ])
    .await;
    let service = world
        .store
        .service(&service.key)
        .expect("reads")
        .expect("exists");
    assert_eq!(service.meta.generation, 2);
    assert!(
        service.spec.template.containers[0]
            .image
            .contains("@sha256:"),
        "{}",
        service.spec.template.containers[0].image
    );

    // Revisions.
    let revisions = cli
        .json(&["run", "revisions", "list", "--service=hello"])
        .await;
    let names: Vec<&str> = revisions
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|r| r["metadata"]["name"].as_str())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let first = names
        .iter()
        .find(|n| n.starts_with("hello-00001-"))
        .expect("the first")
        .to_string();
    let shown = cli.run(&["run", "revisions", "describe", &first]).await;
    assert!(shown.ok && shown.out.contains("hello-00001-"), "{shown:?}");
    assert!(!shown.out.contains("None"), "{shown:?}");

    // Traffic: by revision, by tag, back to the latest.
    let to = format!("--to-revisions={first}=25,LATEST=75");
    let said = cli
        .run(&["run", "services", "update-traffic", "hello", &to])
        .await;
    assert!(
        said.ok && said.out.contains("25%") | said.err.contains("25%"),
        "{said:?}"
    );
    let tags = format!("--set-tags=old={first}");
    let said = cli
        .run(&["run", "services", "update-traffic", "hello", &tags])
        .await;
    assert!(said.ok, "{said:?}");
    assert!(
        format!("{}{}", said.out, said.err).contains("http://old---hello.localhost:8080"),
        "{said:?}"
    );
    cli.must(&["run", "services", "update-traffic", "hello", "--to-latest"])
        .await;
    let said = cli
        .run(&[
            "run",
            "services",
            "update-traffic",
            "hello",
            "--to-revisions=hello-nope=100",
        ])
        .await;
    assert!(!said.ok && said.err.contains("hello-nope"), "{said:?}");

    // A revision of a tag's own, without traffic.
    let said = cli
        .run(&[
            "run",
            "deploy",
            "hello",
            "--image",
            IMAGE,
            "--tag=blue",
            "--no-traffic",
        ])
        .await;
    assert!(
        said.ok && said.err.contains("http://blue---hello.localhost:8080"),
        "{said:?}"
    );

    // Policy.
    let policy = cli
        .json(&["run", "services", "get-iam-policy", "hello"])
        .await;
    assert_eq!(policy["bindings"][0]["members"][0], "allUsers");
    cli.must(&[
        "run",
        "services",
        "add-iam-policy-binding",
        "hello",
        "--member=user:me@example.com",
        "--role=roles/run.invoker",
    ])
    .await;
    cli.must(&[
        "run",
        "services",
        "remove-iam-policy-binding",
        "hello",
        "--member=allUsers",
        "--role=roles/run.invoker",
    ])
    .await;
    let policy = cli
        .json(&["run", "services", "get-iam-policy", "hello"])
        .await;
    assert_eq!(
        policy["bindings"][0]["members"],
        serde_json::json!(["user:me@example.com"])
    );

    // The views that Knative derives.
    let said = cli.must(&["run", "regions", "list"]).await;
    assert!(said.contains("us-central1"), "{said}");

    // Deleting a revision that nothing leads to, and the service.
    cli.must(&[
        "run",
        "services",
        "update-traffic",
        "hello",
        "--clear-tags",
        "--to-latest",
    ])
    .await;
    let said = cli
        .run(&["run", "revisions", "delete", &first, "--quiet"])
        .await;
    assert!(said.ok, "{said:?}");
    cli.must(&["run", "services", "delete", "hello", "--quiet"])
        .await;
    assert_eq!(world.store.service(&service.key).expect("reads"), None);
    let said = cli.run(&["run", "services", "describe", "hello"]).await;
    assert!(
        !said.ok && said.err.contains("Cannot find service [hello]"),
        "{said:?}"
    );
}

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
