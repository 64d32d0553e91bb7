//! Whether an instance is well, from the answers of one of its probes (`cloud-run-spec.md` §2.7).
//!
//! Owns: the thresholds and the times of checks. Deliberately not here: asking, and what follows (a liveness probe that fails
//! ends the instance, a readiness probe that fails keeps new requests away from it).
//!
//! Invariants:
//! 1. It begins well: these probes run only after the startup probe has succeeded.
//! 2. Only checks in a row count: one answer of the other kind begins the count anew.
//! 3. Checks of one probe never overlap, and a late one is not made up for.

use std::time::Duration;

use utsuwa_model::route::HealthProbe;

/// What a probe has found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    well: bool,
    /// Checks in a row that spoke against `well`.
    against: u32,
}

/// A threshold was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Failed,
    Recovered,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            well: true,
            against: 0,
        }
    }
}

impl Health {
    /// Whether it counts as well now.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        self.well
    }

    /// Takes in one check. With a failure threshold of 3, the third failure in a row turns it; a threshold of 0 means 1.
    pub fn note(&mut self, success: bool, probe: &HealthProbe) -> Option<Turn> {
        if success == self.well {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let (needed, turn) = if self.well {
            (probe.failure_threshold, Turn::Failed)
        } else {
            (probe.success_threshold, Turn::Recovered)
        };
        if self.against < needed {
            return None;
        }
        self.well = success;
        self.against = 0;
        Some(turn)
    }
}

/// How long after an instance is ready its first check comes. It has been running for `age`; one that was `found` running by a
/// new server waits for a part of the period besides, by `dice`: a thousand of them must not all be asked in one moment.
#[must_use]
pub fn first_check(probe: &HealthProbe, age: Duration, found: bool, dice: u64) -> Duration {
    let delay = probe.initial_delay.saturating_sub(age);
    if !found {
        return delay;
    }
    let period = u64::try_from(probe.period.as_nanos()).unwrap_or(u64::MAX);
    delay + Duration::from_nanos(dice % period.max(1))
}

#[cfg(test)]
mod tests {
    use utsuwa_model::route::HealthCheck;

    use super::*;

    fn probe(failures: u32, successes: u32) -> HealthProbe {
        HealthProbe {
            initial_delay: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            period: Duration::from_secs(10),
            failure_threshold: failures,
            success_threshold: successes,
            check: HealthCheck::Grpc {
                port: 1,
                service: String::new(),
            },
        }
    }

    /// `+` success, `-` failure; answers `F` and `R` where a threshold was reached.
    fn play(failures: u32, successes: u32, checks: &str) -> String {
        let probe = probe(failures, successes);
        let mut health = Health::default();
        checks
            .chars()
            .map(|check| match health.note(check == '+', &probe) {
                None => '.',
                Some(Turn::Failed) => 'F',
                Some(Turn::Recovered) => 'R',
            })
            .collect()
    }

    #[test]
    fn only_checks_in_a_row_turn_it() {
        for (failures, successes, checks, want) in [
            (3, 2, "++++", "...."),
            (3, 2, "--+--+--", "........"),
            (3, 2, "---------", "..F......"),
            (3, 2, "---+-++-++", "..F...R..."),
            (1, 1, "-+-+", "FRFR"),
            (0, 0, "-+", "FR"),
            (2, 3, "--++-+++--", ".F.....R.F"),
        ] {
            assert_eq!(
                play(failures, successes, checks),
                want,
                "{failures} {successes} {checks}"
            );
        }
    }

    #[test]
    fn the_delay_counts_from_the_start_and_those_found_running_are_spread() {
        let probe = probe(3, 1);
        let seconds = Duration::from_secs;
        assert_eq!(first_check(&probe, seconds(0), false, 77), seconds(5));
        assert_eq!(first_check(&probe, seconds(2), false, 77), seconds(3));
        assert_eq!(first_check(&probe, seconds(60), false, 77), seconds(0));
        let dice = 13_000_000_000;
        assert_eq!(first_check(&probe, seconds(60), true, dice), seconds(3));
    }
}
