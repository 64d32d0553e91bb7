//! What the ingress routes by: for each service one immutable table, made by `control`, replaced whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::scaling::Ceiling;
use crate::{InstanceId, RevisionKey, ServiceKey};

/// All routes of one service: host name (lower case, no port) → route. A host that is in no service's table is a 404.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteTable {
    pub hosts: BTreeMap<String, Arc<HostRoute>>,
    /// Settings of every revision that some host can reach, or that has instances being proven.
    pub revisions: BTreeMap<RevisionKey, Arc<RevisionRoute>>,
}

/// From now on these, and no others, are the routes of the service. An empty table: none leads to it any more.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteChange {
    pub service: ServiceKey,
    pub routes: Arc<RouteTable>,
}

/// Where requests for one host go.
#[derive(Debug, Clone, PartialEq)]
pub struct HostRoute {
    pub service: ServiceKey,
    /// The tag when the host is a tag's own.
    pub tag: Option<String>,
    pub access: Access,
    /// Only instances of this server may come in here; to everybody else it is closed.
    pub inside_only: bool,
    pub target: Target,
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `allUsers` has `roles/run.invoker`, or the check is switched off.
    Public,
    /// A caller must prove who it is. Until tokens exist: 403.
    Authenticated,
    /// The `ingress` setting or `defaultUriDisabled` forbids this way in: 404.
    Closed,
}

/// How a host's requests are shared out.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Percentages sum to 100 and none is zero.
    Split(Vec<(RevisionKey, u32)>),
    /// The service exists but nothing of it ever became ready: 503, with the reason for the log.
    NotReady { message: String },
}

/// What the data path needs to know of a revision.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionRoute {
    pub key: RevisionKey,
    /// Requests in flight per instance; 0 = unlimited.
    pub concurrency: u32,
    pub max_instances: Ceiling,
    pub timeout: Duration,
    pub port: u16,
    pub protocol: Protocol,
    pub session_affinity: bool,
    /// Paths that scanners ask for are answered 404 and wake nothing.
    pub refuse_scanners: bool,
    /// A browser is shown a page while an instance starts.
    pub waiting_page: bool,
    /// How long a start took when the revision was proven; `None` while that isn't known.
    pub usual_start: Option<Duration>,
    pub startup: StartupProbe,
    /// Failing it ends the instance.
    pub liveness: Option<HealthProbe>,
    /// Failing it keeps new requests away from the instance.
    pub readiness: Option<HealthProbe>,
}

/// How the instance wants to be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    H2c,
}

/// How it is judged that an instance has started. Default: TCP on the container's port, up to 240 s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupProbe {
    pub initial_delay: Duration,
    pub timeout: Duration,
    pub period: Duration,
    pub failure_threshold: u32,
    pub check: StartupCheck,
}

/// What an instance that was found running gets at least.
const FOUND_RUNNING: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupCheck {
    Tcp {
        port: u16,
    },
    Http {
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Grpc {
        port: u16,
        service: String,
    },
    /// `healthCheckDisabled`: ready as soon as the process runs.
    None,
}

impl StartupProbe {
    /// The default of §2.7 for `port`.
    #[must_use]
    pub fn tcp(port: u16) -> Self {
        Self {
            initial_delay: Duration::ZERO,
            timeout: Duration::from_secs(240),
            period: Duration::from_secs(240),
            failure_threshold: 1,
            check: StartupCheck::Tcp { port },
        }
    }

    /// The longest the start may take before it counts as failed.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.initial_delay + self.period * self.failure_threshold.max(1)
    }

    /// The time from now on for an instance that has been running for `age`. One that was found running gets as many checks of
    /// HTTP or gRPC as a new one: most have been ready for long, and a busy one must not be given up for a packet that was
    /// lost, or a check that it was too busy to answer, while the server was replaced.
    #[must_use]
    pub fn remaining(&self, age: Duration) -> Duration {
        let whole = self.deadline();
        if age.is_zero() {
            return whole;
        }
        let least = match &self.check {
            StartupCheck::None | StartupCheck::Tcp { .. } => FOUND_RUNNING,
            StartupCheck::Http { .. } | StartupCheck::Grpc { .. } => {
                FOUND_RUNNING.max(self.period * self.failure_threshold.max(1))
            }
        };
        whole.saturating_sub(age).max(least.min(whole))
    }

    /// When the probe of one that has been running for `age` has come to its end at the latest, from now on: the last check of
    /// HTTP or gRPC may begin at the very end.
    #[must_use]
    pub fn ends_within(&self, age: Duration) -> Duration {
        let last = match &self.check {
            StartupCheck::None | StartupCheck::Tcp { .. } => Duration::ZERO,
            StartupCheck::Http { .. } | StartupCheck::Grpc { .. } => self.timeout,
        };
        self.remaining(age) + last
    }
}

/// What a started instance is asked again and again. There is none unless a template has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthProbe {
    /// From the instance's start on.
    pub initial_delay: Duration,
    pub timeout: Duration,
    pub period: Duration,
    /// Failures in a row until it counts as failing.
    pub failure_threshold: u32,
    /// Successes in a row until it counts as succeeding again.
    pub success_threshold: u32,
    pub check: HealthCheck,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    Http {
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Grpc {
        port: u16,
        service: String,
    },
}

impl HealthCheck {
    /// Where it asks.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Http { port, .. } | Self::Grpc { port, .. } => *port,
        }
    }

    /// What it asks, in the user's words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Http { port, path, .. } => format!("GET {path} on port {port}"),
            Self::Grpc { port, service } => {
                format!("grpc.health.v1.Health/Check for service {service:?} on port {port}")
            }
        }
    }
}

/// An instance that `control` hands to the ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRoute {
    pub id: InstanceId,
    pub revision: RevisionKey,
    pub port: u16,
    /// How long it has been running when it is handed over: zero for one that was just started, more for one that was found
    /// running. What the start may take counts from there.
    pub age: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_found_running_is_looked_at_as_often_as_a_new_one() {
        let tcp = StartupProbe::tcp(8080);
        let http = StartupProbe {
            timeout: Duration::from_secs(1),
            period: Duration::from_secs(10),
            failure_threshold: 3,
            check: StartupCheck::Http {
                port: 8080,
                path: "/".to_owned(),
                headers: Vec::new(),
            },
            ..tcp.clone()
        };
        let quick = StartupProbe {
            period: Duration::from_secs(1),
            ..http.clone()
        };
        let later = StartupProbe {
            initial_delay: Duration::from_secs(60),
            ..http.clone()
        };
        for (probe, age, left, ends) in [
            (&tcp, 0, 240, 240),
            (&tcp, 200, 40, 40),
            (&tcp, 100_000, 10, 10),
            (&http, 0, 30, 31),
            (&http, 100_000, 30, 31),
            (&quick, 100_000, 3, 4),
            (&later, 10, 80, 81),
            (&later, 100_000, 30, 31),
        ] {
            let age = Duration::from_secs(age);
            let found = (probe.remaining(age), probe.ends_within(age));
            let want = (Duration::from_secs(left), Duration::from_secs(ends));
            assert_eq!(found, want, "{probe:?} {age:?}");
        }
    }
}
