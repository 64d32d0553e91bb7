//! Startup probes of single containers of an instance that isn't handed over yet.

use std::time::Duration;

use utsuwa_model::InstanceId;
use utsuwa_model::route::{InstanceRoute, StartupCheck, StartupProbe};

use super::app::*;
use super::scene::*;

fn asked(check: StartupCheck) -> StartupProbe {
    StartupProbe {
        initial_delay: Duration::ZERO,
        timeout: Duration::from_millis(50),
        period: Duration::from_millis(50),
        failure_threshold: 3,
        check,
    }
}

#[tokio::test]
async fn a_container_is_probed_before_its_instance_takes_requests() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let id: InstanceId = "c".repeat(32).parse().unwrap();
    let route = || InstanceRoute {
        id: id.clone(),
        revision: key(),
        port: 8080,
        age: Duration::ZERO,
    };
    let http = |path: &str| StartupCheck::Http {
        port: 7000,
        path: path.to_owned(),
        headers: Vec::new(),
    };
    let tcp = StartupCheck::Tcp { port: 7000 };
    // Nothing listens yet.
    let why = scene.ingress.probe(route(), asked(tcp.clone())).await;
    let why = why.unwrap_err();
    assert!(why.contains("connecting to port 7000"), "{why}");
    scene.listen(&id, app.address);
    for check in [tcp, http("/hello")] {
        let probed = scene.ingress.probe(route(), asked(check)).await;
        assert_eq!(probed, Ok(()));
    }
    let why = scene.ingress.probe(route(), asked(http("/teapot"))).await;
    let why = why.unwrap_err();
    assert!(why.contains("GET /teapot on port 7000, 3 times"), "{why}");
    assert!(scene.demand().instances.is_empty(), "it takes no requests");
}
