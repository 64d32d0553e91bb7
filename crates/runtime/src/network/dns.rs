//! Name answers for instances: our own names from a [`Zone`], all others from the host's resolvers.
//!
//! Owns: the wire format of a query as far as needed, the choice and order of upstream resolvers, their timeouts.
//! Doesn't: cache (the host's resolver does), validate DNSSEC, or know which services exist.
//!
//! Queries are passed on byte for byte by the transport they came by (a truncated answer reaches the client, which asks
//! again by TCP), with an id of our own, so EDNS options and unknown record types work.
//!
//! Invariants:
//! 1. A name of the zone never leaves the machine, whatever its record type.
//! 2. An upstream answer counts only if it carries our id and repeats the question.
//! 3. We never ask ourselves: resolvers at our internal addresses are left out.
//! 4. At most [`QUERIES_AT_ONCE`] queries wait for upstreams; more get SERVFAIL at once.
//!
//! Failure: malformed queries are ignored (UDP) or end the connection (TCP); no upstream answer in time is SERVFAIL.

pub(crate) mod lookup;
mod upstream;
mod wire;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{HOST_ADDRESS, INTERNAL_ADDRESS};
use upstream::Upstreams;
use wire::{Query, ResponseCode};

/// One instance in a tight loop must not exhaust the server's descriptors: each waiting query holds one.
pub const QUERIES_AT_ONCE: usize = 512;
/// All tries of one query together. glibc gives up after 5 s and asks again.
const PATIENCE: Duration = Duration::from_secs(8);

/// Which names are ours.
pub trait Zone: fmt::Debug + Send + Sync + 'static {
    /// What `name` (lowercase, no final dot) leads to.
    fn lookup(&self, name: &str) -> Answer;
}

/// What a [`Zone`] says about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Ours, with these addresses; a record type without one gets an empty answer.
    Local(Vec<IpAddr>),
    /// Not ours: ask the host's resolvers.
    Forward,
    /// Ours, and there is no such name.
    NotFound,
}

/// The names every server has: its domain, `host.utsuwa.internal`, `metadata.google.internal`, `localhost`.
#[derive(Debug, Clone)]
pub struct ServerZone {
    domain: String,
    host_open: bool,
}

impl ServerZone {
    /// `domain` as in `--domain`; `host_open` if a rule opens any port of the host.
    #[must_use]
    pub fn new(domain: &str, host_open: bool) -> Self {
        Self {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            host_open,
        }
    }
}

impl Zone for ServerZone {
    fn lookup(&self, name: &str) -> Answer {
        let within = |domain: &str| {
            name == domain
                || name
                    .strip_suffix(domain)
                    .is_some_and(|rest| rest.ends_with('.'))
        };
        let loopback = || {
            Answer::Local(vec![
                std::net::Ipv4Addr::LOCALHOST.into(),
                std::net::Ipv6Addr::LOCALHOST.into(),
            ])
        };
        if name == "localhost" {
            loopback()
        } else if within(&self.domain) || name == "metadata.google.internal" {
            Answer::Local(vec![INTERNAL_ADDRESS.into()])
        } else if within("localhost") {
            loopback()
        } else if name == "host.utsuwa.internal" && self.host_open {
            Answer::Local(vec![HOST_ADDRESS.into()])
        } else if within("utsuwa.internal") || within("254.169.in-addr.arpa") {
            Answer::NotFound
        } else {
            Answer::Forward
        }
    }
}

/// How a client's query arrived: what may be as long as 64 KiB and what may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Answers queries. One per server, shared by all sandboxes.
#[derive(Debug)]
pub struct Resolver {
    zone: Arc<dyn Zone>,
    upstreams: Upstreams,
    waiting: Semaphore,
}

impl Resolver {
    /// Answers from `zone`, and from the resolvers of this machine.
    #[must_use]
    pub fn new(zone: Arc<dyn Zone>) -> Self {
        Self::with_configuration(zone, PathBuf::from("/etc/resolv.conf"), 53)
    }

    /// As [`Self::new`], with another file in the format of `resolv.conf(5)` and another port of the resolvers named there.
    #[must_use]
    pub fn with_configuration(zone: Arc<dyn Zone>, file: PathBuf, port: u16) -> Self {
        Self {
            zone,
            upstreams: Upstreams::new(file, port),
            waiting: Semaphore::new(QUERIES_AT_ONCE),
        }
    }

    /// The answer to a query, or `None` for what is none.
    pub(super) async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let parsed = Query::parse(query)?;
        if !parsed.is_standard() {
            return Some(parsed.reply(query, ResponseCode::NotImplemented, &[]));
        }
        match self.zone.lookup(&parsed.name) {
            Answer::Local(addresses) => {
                Some(parsed.reply(query, ResponseCode::NoError, &addresses))
            }
            Answer::NotFound => Some(parsed.reply(query, ResponseCode::NameError, &[])),
            Answer::Forward => {
                let failed = || Some(parsed.reply(query, ResponseCode::ServerFailure, &[]));
                let Ok(_permit) = self.waiting.try_acquire() else {
                    return failed();
                };
                match tokio::time::timeout(PATIENCE, self.upstreams.ask(query, &parsed, transport))
                    .await
                {
                    Ok(Some(answer)) => Some(answer),
                    Ok(None) | Err(_) => failed(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
