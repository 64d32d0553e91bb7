//! Configurations and routes: what Knative would derive from the service.

use super::*;

#[tokio::test]
async fn a_configuration_says_in_knative_s_words_what_its_revision_says() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    let path = format!("{NAMESPACE}/configurations/hello");
    for (reason, message, says) in [
        (
            "RevisionFailed",
            "Image 'x' not found.",
            "Revision \"hello-00001-abc\" failed with message: Image 'x' not found.",
        ),
        (
            "RevisionNameTaken",
            "Revision named 'hello-1' with different configuration already exists.",
            "Revision creation failed with message: Revision named 'hello-1' with different configuration already exists.",
        ),
    ] {
        bench.settle(&key("hello"), Some((reason, message))).await;
        let configuration = get(&bench, &path).await;
        let ready = &configuration["status"]["conditions"][0];
        assert_eq!(
            (
                &ready["type"],
                &ready["status"],
                &ready["reason"],
                &ready["message"]
            ),
            (
                &json!("Ready"),
                &json!("False"),
                &json!("RevisionFailed"),
                &json!(says)
            )
        );
        // The service keeps the words that `gcloud` prints.
        let service = get(&bench, &format!("{NAMESPACE}/services/hello")).await;
        assert_eq!(service["status"]["conditions"][0]["message"], message);
    }
}

#[tokio::test]
async fn configurations_and_routes_are_views() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    bench.settle(&key("hello"), None).await;
    let configuration = get(&bench, &format!("{NAMESPACE}/configurations/hello")).await;
    assert_eq!(
        configuration["status"]["latestReadyRevisionName"],
        "hello-00001-abc"
    );
    assert_eq!(configuration["status"]["conditions"][0]["type"], "Ready");
    let routes = get(&bench, &format!("{NAMESPACE}/routes")).await;
    assert_eq!(
        (
            routes["kind"].as_str(),
            &routes["items"][0]["status"]["url"]
        ),
        (Some("RouteList"), &json!("http://hello.localhost:8080"))
    );
    assert_eq!(
        routes["items"][0]["spec"]["traffic"][0]["configurationName"],
        "hello"
    );
    assert_eq!(
        bench
            .call("POST", &format!("{NAMESPACE}/routes"), json!({}))
            .await
            .0,
        404,
        "read only"
    );
}
