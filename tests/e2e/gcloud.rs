//! The unchanged gcloud, pointed here by `eval "$(utsuwa env)"`.

use std::process::{Command, Output};

use crate::harness::{Server, can_run, skip};

/// A shell line with the environment of `utsuwa env`.
fn shell(server: &Server, env_flags: &str, line: &str) -> Output {
    let home = server.data_dir().parent().unwrap().join("gcloud-home");
    std::fs::create_dir_all(&home).unwrap();
    let program = env!("CARGO_BIN_EXE_utsuwa");
    Command::new("bash")
        .arg("-euc")
        .arg(format!(
            "eval \"$({program} env {env_flags} --api http://{})\"\n{line}",
            server.api
        ))
        .env("CLOUDSDK_CONFIG", &home)
        .env("HOME", &home)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn ok(server: &Server, env_flags: &str, line: &str) -> String {
    let output = shell(server, env_flags, line);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{line}\n{out}\n{err}\n{}",
        server.log()
    );
    format!("{out}{err}")
}

fn installed(test: &str) -> bool {
    let there = Command::new("gcloud")
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success());
    if !there {
        skip(test, "gcloud is not installed");
    }
    there
}

#[test]
fn gcloud_run_works_unchanged() {
    const NAME: &str = "gcloud::gcloud_run_works_unchanged";
    if !can_run(NAME) || !installed(NAME) {
        return;
    }
    let server = Server::start(&[]);
    let said = ok(
        &server,
        "",
        "gcloud run deploy hello --image gcr.io/cloudrun/hello --allow-unauthenticated --memory 1Gi --cpu 1 --timeout 300 --max-instances 10",
    );
    assert!(
        said.contains("has been deployed and is serving")
            && said.contains("http://hello.localhost"),
        "{said}"
    );
    server.until_public("hello");
    assert_eq!(server.get("hello", "/").0, 200);

    let listed = ok(&server, "", "gcloud run services list");
    assert!(
        listed.contains("hello") && listed.contains("asia-northeast1"),
        "{listed}"
    );
    let described = ok(
        &server,
        "",
        "gcloud run services describe hello --format='value(status.conditions[0].status,spec.template.spec.timeoutSeconds)'",
    );
    assert!(
        described.contains("True") && described.contains("300"),
        "{described}"
    );

    let said = ok(
        &server,
        "",
        "gcloud run deploy hello --image gcr.io/cloudrun/hello --set-env-vars V=two --revision-suffix two --no-traffic --tag next",
    );
    assert!(said.contains("next---hello"), "{said}");
    assert_eq!(server.get("next---hello", "/").0, 200);
    let said = ok(
        &server,
        "",
        "gcloud run services update-traffic hello --to-revisions hello-two=100",
    );
    assert!(
        said.contains("100%") && said.contains("hello-two"),
        "{said}"
    );
    assert!(server.get("hello", "/env").1.contains("two"));

    let revisions = ok(&server, "", "gcloud run revisions list --service hello");
    assert!(
        revisions.contains("hello-two") && revisions.contains("hello-00001-"),
        "{revisions}"
    );
    let revision = ok(&server, "", "gcloud run revisions describe hello-two");
    assert!(revision.contains("hello-two"), "{revision}");
    ok(
        &server,
        "",
        "gcloud run services add-iam-policy-binding hello --member allUsers --role roles/run.invoker",
    );
    let policy = ok(&server, "", "gcloud run services get-iam-policy hello");
    assert!(policy.contains("allUsers"), "{policy}");

    ok(&server, "", "gcloud run services delete hello --quiet");
    let listed = ok(&server, "", "gcloud run services list");
    assert!(!listed.contains("hello.localhost"), "{listed}");
    server.finish();
}

#[test]
fn gcloud_works_without_tls() {
    const NAME: &str = "gcloud::gcloud_works_without_tls";
    if !can_run(NAME) || !installed(NAME) {
        return;
    }
    let server = Server::start(&[]);
    let said = ok(
        &server,
        "--no-tls",
        "gcloud run deploy plain --image utsuwa.local/hello --no-allow-unauthenticated",
    );
    assert!(said.contains("has been deployed"), "{said}");
    server.finish();
}

#[test]
fn gcloud_shows_why_a_deploy_failed() {
    const NAME: &str = "gcloud::gcloud_shows_why_a_deploy_failed";
    if !can_run(NAME) || !installed(NAME) {
        return;
    }
    let server = Server::start(&[]);
    let output = shell(
        &server,
        "",
        "gcloud run deploy broken --image utsuwa.local/hello --command /no/such --no-allow-unauthenticated",
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("/no/such"), "{said}");
    let output = shell(
        &server,
        "",
        "gcloud run deploy wrong --image utsuwa.local/hello --port 8080 --concurrency 5000 --no-allow-unauthenticated",
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.to_lowercase().contains("concurrency"),
        "{said}"
    );
    server.finish();
}

#[test]
fn gcloud_deploys_to_gen1() {
    const NAME: &str = "gcloud::gcloud_deploys_to_gen1";
    if !crate::gvisor::possible(NAME) || !installed(NAME) {
        return;
    }
    let server = Server::start(&[]);
    let deploy = "gcloud run deploy hello --image gcr.io/cloudrun/hello --allow-unauthenticated --execution-environment=gen1";
    let said = ok(&server, "", deploy);
    assert!(said.contains("has been deployed and is serving"), "{said}");
    server.until_public("hello");
    let (_, kernel) = server.get("hello", "/kernel");
    assert!(kernel.starts_with("Linux version 4.4.0 "), "{kernel}");
    server.finish();
}

#[test]
fn gcloud_deploys_several_containers() {
    const NAME: &str = "gcloud::gcloud_deploys_several_containers";
    if !can_run(NAME) || !installed(NAME) {
        return;
    }
    let server = Server::start(&[]);
    let said = ok(
        &server,
        "",
        "gcloud run deploy pair --allow-unauthenticated \
         --container app --image utsuwa.local/hello --port 9000 \
         --container side --image utsuwa.local/hello --set-env-vars PORT=7000 --depends-on app",
    );
    assert!(said.contains("has been deployed and is serving"), "{said}");
    server.until_public("pair");
    let reached = server.get("pair", "/egress?url=127.0.0.1:7000").1;
    assert!(reached.starts_with("ok"), "{reached}");
    let depends =
        "gcloud run services describe pair --format='value(spec.template.metadata.annotations)'";
    let said = ok(&server, "", depends);
    assert!(
        said.contains("container-dependencies") && said.contains("app"),
        "{said}"
    );
    // The other way round: who is waited for needs a startup probe, and gets one.
    let turned = "gcloud run services update pair --container app --depends-on side --container side --depends-on ''";
    let output = shell(&server, "", turned);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("startupProbe"),
        "{said}"
    );
    ok(
        &server,
        "",
        "gcloud run services update pair --container app --depends-on side \
         --container side --depends-on '' --startup-probe tcpSocket.port=7000,periodSeconds=1,failureThreshold=30",
    );
    let reached = server.get("pair", "/egress?url=127.0.0.1:7000").1;
    assert!(reached.starts_with("ok"), "{reached}");
    server.finish();
}

/// As `gcloud` maps a domain: it asks which ones it may, creates, and polls until there are records.
#[test]
fn gcloud_maps_domains() {
    const NAME: &str = "gcloud::gcloud_maps_domains";
    if !can_run(NAME) || !installed(NAME) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("hello", &[]);
    let here = "--region asia-northeast1";
    let run = |line: &str| {
        ok(
            &server,
            "",
            &format!("gcloud beta run domain-mappings {line} {here}"),
        )
    };
    run("create --service hello --domain www.example.com");
    let listed = run("list");
    assert!(
        listed.contains("www.example.com") && listed.contains("hello"),
        "{listed}"
    );
    let described = run("describe --domain www.example.com");
    assert!(
        described.contains("routeName: hello") && described.contains("rrdata"),
        "{described}"
    );
    run("delete --domain www.example.com --quiet");
    let listed = run("list");
    assert!(!listed.contains("www.example.com"), "{listed}");
    server.finish();
}
