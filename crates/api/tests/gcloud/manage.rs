//! A service from its first deploy to its end.

use super::*;

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
async fn gcloud_is_told_where_logs_are() {
    if !installed("gcloud_is_told_where_logs_are") {
        return;
    }
    let world = World::start().await;
    let cli = gcloud(&world, false);
    let said = cli.run(&["run", "services", "logs", "read", "hello"]).await;
    assert!(
        !said.ok && said.err.contains("utsuwa logs NAME"),
        "{said:?}"
    );
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
