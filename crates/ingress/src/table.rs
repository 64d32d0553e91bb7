//! The route table as requests use it: exact host → revisions, compiled when a service's routes change.
//!
//! Owns: host normalisation and the compiled table. Deliberately not here: making routes (control) and choosing an instance.
//!
//! Invariants:
//! 1. A request sees one table from its first lookup to its last; publication never changes a table in place.
//! 2. Every revision a compiled host names has settings; a host whose revisions lack them is dropped with an error in the log.
//! 3. A change costs what its own services cost, not what all together do: the rest is shared with the table before.

use std::array;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use utsuwa_model::route::{Access, HostRoute, RevisionRoute, RouteTable, Target};
use utsuwa_model::{RevisionKey, ServiceKey};

use crate::revision::Revision;

/// Parts of the table. With 10,000 hosts a change copies one part of some 40.
const PARTS: usize = 256;

type Part = HashMap<Arc<str>, Arc<Host>>;

/// Lookup by host, ready for the hot path.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    parts: [Arc<Part>; PARTS],
}

impl Default for Table {
    fn default() -> Self {
        let empty = Arc::new(Part::new());
        Self {
            parts: array::from_fn(|_| Arc::clone(&empty)),
        }
    }
}

/// A host, normalised, and what is served there.
pub(crate) type Named = (Arc<str>, Option<Arc<Host>>);

/// Which part a host is in: FNV-1a over its bytes.
fn part_of(host: &str) -> usize {
    let hash = host.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    (hash ^ (hash >> 16)) as usize % PARTS
}

/// One host's rules.
#[derive(Debug)]
pub(crate) struct Host {
    /// Normalised, as it is looked up.
    pub(crate) name: Arc<str>,
    pub(crate) service: ServiceKey,
    pub(crate) access: Access,
    pub(crate) inside_only: bool,
    pub(crate) target: HostTarget,
}

#[derive(Debug)]
pub(crate) enum HostTarget {
    Split {
        /// As `decide::admit::pick_revision` takes it; same order as `revisions`.
        shares: Vec<(RevisionKey, u32)>,
        revisions: Vec<(Arc<Revision>, Arc<RevisionRoute>)>,
    },
    NotReady {
        message: String,
    },
}

impl Table {
    /// Takes out `before`, the routes that `service` had, and puts in `now`; `revision` finds or makes the live state of a
    /// revision.
    pub(crate) fn change(
        &mut self,
        service: &ServiceKey,
        before: &RouteTable,
        now: &RouteTable,
        mut revision: impl FnMut(&Arc<RevisionRoute>) -> Arc<Revision>,
    ) {
        for name in before
            .hosts
            .keys()
            .filter(|name| !now.hosts.contains_key(*name))
        {
            self.remove(service, &normalise(name));
        }
        for (name, route) in &now.hosts {
            let normalised: Arc<str> = Arc::from(normalise(name).as_ref());
            match Host::compile(&normalised, route, now, &mut revision) {
                Some(host) => {
                    let part = Arc::make_mut(&mut self.parts[part_of(&normalised)]);
                    part.insert(normalised, Arc::new(host));
                }
                None => self.remove(service, &normalised),
            }
        }
    }

    /// Another service may have got the name since: then it stays.
    fn remove(&mut self, service: &ServiceKey, normalised: &str) {
        let part = &mut self.parts[part_of(normalised)];
        if part
            .get(normalised)
            .is_some_and(|host| host.service == *service)
        {
            Arc::make_mut(part).remove(normalised);
        }
    }

    /// What is said of a host, however it is written.
    pub(crate) fn named(&self, host: &str) -> Named {
        let host = normalise(host);
        match self.host(&host) {
            Some(found) => (Arc::clone(&found.name), Some(Arc::clone(found))),
            None => (Arc::from(host.as_ref()), None),
        }
    }

    pub(crate) fn host(&self, normalised: &str) -> Option<&Arc<Host>> {
        self.parts[part_of(normalised)].get(normalised)
    }
}

impl Host {
    fn compile(
        name: &Arc<str>,
        route: &HostRoute,
        source: &RouteTable,
        mut revision: impl FnMut(&Arc<RevisionRoute>) -> Arc<Revision>,
    ) -> Option<Self> {
        let target = match &route.target {
            Target::NotReady { message } => HostTarget::NotReady {
                message: message.clone(),
            },
            Target::Split(shares) => {
                let revisions: Vec<_> = shares
                    .iter()
                    .filter_map(|(key, _)| source.revisions.get(key))
                    .map(|settings| (revision(settings), Arc::clone(settings)))
                    .collect();
                if revisions.len() != shares.len() || revisions.is_empty() {
                    tracing::error!(host = %name, service = %route.service,
                        "route names a revision without settings; the host is not served");
                    return None;
                }
                HostTarget::Split {
                    shares: shares.clone(),
                    revisions,
                }
            }
        };
        Some(Self {
            name: Arc::clone(name),
            service: route.service.clone(),
            access: route.access,
            inside_only: route.inside_only,
            target,
        })
    }
}

/// The port that a host is written with.
pub(crate) fn port(host: &str) -> Option<u16> {
    let (name, port) = host.rsplit_once(':')?;
    // Within brackets a colon is the address's own.
    match name.starts_with('[') && !name.ends_with(']') {
        true => None,
        false => port.parse().ok(),
    }
}

/// Lower case, without port and trailing dot. What is no host name stays as it is and is found nowhere.
pub(crate) fn normalise(host: &str) -> Cow<'_, str> {
    let name = if host.starts_with('[') {
        host // an IPv6 literal: never a key of the table
    } else {
        host.rsplit_once(':').map_or(host, |(name, port)| {
            if port.bytes().all(|digit| digit.is_ascii_digit()) {
                name
            } else {
                host
            }
        })
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use utsuwa_model::route::{Access, HostRoute, RouteTable, Target};

    use super::*;

    fn routes(service: &ServiceKey, host: &str) -> RouteTable {
        let mut table = RouteTable::default();
        let route = HostRoute {
            service: service.clone(),
            tag: None,
            access: Access::Public,
            inside_only: false,
            target: Target::NotReady {
                message: String::new(),
            },
        };
        table.hosts.insert(host.to_owned(), Arc::new(route));
        table
    }

    fn none(_: &Arc<RevisionRoute>) -> Arc<Revision> {
        unreachable!("no route here names a revision")
    }

    #[test]
    fn a_change_concerns_its_service_alone() {
        let services: Vec<ServiceKey> = (0..2_000)
            .map(|i| format!("demo/here/s{i}").parse().unwrap())
            .collect();
        let nothing = RouteTable::default();
        let mut table = Table::default();
        for service in &services {
            let host = format!("{}.localhost", service.service);
            table.change(service, &nothing, &routes(service, &host), none);
        }
        let before = table.clone();
        let moved = routes(&services[7], "elsewhere.localhost");
        table.change(
            &services[7],
            &routes(&services[7], "s7.localhost"),
            &moved,
            none,
        );
        assert!(table.host("s7.localhost").is_none());
        assert!(table.host("elsewhere.localhost").is_some());
        assert!(
            before.host("s7.localhost").is_some(),
            "an old table stays as it was"
        );
        for service in services.iter().filter(|s| **s != services[7]) {
            let host = table.host(&format!("{}.localhost", service.service));
            assert_eq!(host.map(|host| &host.service), Some(service));
        }
        let shared = before.parts.iter().zip(&table.parts);
        let copied = shared.filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!(copied <= 2, "{copied} parts were copied");
        let largest = table.parts.iter().map(|part| part.len()).max();
        assert!(
            largest < Some(40),
            "{largest:?} of 2,000 hosts in one of {PARTS} parts"
        );
    }

    #[test]
    fn a_name_that_another_service_got_stays_its_own() {
        let [old, new]: [ServiceKey; 2] =
            ["demo/here/old", "demo/here/new"].map(|key| key.parse().unwrap());
        let nothing = RouteTable::default();
        let mut table = Table::default();
        table.change(&old, &nothing, &routes(&old, "a.localhost"), none);
        table.change(&new, &nothing, &routes(&new, "a.localhost"), none);
        table.change(&old, &routes(&old, "a.localhost"), &nothing, none);
        assert_eq!(
            table.host("a.localhost").map(|host| &host.service),
            Some(&new)
        );
    }

    #[test]
    fn the_port_of_a_host_is_the_one_that_is_written() {
        for (given, want) in [
            ("hello.localhost:8443", Some(8443)),
            ("hello.localhost.:80", Some(80)),
            ("[::1]:8080", Some(8080)),
            ("hello.localhost", None),
            ("hello.localhost:", None),
            ("[::1]", None),
            ("hello.localhost:99999", None),
        ] {
            assert_eq!(port(given), want, "{given}");
        }
    }

    #[test]
    fn hosts_are_compared_without_case_port_and_last_dot() {
        for (given, want) in [
            ("hello.localhost", "hello.localhost"),
            ("HeLLo.LocalHost:8080", "hello.localhost"),
            ("hello.localhost.", "hello.localhost"),
            ("hello.localhost.:80", "hello.localhost"),
            ("hello.localhost:", "hello.localhost"),
            ("hello.localhost:http", "hello.localhost:http"),
            ("[::1]:8080", "[::1]:8080"),
            ("", ""),
        ] {
            assert_eq!(normalise(given), want, "{given}");
        }
    }
}
