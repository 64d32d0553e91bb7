//! The route table as requests use it: exact host → revisions, compiled once per publication.
//!
//! Owns: host normalisation and the compiled table. Deliberately not here: making routes (control) and choosing an instance.
//!
//! Invariants:
//! 1. A request sees one table from its first lookup to its last; publication never changes a table in place.
//! 2. Every revision a compiled host names has settings; a host whose revisions lack them is dropped with an error in the log.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use utsuwa_model::route::{Access, HostRoute, RevisionRoute, RouteTable, Target};
use utsuwa_model::{RevisionKey, ServiceKey};

use crate::revision::Revision;

/// Lookup by host, ready for the hot path.
#[derive(Debug, Default)]
pub(crate) struct Table {
    hosts: HashMap<Box<str>, Arc<Host>>,
}

/// One host's rules.
#[derive(Debug)]
pub(crate) struct Host {
    /// What it was compiled from.
    source: Arc<HostRoute>,
    pub(crate) service: ServiceKey,
    pub(crate) access: Access,
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
    /// Compiles `source`; `revision` finds or makes the live state of a revision. Hosts that are as in `before`, the table of the
    /// publication before, are taken from it: with a thousand services, a change concerns one.
    pub(crate) fn compile(
        source: &RouteTable,
        before: &Self,
        mut revision: impl FnMut(&Arc<RevisionRoute>) -> Arc<Revision>,
    ) -> Self {
        let mut hosts = HashMap::with_capacity(source.hosts.len());
        for (name, route) in &source.hosts {
            let normalised = normalise(name);
            if let Some(host) = before.hosts.get(normalised.as_ref())
                && host.is_still(route, source)
            {
                hosts.insert(Box::from(normalised.as_ref()), Arc::clone(host));
                continue;
            }
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
                        continue;
                    }
                    HostTarget::Split {
                        shares: shares.clone(),
                        revisions,
                    }
                }
            };
            let host = Host {
                source: Arc::clone(route),
                service: route.service.clone(),
                access: route.access,
                target,
            };
            hosts.insert(Box::from(normalised.as_ref()), Arc::new(host));
        }
        Self { hosts }
    }

    pub(crate) fn host(&self, normalised: &str) -> Option<&Arc<Host>> {
        self.hosts.get(normalised)
    }
}

impl Host {
    /// Whether `route`, and in `table` the settings of its revisions, are the very ones this was compiled from.
    fn is_still(&self, route: &Arc<HostRoute>, table: &RouteTable) -> bool {
        if !Arc::ptr_eq(&self.source, route) {
            return false;
        }
        match &self.target {
            HostTarget::NotReady { .. } => true,
            HostTarget::Split { revisions, .. } => revisions.iter().all(|(_, settings)| {
                let now = table.revisions.get(&settings.key);
                now.is_some_and(|now| Arc::ptr_eq(now, settings))
            }),
        }
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
    use super::normalise;

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
