use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use utsuwa_wire::google::cloud::run::v2;
use utsuwa_wire::google::cloud::run::v2::services_client::ServicesClient;

use crate::testing::Bench;

/// A server on a free port; it stops when the sender is dropped.
struct Running {
    at: SocketAddr,
    bench: Bench,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinSet<Result<(), crate::proxy::ProxyError>>,
}

impl Running {
    async fn start() -> Self {
        let bench = Bench::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(crate::serve(
            bench.state.clone(),
            vec![listener],
            async move {
                let _ = stopped.await;
            },
        ));
        Self {
            at,
            bench,
            stop: Some(stop),
            task,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// A client that goes through our proxy and trusts our authority alone.
    fn through_proxy(&self) -> reqwest::ClientBuilder {
        let ca = std::fs::read(crate::proxy::ca_pem_path(&self.bench.state.keys_dir)).unwrap();
        reqwest::Client::builder()
            .proxy(reqwest::Proxy::all(self.url("")).unwrap())
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
    }
}

const SERVICES: &str = "/v2/projects/demo/locations/us-central1/services";

fn hello() -> Value {
    json!({"template": {"containers": [{"image": "utsuwa.local/hello"}]}})
}

#[tokio::test]
async fn rest_and_grpc_share_one_port_and_one_store() {
    let server = Running::start().await;
    let channel = tonic::transport::Endpoint::from_shared(server.url(""))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = ServicesClient::new(channel);
    let container = v2::Container {
        image: "utsuwa.local/hello".to_owned(),
        ..v2::Container::default()
    };
    let template = v2::RevisionTemplate {
        containers: vec![container],
        ..v2::RevisionTemplate::default()
    };
    let request = v2::CreateServiceRequest {
        parent: "projects/demo/locations/us-central1".to_owned(),
        service: Some(v2::Service {
            template: Some(template),
            ..v2::Service::default()
        }),
        service_id: "hello".to_owned(),
        validate_only: false,
    };
    let operation = client
        .create_service(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(
        operation
            .name
            .starts_with("projects/demo/locations/us-central1/operations/")
    );

    // The error carries the same details as over REST.
    let status = client.create_service(request).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (
            tonic::Code::AlreadyExists,
            "Resource 'hello' already exists."
        )
    );
    let status = client
        .create_service(v2::CreateServiceRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(!status.details().is_empty());

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let listed: Value = http
        .get(server.url(&format!("/run{SERVICES}")))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(
        listed["services"][0]["name"],
        "projects/demo/locations/us-central1/services/hello"
    );
    // A method that doesn't exist is gRPC's own UNIMPLEMENTED.
    let h2 = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let unknown = h2
        .post(server.url("/google.cloud.run.v2.Jobs/GetJob"))
        .header("content-type", "application/grpc")
        .send();
    assert_eq!(unknown.await.unwrap().headers()["grpc-status"], "12");
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let server = Running::start().await;
    let channel = tonic::transport::Endpoint::from_shared(server.url(""))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let answer = health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        answer.status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );

    use tonic_reflection::pb::v1 as reflection;
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
    let ask = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let reflection::server_reflection_response::MessageResponse::ListServicesResponse(list) =
        answer
    else {
        unreachable!("asked for services")
    };
    assert!(
        list.service
            .iter()
            .any(|s| s.name == "google.cloud.run.v2.Services")
    );
}

#[tokio::test]
async fn a_google_host_through_the_proxy_names_the_region() {
    let server = Running::start().await;
    for (builder, version) in [
        (server.through_proxy(), http::Version::HTTP_2),
        (server.through_proxy().http1_only(), http::Version::HTTP_11),
    ] {
        let client = builder.build().unwrap();
        let url = format!("https://us-central1-run.googleapis.com{SERVICES}");
        let answer = client.get(&url).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        let unknown = client
            .get("https://storage.googleapis.com/storage/v1/b/x")
            .send()
            .await
            .unwrap();
        assert_eq!(unknown.status(), 400);
        assert_eq!(
            unknown.json::<Value>().await.unwrap()["error"]["status"],
            "UNIMPLEMENTED"
        );
    }
}

#[tokio::test]
async fn absolute_form_works_without_tls() {
    let server = Running::start().await;
    let client = server.through_proxy().build().unwrap();
    let url = format!("http://us-central1-run.googleapis.com{SERVICES}?serviceId=hello");
    let created = client.post(&url).json(&hello()).send().await.unwrap();
    assert_eq!(created.status(), 200);
    // gcloud sends even our own address through the proxy (gcloud-protocol.md §1.3).
    let own = client
        .get(server.url(&format!("/run{SERVICES}/hello")))
        .send()
        .await
        .unwrap();
    assert_eq!(own.status(), 200);
    let foreign = client.get("http://example.test/").send().await.unwrap();
    assert_eq!(foreign.status(), 403);
}

#[tokio::test]
async fn hosts_that_are_not_served_are_refused_at_once() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Running::start().await;
    for host in [
        "example.test:443",
        "run.googleapis.com:80",
        "127.0.0.1:22",
        "run.googleapis.com.evil.test:443",
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.at).await.unwrap();
        let connect =
            format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
        assert!(
            answer.contains("This proxy serves *.googleapis.com:443 alone"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn prometheus_gets_text_and_a_web_page_gets_nothing() {
    let server = Running::start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(server.url("/metrics")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(answer.text().await.unwrap().contains("# TYPE up gauge"));
    let page = client
        .get(server.url("/metrics"))
        .header("origin", "https://evil.test")
        .send()
        .await
        .unwrap();
    assert_eq!(page.status(), 403);
}

#[tokio::test]
async fn names_of_others_are_refused_on_the_wire() {
    let server = Running::start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let rebound = client
        .get(server.url("/healthz"))
        .header("host", "evil.test")
        .send()
        .await
        .unwrap();
    assert_eq!(rebound.status(), 403);
    let page = client
        .get(server.url("/healthz"))
        .header("origin", "https://evil.test")
        .send()
        .await
        .unwrap();
    assert_eq!(page.status(), 403);
}

#[tokio::test]
async fn shutdown_lets_open_requests_end() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut server = Running::start().await;
    let mut stream = tokio::net::TcpStream::connect(server.at).await.unwrap();
    let head = "POST /utsuwa/v1/images:load HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // "Go on" comes once a handler reads the body: the request is inside.
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100");
    drop(server.stop.take());
    stream.write_all(b"abcdef").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("HTTP/1.1 200") && answer.contains("utsuwa.local/loaded:6"),
        "{answer}"
    );
    server.task.join_next().await.unwrap().unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(server.at).await.is_err());
}

#[tokio::test]
async fn a_panic_ends_its_request_alone() {
    let server = Running::start().await;
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let created = client
        .post(server.url(&format!("/run{SERVICES}?serviceId=panics")))
        .json(&hello())
        .send()
        .await
        .unwrap();
    assert_eq!(created.status(), 200);
    let waiting = created.json::<Value>().await.unwrap()["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let wait = client
        .post(server.url(&format!("/run/v2/{waiting}:wait")))
        .json(&json!({"timeout": "0.2s"}))
        .send();
    let explain =
        server.url("/utsuwa/v1/projects/demo/locations/us-central1/services/panics:explain");
    let (waited, explained) = tokio::join!(wait, client.get(explain).send());
    // One connection carried both.
    assert_eq!(waited.unwrap().status(), 200);
    let explained = explained.unwrap();
    assert_eq!(explained.status(), 500);
    let error: Value = explained.json().await.unwrap();
    assert_eq!(error["error"]["status"], "INTERNAL");
    assert!(!error.to_string().contains("asked to panic"), "{error}");
}

#[tokio::test]
async fn tricks_with_hosts_and_targets_reach_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Running::start().await;
    server.bench.state.ready.set(true);
    for (head, status) in [
        ("GET /healthz HTTP/1.1\r\nHost: localhost", 200),
        (
            "GET http://localhost/healthz HTTP/1.1\r\nHost: localhost",
            200,
        ),
        (
            "GET http://localhost/healthz HTTP/1.1\r\nHost: evil.test",
            400,
        ),
        (
            "GET http://evil.test/healthz HTTP/1.1\r\nHost: localhost",
            400,
        ),
        (
            "GET http://evil.test/healthz HTTP/1.1\r\nHost: evil.test",
            403,
        ),
        (
            "GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254",
            403,
        ),
        (
            "GET http://evil@localhost/healthz HTTP/1.1\r\nHost: localhost",
            400,
        ),
        ("GET /healthz HTTP/1.1\r\nHost: localhost@evil.test", 400),
        ("GET /healthz HTTP/1.1\r\nHost: evil.test", 403),
        (
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.test",
            400,
        ),
        ("GET /healthz HTTP/1.1\r\nHost: localhost evil", 400),
        ("GET /healthz HTTP/1.1\r\nX: y", 400),
        (
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: https://evil.test",
            403,
        ),
        (
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: null",
            403,
        ),
        ("CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443", 403),
        ("CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22", 403),
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.at).await.unwrap();
        let request = format!("{head}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let said = answer.get(9..12).unwrap_or_default();
        assert_eq!(said, status.to_string(), "{head:?}: {answer}");
    }
}

#[tokio::test]
async fn googles_paths_without_a_prefix_reach_cloud_run() {
    let server = Running::start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = server.url(&format!("{SERVICES}?serviceId=hello"));
    let created = client.post(&url).json(&hello()).send().await.unwrap();
    assert_eq!(created.status(), 200);
    for path in [
        &format!("{SERVICES}/hello"),
        "/v1/projects/demo/locations/us-central1/services/hello",
        "/apis/serving.knative.dev/v1/namespaces/demo/services",
        "/v1/projects/demo/locations",
    ] {
        for prefix in ["", "/run"] {
            let at = server.url(&format!("{prefix}{path}"));
            assert_eq!(client.get(&at).send().await.unwrap().status(), 200, "{at}");
        }
    }
}

#[tokio::test]
async fn what_is_not_built_says_so_with_and_without_a_prefix() {
    let server = Running::start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for path in [
        "/v2/projects/demo/locations/us-central1/jobs",
        "/v1/projects/demo/locations/us-central1/jobs",
        "/apis/run.googleapis.com/v1/namespaces/demo/jobs",
    ] {
        for prefix in ["", "/run"] {
            let at = server.url(&format!("{prefix}{path}"));
            let answer = client.post(&at).json(&json!({})).send().await.unwrap();
            assert_eq!(answer.status(), 400, "{at}");
            let error: Value = answer.json().await.unwrap();
            assert_eq!(error["error"]["status"], "UNIMPLEMENTED", "{at}");
        }
    }
    let logs = client
        .post(server.url("/logging/v2/entries:list"))
        .json(&json!({}))
        .send();
    let error: Value = logs.await.unwrap().json().await.unwrap();
    assert_eq!(error["error"]["status"], "UNIMPLEMENTED");
    let said = error["error"]["message"].as_str().unwrap();
    assert!(said.contains("`utsuwa logs NAME`"), "{said}");
}
