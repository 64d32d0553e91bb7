//! The unchanged client library `google-cloud-run` for Python, over gRPC and over REST: through the proxy of `utsuwa env`, and straight
//! to the API's address, as the README shows.
//! Runs where `UTSUWA_TEST_PYTHON` names an interpreter that has the library; elsewhere it is reported as skipped.

#[path = "../../../tests/skip.rs"]
mod skip;
mod support;

use std::process::Stdio;

use support::World;

const CLIENT: &str = include_str!("python/client.py");

/// Which way a client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Proxy,
    Straight,
}

async fn run(transport: &str, way: Way) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test learns of its tools from the environment"
    )]
    let Ok(python) = std::env::var("UTSUWA_TEST_PYTHON") else {
        let way = match way {
            Way::Proxy => "",
            Way::Straight => "straight_",
        };
        skip::skip(
            &format!("python::the_python_client_works_{way}over_{transport}"),
            "set UTSUWA_TEST_PYTHON to a Python that has google-cloud-run (`make test` does)",
        );
        return;
    };
    let world = World::start().await;
    let ca = utsuwa_api::proxy::ca_pem_path(&world.keys.path().join("keys"));
    let ca = if ca.is_file() {
        ca
    } else {
        utsuwa_api::proxy::ca_pem_path(world.keys.path())
    };
    let proxy = format!("http://{}", world.address);
    let mut command = tokio::process::Command::new(python);
    command.args(["-c", CLIENT, transport]);
    for name in ["no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY"] {
        command.env_remove(name);
    }
    match way {
        Way::Proxy => command
            .env("https_proxy", &proxy)
            .env("HTTPS_PROXY", &proxy)
            .env("REQUESTS_CA_BUNDLE", &ca)
            .env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", &ca),
        Way::Straight => command.arg(world.address.to_string()),
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("UTSUWA_TEST_PYTHON can be run");
    drop(child.stdin.take());
    let finished = tokio::time::timeout(
        std::time::Duration::from_secs(120),
        child.wait_with_output(),
    );
    let output = finished
        .await
        .expect("the client ends within two minutes")
        .expect("the client ran");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success() && text.contains("all as expected"),
        "{transport}: {text}"
    );
    let left = world.store.all_service_keys().expect("readable");
    assert_eq!(
        left.iter().map(|k| k.service.as_str()).collect::<Vec<_>>(),
        ["failing"],
        "what the client left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_over_grpc() {
    run("grpc", Way::Proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_over_rest() {
    run("rest", Way::Proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_straight_over_grpc() {
    run("grpc", Way::Straight).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_straight_over_rest() {
    run("rest", Way::Straight).await;
}
