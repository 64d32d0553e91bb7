//! Google's own client library (Python), unchanged, over gRPC and over REST; our own command line where little is installed.

use std::process::Command;

use crate::harness::{Server, can_run, skip};

const SCRIPT: &str = r#"
import sys, grpc
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import run_v2
from google.cloud.run_v2.services.services.transports import ServicesGrpcTransport
from google.cloud.run_v2.services.revisions.transports import RevisionsGrpcTransport

address = sys.argv[1]
channel = lambda: grpc.insecure_channel(address)
services = run_v2.ServicesClient(transport=ServicesGrpcTransport(channel=channel()))
revisions = run_v2.RevisionsClient(transport=RevisionsGrpcTransport(channel=channel()))
parent = "projects/demo/locations/asia-northeast1"
service = run_v2.Service(template=run_v2.RevisionTemplate(containers=[run_v2.Container(image="utsuwa.local/hello")]))
made = services.create_service(parent=parent, service=service, service_id="by-python").result(timeout=60)
assert made.uri.startswith("http://by-python."), made.uri
assert made.terminal_condition.state == run_v2.Condition.State.CONDITION_SUCCEEDED, made.terminal_condition
got = services.get_service(name=parent + "/services/by-python")
got.template.containers[0].env.append(run_v2.EnvVar(name="V", value="two"))
updated = services.update_service(service=got).result(timeout=60)
assert updated.generation == 2, updated.generation
assert [s.name for s in services.list_services(parent=parent)] == [parent + "/services/by-python"]
assert len(list(revisions.list_revisions(parent=parent + "/services/by-python"))) == 2
try:
    services.get_service(name=parent + "/services/missing")
    raise SystemExit("a missing service was found")
except Exception as error:
    assert "does not exist" in str(error), error
services.delete_service(name=parent + "/services/by-python").result(timeout=60)
assert list(services.list_services(parent=parent)) == []
print("python client: ok")
"#;

#[test]
fn googles_python_client_over_grpc() {
    const NAME: &str = "clients::googles_python_client_over_grpc";
    if !can_run(NAME) {
        return;
    }
    let Some(python) = std::env::var_os("UTSUWA_TEST_PYTHON") else {
        return skip(
            NAME,
            "google-cloud-run is not installed; `make test` installs it (UTSUWA_TEST_PYTHON)",
        );
    };
    let server = Server::start(&[]);
    let output = Command::new(python)
        .args(["-c", SCRIPT, &server.api.to_string()])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        server.log()
    );
    server.finish();
}

/// Small machines have no certificates at all, and the API is plain HTTP.
#[test]
fn our_own_commands_need_no_certificates() {
    let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args(["services", "list", "--api", "http://127.0.0.1:1"])
        .envs([("SSL_CERT_FILE", "/missing"), ("SSL_CERT_DIR", "/missing")])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("127.0.0.1:1"), "{told}");
}
