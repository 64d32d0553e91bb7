use super::*;

fn request(uri: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut builder = Request::builder().uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Body::empty()).unwrap()
}

const DIRECT: Arrival = Arrival::Direct {
    local: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
};

#[test]
fn google_hosts_name_api_and_region() {
    for (host, api, region) in [
        ("run.googleapis.com", "run", None),
        (
            "asia-northeast1-run.googleapis.com",
            "run",
            Some("asia-northeast1"),
        ),
        ("us-central1-run.googleapis.com", "run", Some("us-central1")),
        (
            "northamerica-northeast2-run.googleapis.com",
            "run",
            Some("northamerica-northeast2"),
        ),
        ("Secretmanager.Googleapis.com", "secretmanager", None),
        ("cloud-trace2.googleapis.com", "cloud-trace2", None),
    ] {
        let context = google(host).unwrap();
        assert_eq!(
            (
                context.api.as_str(),
                context.region.as_ref().map(Region::as_str)
            ),
            (api, region),
            "{host}"
        );
    }
    for host in [
        "googleapis.com",
        ".googleapis.com",
        "a.b.googleapis.com",
        "evil-googleapis.com",
        "googleapis.com.evil.test",
    ] {
        assert_eq!(google(host), None, "{host}");
    }
}

#[test]
fn own_names_are_own_and_others_are_refused() {
    for host in [
        "localhost:8787",
        "127.0.0.1:8787",
        "[::1]:8787",
        "LOCALHOST",
        "127.1.2.3",
    ] {
        assert_eq!(
            find(&DIRECT, &request("/healthz", &[("host", host)])).unwrap(),
            Target::Own,
            "{host}"
        );
    }
    for host in [
        "evil.test",
        "evil.test:8787",
        "localhost.evil.test",
        "run.googleapis.com",
        "192.0.2.1",
    ] {
        let error = find(&DIRECT, &request("/healthz", &[("host", host)])).unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied, "{host}");
    }
}

#[test]
fn the_host_that_a_request_was_sent_to_wins() {
    let absolute = request(
        "http://us-central1-run.googleapis.com/v2/x",
        &[("host", "us-central1-run.googleapis.com")],
    );
    let Target::Google(context) = find(&DIRECT, &absolute).unwrap() else {
        unreachable!("a Google host")
    };
    assert_eq!(context.region.unwrap().as_str(), "us-central1");
    let tunnel = Arrival::Tunnel {
        host: "run.googleapis.com".to_owned(),
    };
    assert!(
        find(
            &tunnel,
            &request("/v2/x", &[("host", "run.googleapis.com")])
        )
        .is_ok()
    );
    assert!(find(&tunnel, &request("/v2/x", &[("host", "localhost")])).is_err());
}

#[test]
fn a_foreign_page_is_refused() {
    for origin in [
        "http://localhost:3000",
        "http://127.0.0.1:8787",
        "http://[::1]:8787",
    ] {
        assert!(
            check_origin(&request("/", &[("origin", origin)])).is_ok(),
            "{origin}"
        );
    }
    for origin in ["https://evil.test", "null", "http://localhost.evil.test"] {
        assert!(
            check_origin(&request("/", &[("origin", origin)])).is_err(),
            "{origin}"
        );
    }
}

#[test]
fn short_names_are_split_off() {
    assert_eq!(
        split_api("/run/v2/projects/p"),
        Some(("run", "/v2/projects/p"))
    );
    assert_eq!(
        split_api("/serviceusage/v1/projects/p/services"),
        Some(("serviceusage", "/v1/projects/p/services"))
    );
    for path in [
        "/",
        "/run",
        "//v2/x",
        "/v2/",
        "/v2/_catalog",
        "/v2/library/app/manifests/latest",
    ] {
        assert_eq!(split_api(path), None, "{path}");
    }
}

#[test]
fn paths_without_a_short_name_are_those_of_cloud_run() {
    for path in [
        "/v2/projects/p/locations/r/services",
        "/v1/projects/p/locations/r/services/s:getIamPolicy",
        "/apis/serving.knative.dev/v1/namespaces/p/services",
    ] {
        assert_eq!(split_api(path), Some(("run", path)));
    }
}

#[test]
fn two_hosts_and_users_before_hosts_are_refused() {
    for (uri, host) in [
        ("http://localhost/healthz", "evil.test"),
        ("http://localhost:8787/healthz", "127.0.0.1:8787"),
        ("http://run.googleapis.com/v2/x", "localhost"),
        ("http://evil.test@localhost/healthz", "localhost"),
        ("/healthz", "evil.test@localhost"),
        ("/healthz", "localhost:8787@evil.test"),
    ] {
        let error = find(&DIRECT, &request(uri, &[("host", host)])).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{uri} {host}");
    }
    let same = request(
        "http://LOCALHOST:8787/healthz",
        &[("host", "localhost:8787")],
    );
    assert_eq!(find(&DIRECT, &same).unwrap(), Target::Own);
}

#[test]
fn every_origin_must_be_our_own() {
    for origins in [
        &["http://localhost:3000"][..],
        &["http://127.0.0.1"],
        &["http://[::1]:8787"],
        &[],
    ] {
        let headers: Vec<_> = origins.iter().map(|origin| ("origin", *origin)).collect();
        assert!(check_origin(&request("/", &headers)).is_ok(), "{origins:?}");
    }
    for origins in [
        &["https://evil.test"][..],
        &["null"],
        &[""],
        &["http://localhost", "https://evil.test"],
        &["http://localhost@evil.test"],
        &["http://evil.test@localhost"],
        &["http://localhost.evil.test"],
        &["http://hello.localhost:8080"],
        &["localhost evil.test"],
    ] {
        let headers: Vec<_> = origins.iter().map(|origin| ("origin", *origin)).collect();
        assert!(
            check_origin(&request("/", &headers)).is_err(),
            "{origins:?}"
        );
    }
}
