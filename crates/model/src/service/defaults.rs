//! What a template means where nothing was written (`cloud-run-spec.md` §1.3, §2.7).
//!
//! Owns: every default of a revision. Deliberately not here: writing them into the stored spec. A spec stays as the user wrote
//! it; these functions are asked when a revision is run, shown or compared.
//!
//! Invariants:
//! 1. Defaulting is idempotent: `defaulted(defaulted(t)) == defaulted(t)`.
//! 2. A value that validation would refuse is read as absent, so that whatever is stored can be run.

use std::time::Duration;

use super::{Container, ContainerPort, Probe, ProbeAction, RevisionTemplate};
use crate::quantity::{MemoryBytes, MilliCpu};
use crate::route::{HealthCheck, HealthProbe, Protocol, StartupCheck, StartupProbe};

/// Port a container listens on unless it says otherwise.
pub const PORT: u16 = 8080;
/// Seconds a request may take unless the template says otherwise.
pub const TIMEOUT_SECS: u32 = 300;
/// One core.
pub const CPU: MilliCpu = MilliCpu(1000);
/// 512 MiB.
pub const MEMORY: MemoryBytes = MemoryBytes(512 << 20);
/// Requests in flight per instance with at least one core.
pub const CONCURRENCY: u32 = 80;

/// Successes in a row that bring an instance back whose readiness probe failed.
pub const READY_AFTER: u32 = 2;

/// The default startup probe: one attempt to connect that may take 240 s. In these words it stands in answers.
#[must_use]
pub fn startup_probe(port: u16) -> Probe {
    Probe {
        initial_delay_secs: Some(0),
        timeout_secs: Some(240),
        period_secs: Some(240),
        failure_threshold: Some(1),
        success_threshold: None,
        action: ProbeAction::Tcp { port: Some(port) },
    }
}

impl RevisionTemplate {
    /// The container that takes requests: the one with a port, else the first.
    #[must_use]
    pub fn ingress_container(&self) -> Option<&Container> {
        self.containers.get(self.ingress_index())
    }

    /// Requests an instance may have in flight: as written, else 80, or 1 with less than one CPU.
    #[must_use]
    pub fn effective_concurrency(&self) -> u32 {
        match self.concurrency {
            Some(given) if given > 0 => given,
            _ if self.cpu() < CPU => 1,
            _ => CONCURRENCY,
        }
    }

    /// Longest time a request may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(
            self.timeout_secs.filter(|t| *t > 0).unwrap_or(TIMEOUT_SECS),
        ))
    }

    /// Where the ingress container listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        let given = self
            .ingress_container()
            .and_then(|c| c.ports.first())
            .map(|p| p.container_port);
        given.filter(|p| *p > 0).unwrap_or(PORT)
    }

    /// How the ingress container wants to be spoken to.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.ingress_container().and_then(|c| c.ports.first()) {
            Some(port) if port.name == "h2c" => Protocol::H2c,
            _ => Protocol::Http1,
        }
    }

    /// CPU of the ingress container.
    #[must_use]
    pub fn cpu(&self) -> MilliCpu {
        self.ingress_container().map_or(CPU, Container::cpu)
    }

    /// Memory of the ingress container.
    #[must_use]
    pub fn memory(&self) -> MemoryBytes {
        self.ingress_container().map_or(MEMORY, Container::memory)
    }

    /// How it is judged that an instance has started.
    #[must_use]
    pub fn startup(&self) -> StartupProbe {
        let port = self.port();
        let probe = match self
            .ingress_container()
            .and_then(|c| c.startup_probe.as_ref())
        {
            Some(written) => written.defaulted(port),
            None => startup_probe(port),
        };
        let mut startup = startup_of_probe(probe, port);
        if self.health_check_disabled == Some(true) {
            startup.check = StartupCheck::None;
        }
        startup
    }

    /// What ends an instance that fails it.
    #[must_use]
    pub fn liveness(&self) -> Option<HealthProbe> {
        let written = self.ingress_container()?.liveness_probe.as_ref()?;
        written.health(self.port(), 1)
    }

    /// What keeps new requests away from an instance that fails it.
    #[must_use]
    pub fn readiness(&self) -> Option<HealthProbe> {
        let written = self.ingress_container()?.readiness_probe.as_ref()?;
        let successes = written.success_threshold.filter(|s| *s > 0);
        written.health(self.port(), successes.unwrap_or(READY_AFTER))
    }

    /// The template with every default written out: what a revision shows, and what two templates are compared by.
    #[must_use]
    pub fn defaulted(&self) -> Self {
        let mut full = self.clone();
        full.concurrency = Some(self.effective_concurrency());
        full.timeout_secs = Some(u32::try_from(self.timeout().as_secs()).unwrap_or(TIMEOUT_SECS));
        let port = self.port();
        let ingress = self.ingress_index();
        for (index, container) in full.containers.iter_mut().enumerate() {
            if index == ingress {
                if container.ports.is_empty() {
                    container.ports.push(ContainerPort {
                        name: String::new(),
                        container_port: port,
                    });
                }
                for port in &mut container.ports {
                    if port.name.is_empty() {
                        "http1".clone_into(&mut port.name);
                    }
                }
                container
                    .startup_probe
                    .get_or_insert_with(|| startup_probe(port));
            }
            let (cpu, memory) = (container.cpu(), container.memory());
            container.limits.insert("cpu".to_owned(), cpu.to_string());
            container
                .limits
                .insert("memory".to_owned(), memory.to_string());
            for probe in [
                &mut container.startup_probe,
                &mut container.liveness_probe,
                &mut container.readiness_probe,
            ] {
                if let Some(written) = probe {
                    *probe = Some(written.defaulted(port));
                }
            }
            if let Some(probe) = &mut container.readiness_probe {
                let written = probe.success_threshold.filter(|s| *s > 0);
                probe.success_threshold = Some(written.unwrap_or(READY_AFTER));
            }
        }
        full
    }

    /// Whether both make the same revision: equal once defaults are written out. The explicit name is compared too, since it
    /// names the revision that is meant.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self == other || self.comparable() == other.comparable()
    }

    /// With defaults written out, and without what says no more than nothing does: v2 has no way to write `minScale: 0` or a
    /// switch that is off apart from leaving it out.
    fn comparable(&self) -> Self {
        let mut full = self.defaulted();
        full.min_instances = full.min_instances.filter(|count| *count > 0);
        full.max_instances = full.max_instances.filter(|count| *count > 0);
        full.cpu_idle = full.cpu_idle.filter(|idle| !idle);
        for switch in [
            &mut full.session_affinity,
            &mut full.health_check_disabled,
            &mut full.startup_cpu_boost,
        ] {
            *switch = switch.filter(|on| *on);
        }
        full
    }
}

/// What a probe with its defaults asks for at the start, where `port` is the container's own.
pub(super) fn startup_of_probe(probe: Probe, port: u16) -> StartupProbe {
    let check = match probe.action {
        ProbeAction::Tcp { port: given } => StartupCheck::Tcp {
            port: given.unwrap_or(port),
        },
        ProbeAction::Http {
            path,
            port: given,
            headers,
        } => StartupCheck::Http {
            port: given.unwrap_or(port),
            path,
            headers,
        },
        ProbeAction::Grpc {
            port: given,
            service,
        } => StartupCheck::Grpc {
            port: given.unwrap_or(port),
            service,
        },
    };
    StartupProbe {
        initial_delay: seconds(probe.initial_delay_secs, 0),
        timeout: seconds(probe.timeout_secs, 1),
        period: seconds(probe.period_secs, 10),
        failure_threshold: probe.failure_threshold.unwrap_or(3),
        check,
    }
}

impl Container {
    /// CPU limit, one core unless written.
    #[must_use]
    pub fn cpu(&self) -> MilliCpu {
        self.limits
            .get("cpu")
            .and_then(|v| v.parse().ok())
            .unwrap_or(CPU)
    }

    /// Memory limit, 512 MiB unless written.
    #[must_use]
    pub fn memory(&self) -> MemoryBytes {
        self.limits
            .get("memory")
            .and_then(|v| v.parse().ok())
            .unwrap_or(MEMORY)
    }
}

impl Probe {
    /// The probe with its defaults: at once, 1 s, every 10 s, 3 times, on the container's port, path `/`.
    #[must_use]
    pub fn defaulted(&self, container_port: u16) -> Self {
        let port = |given: &Option<u16>| Some(given.filter(|p| *p > 0).unwrap_or(container_port));
        let positive =
            |given: Option<u32>, default: u32| Some(given.filter(|v| *v > 0).unwrap_or(default));
        Self {
            initial_delay_secs: Some(self.initial_delay_secs.unwrap_or(0)),
            timeout_secs: positive(self.timeout_secs, 1),
            period_secs: positive(self.period_secs, 10),
            failure_threshold: positive(self.failure_threshold, 3),
            success_threshold: self.success_threshold,
            action: match &self.action {
                ProbeAction::Tcp { port: given } => ProbeAction::Tcp { port: port(given) },
                ProbeAction::Http {
                    path,
                    port: given,
                    headers,
                } => ProbeAction::Http {
                    path: if path.is_empty() {
                        "/".to_owned()
                    } else {
                        path.clone()
                    },
                    port: port(given),
                    headers: headers.clone(),
                },
                ProbeAction::Grpc {
                    port: given,
                    service,
                } => ProbeAction::Grpc {
                    port: port(given),
                    service: service.clone(),
                },
            },
        }
    }
}

impl Probe {
    /// As the ingress runs it. `None` for TCP, which validation refuses: an app that hangs still accepts connections.
    fn health(&self, container_port: u16, success_threshold: u32) -> Option<HealthProbe> {
        let probe = self.defaulted(container_port);
        let check = match probe.action {
            ProbeAction::Tcp { .. } => return None,
            ProbeAction::Http {
                path,
                port,
                headers,
            } => HealthCheck::Http {
                port: port.unwrap_or(container_port),
                path,
                headers,
            },
            ProbeAction::Grpc { port, service } => HealthCheck::Grpc {
                port: port.unwrap_or(container_port),
                service,
            },
        };
        Some(HealthProbe {
            initial_delay: seconds(probe.initial_delay_secs, 0),
            timeout: seconds(probe.timeout_secs, 1),
            period: seconds(probe.period_secs, 10),
            failure_threshold: probe.failure_threshold.unwrap_or(3),
            success_threshold,
            check,
        })
    }
}

fn seconds(value: Option<u32>, default: u32) -> Duration {
    Duration::from_secs(u64::from(value.unwrap_or(default)))
}

#[cfg(test)]
mod tests;
