//! The loop of a custom domain: its conditions, its records, its certificate, its end.
//!
//! Owns: when a certificate is asked for and what the mapping shows. Deliberately not here: when it is due
//! (`utsuwa_decide::certificate`), how it is got (`seam::Certificates`), and the routes, which are the service's.
//!
//! Invariants:
//! 1. An attempt is counted before it is made, so that a server that dies in it doesn't hurry after it.
//! 2. Nobody is asked for a certificate of a domain that isn't mapped; what was issued for one goes with its mapping.
//! 3. The status is written before an attempt, which may take minutes: clients wait for the records. However many attempts are
//!    under way, a pass that makes none finds a slot. None begins while the route is awaited: no pass could show it meanwhile.

use std::time::Duration;

use utsuwa_decide::certificate::{Decision, Look, Step, condition, decide};
use utsuwa_model::condition;
use utsuwa_model::domain::{
    CertificateMode, CertificateStanding, DomainMapping, DomainName, DomainStatus, Trouble,
};
use utsuwa_model::route::Target;
use utsuwa_model::{Condition, ConditionState, ServiceKey, Severity, Timestamp};

use crate::core::{ATTEMPTS, Core};
use crate::rounds::{Key, PassError, Priority, Report};

const READY: &str = "Ready";
const CERTIFICATE: &str = "CertificateProvisioned";
const ROUTABLE: &str = "DomainRoutable";
/// Why it isn't known yet whether a domain leads anywhere. Until then its generation is not observed: clients wait for that.
const AWAITED: &str = "RouteAwaited";
/// How often a domain looks whether it is its turn to be asked for: an attempt takes some seconds where all is well.
const TURN: Duration = Duration::from_secs(5);
/// Shown while nobody knows how an attempt ended.
const INTERRUPTED: &str =
    "The server ended while it asked for a certificate, and asks again in a moment.";

impl Core {
    /// Wishes a pass over every domain that leads to `service`, or did.
    pub(crate) fn ask_domains_of(&self, service: &ServiceKey) {
        let mut names = self.world.with(|inner| inner.domains_of(service));
        match self.store.domains_of(service) {
            Ok(stored) => names.extend(stored.into_iter().map(|mapping| mapping.name)),
            Err(error) => {
                tracing::warn!(%service, %error, "read the domains of a service; the next sweep tries again");
            }
        }
        for name in names {
            self.ask(Key::Domain(name), Priority::Soon);
        }
    }

    /// All domains that are mapped, or that a certificate is still kept of.
    pub(crate) fn all_domains(&self) -> Result<Vec<DomainName>, PassError> {
        let mut names = self.store.all_domains()?;
        names.extend(self.certificates.issued());
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// One pass over a domain.
    pub(crate) async fn domain_pass(&self, name: &DomainName) -> Result<Report, PassError> {
        let Some(mapping) = self.store.domain(name)? else {
            return self.domain_gone(name).await;
        };
        let service = mapping.service();
        self.world
            .with(|inner| inner.domains.insert(name.clone(), service));
        let mut actions = 0;
        let standing = self.certificates.standing(name);
        let trouble = mapping.status.trouble.clone();
        let decision = self.decide(&mapping, standing, trouble.as_ref());
        let wanted = decision.step == Step::Issue;
        let routable = self.routable(&mapping, self.env.wall())?;
        let awaited = routable.reason == AWAITED;
        let turn = (wanted && !awaited)
            .then(|| self.attempts.try_acquire().ok())
            .flatten();
        let attempt = turn.is_some().then(|| Trouble {
            failures: trouble.as_ref().map_or(0, |t| t.failures).saturating_add(1),
            at: self.env.wall(),
            message: INTERRUPTED.to_owned(),
            not_before: None,
        });
        let kept = attempt.clone().or_else(|| {
            // What went wrong is over once there is a certificate that needs no renewal.
            let waits = decision.step == Step::Nothing && decision.because.next_look.is_some();
            trouble
                .clone()
                .filter(|_| wanted || waits)
                .filter(|_| !self.is_fresh(&mapping, standing))
        });
        let mut mapping = mapping;
        let told = if attempt.is_some() {
            trouble
        } else {
            kept.clone()
        };
        let shown = self.status(&mapping, standing, told.as_ref(), kept)?;
        actions += usize::from(self.write_domain(&mut mapping, shown).await?);
        match (decision.step, attempt) {
            (Step::Issue, Some(attempt)) => {
                actions += 1;
                self.env.before("issue certificate").await;
                let outcome = self.certificates.issue(name, attempt.failures).await;
                let trouble = outcome.err().map(|error| Trouble {
                    message: error.message,
                    not_before: error.wait.map(|wait| self.env.wall().plus(wait)),
                    at: self.env.wall(),
                    ..attempt
                });
                let standing = self.certificates.standing(name);
                let shown = self.status(&mapping, standing, trouble.as_ref(), trouble.clone())?;
                actions += usize::from(self.write_domain(&mut mapping, shown).await?);
                let next = self.decide(&mapping, standing, trouble.as_ref());
                return Ok(self.report(&next, actions));
            }
            (Step::Forget, _) => {
                actions += 1;
                self.env.before("forget certificate").await;
                self.certificates.forget(name).await.map_err(PassError)?;
            }
            (Step::Issue, None) if awaited => {
                return Ok(Report {
                    because: "waits for its service's loop, which makes its route".to_owned(),
                    actions,
                    ..Report::default()
                });
            }
            (Step::Issue, None) => return Ok(self.waits_for_its_turn(actions)),
            _ => {}
        }
        Ok(self.report(&decision, actions))
    }

    fn waits_for_its_turn(&self, actions: usize) -> Report {
        Report {
            because: format!(
                "{ATTEMPTS} certificates are asked for at this moment; this one's turn comes"
            ),
            wake_at: Some(self.env.now().plus(TURN)),
            actions,
            gone: false,
        }
    }

    /// The mapping is gone: so must be what was issued for it.
    async fn domain_gone(&self, name: &DomainName) -> Result<Report, PassError> {
        let mut actions = 0;
        if self.certificates.standing(name).issued.is_some() {
            actions += 1;
            self.env.before("forget certificate").await;
            self.certificates.forget(name).await.map_err(PassError)?;
        }
        self.world.with(|inner| inner.domains.remove(name));
        Ok(Report {
            because: "the domain is not mapped".to_owned(),
            actions,
            gone: true,
            ..Report::default()
        })
    }

    fn decide(
        &self,
        mapping: &DomainMapping,
        standing: CertificateStanding,
        trouble: Option<&Trouble>,
    ) -> Decision {
        decide(&self.look(mapping, standing, trouble))
    }

    fn look<'a>(
        &self,
        mapping: &DomainMapping,
        standing: CertificateStanding,
        trouble: Option<&'a Trouble>,
    ) -> Look<'a> {
        Look {
            mode: mapping.spec.certificate,
            asks: self.settings.asks_authority,
            standing,
            trouble,
            seed: seed(mapping.name.as_str()),
            now: self.env.wall(),
        }
    }

    /// Whether a certificate is there that nobody would renew now.
    fn is_fresh(&self, mapping: &DomainMapping, standing: CertificateStanding) -> bool {
        let without = self.decide(mapping, standing, None);
        without.step == Step::Nothing
    }

    /// What the mapping shows now. `trouble` is what is told, `kept` what is remembered.
    fn status(
        &self,
        mapping: &DomainMapping,
        standing: CertificateStanding,
        trouble: Option<&Trouble>,
        kept: Option<Trouble>,
    ) -> Result<DomainStatus, PassError> {
        let now = self.env.wall();
        let mut conditions = mapping.status.conditions.clone();
        let certificate = condition(&self.look(mapping, standing, trouble));
        let counts = certificate.severity == Severity::Error;
        let trusted = certificate.state == ConditionState::True;
        condition::set(&mut conditions, certificate);
        let routable = self.routable(mapping, now)?;
        let awaited = routable.reason == AWAITED;
        condition::set(&mut conditions, routable);
        let both = [ROUTABLE, CERTIFICATE];
        let dependents = if counts { &both[..] } else { &both[..1] };
        let ready = condition::summary(&conditions, dependents, now);
        condition::set(&mut conditions, ready);
        // As Google orders them.
        conditions.sort_by_key(|c| (c.kind != READY, c.kind.clone()));
        let name = mapping.name.as_str();
        let https = self.settings.other_url(name).filter(|_| trusted);
        Ok(DomainStatus {
            observed_generation: match awaited {
                true => mapping.status.observed_generation,
                false => mapping.meta.generation,
            },
            conditions,
            records: self.settings.public.records(),
            mapped_route: mapping.spec.route.to_string(),
            url: https.unwrap_or_else(|| self.settings.url(name)),
            trouble: kept.filter(|_| mapping.spec.certificate == CertificateMode::Automatic),
        })
    }

    /// The condition `DomainRoutable`.
    fn routable(&self, mapping: &DomainMapping, now: Timestamp) -> Result<Condition, PassError> {
        let (service, name) = (mapping.service(), mapping.name.as_str());
        let target = self.world.with(|inner| {
            let routes = inner.services.get(&service)?;
            let (_, route) = routes.hosts.iter().find(|(host, _)| host == name)?;
            Some(matches!(route.target, Target::Split(_)))
        });
        let (state, reason, message) = match target {
            Some(true) => (ConditionState::True, "", String::new()),
            Some(false) => (
                ConditionState::Unknown,
                "RouteNotReady",
                format!("No revision of service {} is ready yet.", service.service),
            ),
            // Its own pass, which makes the route, comes after this one, and asks for another one of these.
            None if self
                .store
                .service(&service)?
                .is_some_and(|s| s.meta.delete_time.is_none()) =>
            {
                (
                    ConditionState::Unknown,
                    AWAITED,
                    format!(
                        "Service {} takes the domain up in a moment.",
                        service.service
                    ),
                )
            }
            None => (
                ConditionState::False,
                "RouteNotFound",
                format!(
                    "Service {} does not exist in {} of project {}: deploy it, or delete this mapping.",
                    service.service, service.region, service.project
                ),
            ),
        };
        Ok(Condition {
            kind: ROUTABLE.to_owned(),
            state,
            reason: reason.to_owned(),
            message,
            severity: Severity::Error,
            last_transition: now,
        })
    }

    /// Writes the status if it is another one; its service shows part of it.
    async fn write_domain(
        &self,
        mapping: &mut DomainMapping,
        status: DomainStatus,
    ) -> Result<bool, PassError> {
        if mapping.status == status {
            return Ok(false);
        }
        self.env.before("write domain status").await;
        self.store
            .write_domain_status(&mapping.name, &mapping.meta.uid, status.clone())
            .await?;
        if mapping.status.url != status.url {
            self.ask_service(&mapping.service());
        }
        mapping.status = status;
        Ok(true)
    }

    /// Certificates are valid by the host's clock; passes are woken by time that passes.
    fn report(&self, decision: &Decision, actions: usize) -> Report {
        let (now, wall) = (self.env.now(), self.env.wall());
        let next_look = decision.because.next_look;
        Report {
            because: decision.because.summary.clone(),
            wake_at: next_look.map(|at| now.plus(at.since(wall))),
            actions,
            gone: false,
        }
    }
}

/// A number that is a domain's own (FNV-1a).
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
