//! Commands that change the same service in the same moment.

use crate::harness::{Server, can_run};

#[test]
fn five_deploys_at_once_of_a_new_service_all_get_through() {
    if !can_run("overtaken::five_deploys_at_once_of_a_new_service_all_get_through") {
        return;
    }
    let server = Server::start(&[]);
    std::thread::scope(|scope| {
        let deploys: Vec<_> = (0..5)
            .map(|i| {
                let variable = format!("DEPLOY{i}=yes");
                let server = &server;
                scope.spawn(move || {
                    server.utsuwa(&[
                        "deploy",
                        "rush",
                        "--image",
                        "utsuwa.local/hello",
                        "--update-env-vars",
                        &variable,
                        "--async",
                    ])
                })
            })
            .collect();
        for deploy in deploys {
            let output = deploy.join().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
        }
    });
    // Nobody's change is lost: each was made on top of the one before.
    let described = server.ok(&["services", "describe", "rush", "--format", "json"]);
    for i in 0..5 {
        assert!(described.contains(&format!("DEPLOY{i}")), "{described}");
    }
    server.ok(&["services", "delete", "rush", "-q"]);
    server.finish();
}
