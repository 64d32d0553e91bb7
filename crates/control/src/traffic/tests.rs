use utsuwa_decide::traffic::resolve;
use utsuwa_model::iam::{Binding, Expr};
use utsuwa_model::service::{Meta, ServiceSpec, ServiceStatus, TrafficTarget};

use super::*;

fn settings() -> ControlSettings {
    ControlSettings::new(
        "demo".parse().unwrap(),
        "here".parse().unwrap(),
        "localhost",
        80,
    )
}

fn service(key: &str) -> Service {
    Service {
        key: key.parse().unwrap(),
        meta: Meta::default(),
        spec: ServiceSpec::default(),
        status: ServiceStatus::default(),
    }
}

fn policy(member: &str, role: &str) -> Policy {
    let binding = Binding {
        role: role.into(),
        members: vec![member.into()],
        condition: None,
    };
    Policy {
        bindings: vec![binding],
        ..Policy::default()
    }
}

#[test]
fn who_may_call() {
    let mut s = service("demo/here/a");
    for (member, role, want) in [
        ("allUsers", "roles/run.invoker", Access::Public),
        (
            "allAuthenticatedUsers",
            "roles/run.invoker",
            Access::Authenticated,
        ),
        ("allUsers", "roles/run.admin", Access::Authenticated),
        ("user:a@b.c", "roles/run.invoker", Access::Authenticated),
    ] {
        assert_eq!(access(&s, &policy(member, role)), want, "{member} {role}");
    }
    let mut limited = policy("allUsers", "roles/run.invoker");
    limited.bindings[0].condition = Some(Expr {
        expression: "request.path == '/'".into(),
        ..Expr::default()
    });
    assert_eq!(
        access(&s, &limited),
        Access::Authenticated,
        "a condition nobody can judge yet opens nothing"
    );
    s.spec.invoker_iam_disabled = true;
    assert_eq!(access(&s, &Policy::default()), Access::Public);
    let way = |ingress: IngressSetting| {
        let mut s = s.clone();
        s.spec.ingress = ingress;
        let all = policy("allUsers", "roles/run.invoker");
        let routes = routes(&s, &all, None, "not yet", &[], &settings());
        (routes.hosts[0].1.access, routes.hosts[0].1.inside_only)
    };
    assert_eq!(way(IngressSetting::All), (Access::Public, false));
    assert_eq!(way(IngressSetting::InternalOnly), (Access::Public, true));
    assert_eq!(
        way(IngressSetting::InternalLoadBalancer),
        (Access::Public, true)
    );
    assert_eq!(way(IngressSetting::None).0, Access::Closed);
    s.spec.default_uri_disabled = true;
    assert_eq!(access(&s, &Policy::default()), Access::Closed);
}

#[test]
fn hosts_of_the_default_place_and_of_others() {
    let ready: BTreeMap<RevisionId, utsuwa_decide::traffic::Servable> = BTreeMap::from([(
        "a-1".parse().unwrap(),
        utsuwa_decide::traffic::Servable::Ready,
    )]);
    let targets = [TrafficTarget {
        latest: true,
        percent: Some(100),
        tag: Some("next".into()),
        ..TrafficTarget::default()
    }];
    let latest = "a-1".parse().unwrap();
    let routing = resolve("a", &targets, Some(&latest), &ready).unwrap();
    let own = routes(
        &service("demo/here/a"),
        &Policy::default(),
        Some(&routing),
        "",
        &[],
        &settings(),
    );
    let hosts: Vec<&str> = own.hosts.iter().map(|(host, _)| host.as_str()).collect();
    assert_eq!(hosts, ["a.localhost", "next---a.localhost"]);
    assert_eq!(own.shares, BTreeMap::from([("a-1".parse().unwrap(), 100)]));
    assert_eq!(own.hosts[1].1.tag.as_deref(), Some("next"));

    let away = routes(
        &service("demo/there/a"),
        &Policy::default(),
        Some(&routing),
        "",
        &[],
        &settings(),
    );
    let host = &away.hosts[0].0;
    assert!(
        host.starts_with("a-")
            && host.ends_with(".localhost")
            && host.len() == "a-0123456789.localhost".len(),
        "{host}"
    );

    let mut own = service("demo/here/a");
    let status = traffic_status(&own, &routing, &settings());
    assert_eq!(status[0].url, "http://next---a.localhost");
    own.spec.default_uri_disabled = true;
    let off = traffic_status(&own, &routing, &settings());
    assert_eq!((off[0].url.as_str(), &off[0].tag), ("", &status[0].tag));
    assert_eq!(own_urls(&own, &settings()), (None, None));
    assert_eq!(
        routing_of(&status, |_| true),
        Some(routing),
        "a held route is found again"
    );
    assert_eq!(routing_of(&status, |_| false), None);
    let none = routes(
        &service("demo/here/a"),
        &Policy::default(),
        None,
        "waiting",
        &[],
        &settings(),
    );
    assert!(
        matches!(&none.hosts[0].1.target, Target::NotReady { message } if message == "waiting")
    );
}
