//! From resolved traffic to hosts, access and addresses: the part of the route table that one service makes.
//!
//! Owns: host names of services and tags (decision 13), who may call, what is shown as address. Pure. Deliberately not here:
//! resolving targets (`utsuwa_decide::traffic`), publishing ([`crate::core::Core::publish`]).
//!
//! Invariants: 1. Every revision a host leads to is in `shares`. 2. A service that is being deleted has no hosts.

use std::collections::BTreeMap;
use std::sync::Arc;

use utsuwa_decide::traffic::Routing;
use utsuwa_model::address::{service_host, tag_host};
use utsuwa_model::domain::DomainMapping;
use utsuwa_model::iam::Policy;
use utsuwa_model::route::{Access, HostRoute, Target};
use utsuwa_model::service::{IngressSetting, Service, TrafficStatus};
use utsuwa_model::{RevisionId, RevisionKey, ServiceKey};

use crate::settings::ControlSettings;
use crate::world::ServiceRoutes;

/// The service's own host.
pub(crate) fn host(key: &ServiceKey, settings: &ControlSettings) -> String {
    service_host(key, &settings.project, &settings.region, &settings.domain)
}

/// Whether only instances of this server may come in. There is no load balancer of Google's in front: what is let in through
/// one is let in from inside alone.
fn inside_only(setting: IngressSetting) -> bool {
    match setting {
        IngressSetting::InternalOnly | IngressSetting::InternalLoadBalancer => true,
        IngressSetting::All | IngressSetting::None => false,
    }
}

/// Who may call (§1.10, §2.5).
pub(crate) fn access(service: &Service, policy: &Policy) -> Access {
    if service.spec.default_uri_disabled {
        return Access::Closed;
    }
    domain_access(service, policy)
}

/// The same under its own domains.
fn domain_access(service: &Service, policy: &Policy) -> Access {
    if service.spec.ingress == IngressSetting::None {
        return Access::Closed;
    }
    if service.spec.invoker_iam_disabled || policy.is_public() {
        Access::Public
    } else {
        Access::Authenticated
    }
}

/// The routes of a service. Without `routing` nothing of it ever became ready, for the reason `held`.
pub(crate) fn routes(
    service: &Service,
    policy: &Policy,
    routing: Option<&Routing>,
    held: &str,
    domains: &[DomainMapping],
    settings: &ControlSettings,
) -> ServiceRoutes {
    let (key, access) = (&service.key, access(service, policy));
    let own = host(key, settings);
    let revision = |id: &RevisionId| RevisionKey {
        service: key.clone(),
        revision: id.clone(),
    };
    let route = |tag: Option<&String>, target: Target| {
        Arc::new(HostRoute {
            service: key.clone(),
            tag: tag.cloned(),
            access,
            inside_only: inside_only(service.spec.ingress),
            target,
        })
    };
    let mut hosts = Vec::new();
    let mut shares = BTreeMap::new();
    match routing {
        Some(routing) => {
            let split = routing
                .split
                .iter()
                .map(|(id, percent)| (revision(id), *percent))
                .collect();
            hosts.push((own.clone(), route(None, Target::Split(split))));
            for (tag, id) in &routing.tags {
                hosts.push((
                    tag_host(tag, &own),
                    route(Some(tag), Target::Split(vec![(revision(id), 100)])),
                ));
                shares.insert(id.clone(), 0);
            }
            shares.extend(routing.split.iter().cloned());
        }
        None => hosts.push((
            own,
            route(
                None,
                Target::NotReady {
                    message: held.to_owned(),
                },
            ),
        )),
    }
    // A domain leads where the service's own host does, also where that one is switched off.
    if let Some((_, leads)) = hosts.first() {
        let access = domain_access(service, policy);
        let leads = Arc::new(HostRoute {
            access,
            ..HostRoute::clone(leads)
        });
        let names = domains.iter().map(|domain| domain.name.to_string());
        hosts.extend(names.map(|name| (name, Arc::clone(&leads))));
    }
    ServiceRoutes {
        hosts,
        shares,
        scaling: service.spec.scaling.clone(),
    }
}

/// The addresses under the service's own host: over what is shown, and over HTTPS where that is another one. None where it is
/// switched off: what is shown as an address serves (`urls` of the API).
pub(crate) fn own_urls(
    service: &Service,
    settings: &ControlSettings,
) -> (Option<String>, Option<String>) {
    if service.spec.default_uri_disabled {
        return (None, None);
    }
    let host = host(&service.key, settings);
    (Some(settings.url(&host)), settings.other_url(&host))
}

/// What is shown as really routed, in the user's order.
pub(crate) fn traffic_status(
    service: &Service,
    routing: &Routing,
    settings: &ControlSettings,
) -> Vec<TrafficStatus> {
    let own = host(&service.key, settings);
    // The address of a tag is switched off with the service's own.
    let shown = |_: &&String| !service.spec.default_uri_disabled;
    routing
        .targets
        .iter()
        .map(|target| TrafficStatus {
            revision: target.revision.clone(),
            latest: target.latest,
            percent: target.percent,
            tag: target.tag.clone(),
            url: target
                .tag
                .as_ref()
                .filter(shown)
                .map_or_else(String::new, |tag| settings.url(&tag_host(tag, &own))),
        })
        .collect()
}

/// The routing that a stored status describes: where a held route stays, also after a restart. `None` if it names nothing, or
/// a revision that can't serve.
pub(crate) fn routing_of(
    status: &[TrafficStatus],
    can_serve: impl Fn(&RevisionId) -> bool,
) -> Option<Routing> {
    let mut routing = Routing::default();
    for target in status.iter().filter(|target| can_serve(&target.revision)) {
        let percent = target.percent.unwrap_or(0);
        if percent > 0 {
            match routing
                .split
                .iter_mut()
                .find(|(id, _)| *id == target.revision)
            {
                Some((_, share)) => *share += percent,
                None => routing.split.push((target.revision.clone(), percent)),
            }
        }
        if let Some(tag) = &target.tag {
            routing.tags.insert(tag.clone(), target.revision.clone());
        }
        routing.targets.push(utsuwa_decide::traffic::RoutedTarget {
            revision: target.revision.clone(),
            latest: target.latest,
            percent: target.percent,
            tag: target.tag.clone(),
        });
    }
    let sum: u32 = routing.split.iter().map(|(_, percent)| *percent).sum();
    (sum == 100).then_some(routing)
}

#[cfg(test)]
mod tests;
