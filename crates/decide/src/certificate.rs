//! Whether a domain's certificate is asked for now, later or never, and what its mapping shows.
//!
//! Numbers: a certificate is renewed when two thirds of its life are over, which leaves a month of 90 days for what may go
//! wrong. After a failure the wait grows from a minute to twelve hours: public authorities stop answering who fails more than
//! five times an hour.

use std::time::Duration;

use utsuwa_model::domain::{CertificateMode, CertificateStanding, Trouble, Validity};
use utsuwa_model::{Because, Condition, ConditionState, Severity, Timestamp};

use crate::words::time;

/// Waits after the first, second, … failure in a row, in minutes; the last one for all others.
const WAITS_MINUTES: [u64; 7] = [1, 5, 15, 60, 180, 360, 720];
/// An authority that answers no more asks for up to a week; what is beyond it was told or read by a clock that was wrong.
const LONGEST_WISH: Duration = Duration::from_secs(8 * 24 * 3600);
/// Part of a wait, or of the time before renewal, that chance adds: many domains must not come as one.
const SPREAD_PERCENT: u64 = 10;

/// What is known of a domain's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look<'a> {
    pub mode: CertificateMode,
    /// The server is told to ask an authority.
    pub asks: bool,
    pub standing: CertificateStanding,
    pub trouble: Option<&'a Trouble>,
    /// The same for the same domain and the same trouble, different for others.
    pub seed: u64,
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Ask the authority for one now.
    Issue,
    /// What was issued is of no use any more.
    Forget,
}

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub step: Step,
    pub because: Because,
}

/// Decides.
#[must_use]
pub fn decide(look: &Look<'_>) -> Decision {
    let done = |step, because| Decision { step, because };
    if look.mode == CertificateMode::None {
        let because = Because::new("no certificate is wanted");
        return match look.standing.issued {
            Some(_) => done(Step::Forget, because),
            None => done(Step::Nothing, because),
        };
    }
    if look.standing.given.is_some_and(|v| v.until > look.now) {
        return done(
            Step::Nothing,
            Because::new("the operator gave a certificate"),
        );
    }
    if !look.asks {
        return done(
            Step::Nothing,
            Because::new("this server asks no certificate authority"),
        );
    }
    if let Some(issued) = look.standing.issued {
        let renew = renew_at(issued, look.seed);
        if look.now < renew {
            let mut because =
                Because::new("the certificate is renewed when two thirds of its life are over");
            because.next_look = Some(renew);
            return done(Step::Nothing, because);
        }
    }
    if let Some(trouble) = look.trouble {
        let again = again_at(trouble, look.seed);
        // A failure that is yet to come is one of a clock that was ahead: when it was, nobody knows any more. The attempt that
        // follows writes down the right time.
        if trouble.at <= look.now && look.now < again {
            let mut because = Because::new(format!(
                "{} failed, the next attempt comes in {}",
                crate::words::many(trouble.failures, "attempt"),
                time(again.since(look.now))
            ));
            because.next_look = Some(again);
            return done(Step::Nothing, because);
        }
    }
    let because = match look.standing.issued {
        Some(issued) if issued.until > look.now => format!(
            "the certificate is valid for another {}: time to renew it",
            time(issued.until.since(look.now))
        ),
        Some(_) => "the certificate is over".to_owned(),
        None => "there is no certificate yet".to_owned(),
    };
    done(Step::Issue, Because::new(because))
}

/// When a certificate is renewed: after two thirds of its life, or up to a tenth of the rest earlier.
#[must_use]
pub fn renew_at(issued: Validity, seed: u64) -> Timestamp {
    let life = issued.until.since(issued.from);
    let rest = life / 3;
    let early = part(rest, seed);
    issued
        .from
        .plus(life.saturating_sub(rest).saturating_sub(early))
}

/// When the next attempt comes after a failure: not later than [`LONGEST_WISH`], whatever an authority asked for.
#[must_use]
pub fn again_at(trouble: &Trouble, seed: u64) -> Timestamp {
    let index = usize::try_from(trouble.failures.max(1) - 1).unwrap_or(usize::MAX);
    let minutes = WAITS_MINUTES[index.min(WAITS_MINUTES.len() - 1)];
    let wait = Duration::from_secs(minutes * 60);
    let mixed = seed ^ u64::from(trouble.failures).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let at = trouble.at.plus(wait + part(wait, mixed));
    let latest = trouble.at.plus(LONGEST_WISH);
    trouble
        .not_before
        .map_or(at, |least| at.max(least.min(latest)))
}

/// Between nothing and [`SPREAD_PERCENT`] of `whole`.
fn part(whole: Duration, seed: u64) -> Duration {
    let thousandth = u32::try_from(seed % (SPREAD_PERCENT * 10)).unwrap_or(0);
    whole * thousandth / 1000
}

/// The condition `CertificateProvisioned`.
#[must_use]
pub fn condition(look: &Look<'_>) -> Condition {
    let shown = |state, severity, reason: &str, message: String| Condition {
        kind: "CertificateProvisioned".to_owned(),
        state,
        reason: reason.to_owned(),
        message,
        severity,
        last_transition: look.now,
    };
    let valid = |v: Option<Validity>| v.filter(|v| v.until > look.now);
    let (given, issued) = (valid(look.standing.given), valid(look.standing.issued));
    if look.mode == CertificateMode::None {
        return shown(
            ConditionState::False,
            Severity::Info,
            "CertificateModeNone",
            "No certificate is wanted.".to_owned(),
        );
    }
    match (given.or(issued), look.trouble) {
        // Still valid, but its renewal fails: people must hear of it before it ends.
        (Some(_), Some(trouble)) if given.is_none() => shown(
            ConditionState::True,
            Severity::Error,
            "RenewalFailing",
            format!("The certificate could not be renewed: {}", trouble.message),
        ),
        (Some(_), _) => shown(ConditionState::True, Severity::Error, "", String::new()),
        (None, _) if !look.asks => shown(
            ConditionState::False,
            Severity::Info,
            "CertificateAuthorityNotAsked",
            "No client can trust HTTPS here yet: its certificate is of the local authority, which vouches for localhost alone. Give \
             the server a certificate for the domain (certificates-file), or start it with --acme-directory to get one."
                .to_owned(),
        ),
        (None, Some(trouble)) => shown(
            ConditionState::False,
            Severity::Error,
            "CertificateNotIssued",
            trouble.message.clone(),
        ),
        (None, None) => shown(
            ConditionState::Unknown,
            Severity::Error,
            "CertificatePending",
            "A certificate is asked for. That takes some seconds once the domain's DNS records lead here.".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn look<'a>(
        now: Timestamp,
        issued: Option<Validity>,
        trouble: Option<&'a Trouble>,
    ) -> Look<'a> {
        Look {
            mode: CertificateMode::Automatic,
            asks: true,
            standing: CertificateStanding {
                given: None,
                issued,
            },
            trouble,
            seed: 0,
            now,
        }
    }

    fn life() -> Validity {
        Validity {
            from: Timestamp(0),
            until: Timestamp(0).plus(90 * DAY),
        }
    }

    #[test]
    fn a_certificate_is_renewed_a_month_ahead() {
        for (day, step) in [
            (0, Step::Nothing),
            (59, Step::Nothing),
            (60, Step::Issue),
            (89, Step::Issue),
            (91, Step::Issue),
        ] {
            let now = Timestamp(0).plus(DAY * day);
            assert_eq!(
                decide(&look(now, Some(life()), None)).step,
                step,
                "day {day}"
            );
        }
        for seed in 0..200 {
            let at = renew_at(life(), seed);
            assert!(
                at >= Timestamp(0).plus(57 * DAY) && at <= Timestamp(0).plus(60 * DAY),
                "{at:?}"
            );
        }
        let decided = decide(&look(Timestamp(0), Some(life()), None));
        assert_eq!(decided.because.next_look, Some(Timestamp(0).plus(60 * DAY)));
    }

    #[test]
    fn failures_make_it_wait_longer_but_never_for_ever() {
        let mut last = Duration::ZERO;
        for failures in 1..20 {
            let trouble = Trouble {
                failures,
                at: Timestamp(0),
                message: "no".to_owned(),
                not_before: None,
            };
            for seed in [0, 17, 99, u64::MAX] {
                let wait = again_at(&trouble, seed).since(Timestamp(0));
                assert!(
                    wait <= Duration::from_secs(720 * 60 * 11 / 10),
                    "{failures}: {wait:?}"
                );
            }
            let wait = again_at(
                &Trouble {
                    failures,
                    ..trouble.clone()
                },
                0,
            )
            .since(Timestamp(0));
            assert!(
                wait * 11 / 10 >= last,
                "{failures}: {wait:?} after {last:?}"
            );
            last = wait;
            let before = look(Timestamp(0), None, Some(&trouble));
            assert_eq!(decide(&before).step, Step::Nothing);
            let after = look(
                Timestamp(0).plus(14 * 3600 * Duration::from_secs(1)),
                None,
                Some(&trouble),
            );
            assert_eq!(decide(&after).step, Step::Issue);
        }
        // Five an hour at most.
        let trouble = |failures| Trouble {
            failures,
            at: Timestamp(0),
            message: String::new(),
            not_before: None,
        };
        let first_five: Duration = (1..5)
            .map(|n| again_at(&trouble(n), 0).since(Timestamp(0)))
            .sum();
        assert!(first_five > Duration::from_secs(3600), "{first_five:?}");
        let told = Trouble {
            not_before: Some(Timestamp(0).plus(DAY)),
            ..trouble(1)
        };
        assert_eq!(again_at(&told, 0), Timestamp(0).plus(DAY));
    }

    #[test]
    fn a_clock_that_was_ahead_stops_nothing() {
        let years = |n: u32| Timestamp(0).plus(365 * n * DAY);
        let ahead = Trouble {
            failures: 3,
            at: years(20),
            message: "no".to_owned(),
            not_before: Some(years(20).plus(DAY)),
        };
        assert_eq!(
            decide(&look(years(10), None, Some(&ahead))).step,
            Step::Issue
        );
        let wish = Trouble {
            at: years(10),
            not_before: Some(years(20)),
            ..ahead
        };
        let wait = |after: Duration| decide(&look(years(10).plus(after), None, Some(&wish))).step;
        assert_eq!(wait(7 * DAY), Step::Nothing);
        assert_eq!(wait(8 * DAY), Step::Issue);
    }

    #[test]
    fn nobody_is_asked_without_need() {
        let now = Timestamp(0);
        let mut given = look(now, None, None);
        given.standing.given = Some(life());
        assert_eq!(decide(&given).step, Step::Nothing);
        assert_eq!(condition(&given).state, ConditionState::True);
        let mut off = look(now, None, None);
        off.asks = false;
        assert_eq!(decide(&off).step, Step::Nothing);
        assert_eq!(
            (condition(&off).state, condition(&off).severity),
            (ConditionState::False, Severity::Info)
        );
        let mut none = look(now, Some(life()), None);
        none.mode = CertificateMode::None;
        assert_eq!(decide(&none).step, Step::Forget);
    }

    #[test]
    fn what_is_shown_follows_what_is_there() {
        let trouble = Trouble {
            failures: 2,
            at: Timestamp(0),
            message: "port 80 is closed".to_owned(),
            not_before: None,
        };
        let now = Timestamp(0);
        assert_eq!(
            condition(&look(now, None, None)).reason,
            "CertificatePending"
        );
        let failed = condition(&look(now, None, Some(&trouble)));
        assert_eq!(
            (failed.state, failed.message.as_str()),
            (ConditionState::False, "port 80 is closed")
        );
        let renewing = condition(&look(now, Some(life()), Some(&trouble)));
        assert_eq!(
            (renewing.state, renewing.reason.as_str()),
            (ConditionState::True, "RenewalFailing")
        );
        let over = condition(&look(
            Timestamp(0).plus(91 * DAY),
            Some(life()),
            Some(&trouble),
        ));
        assert_eq!(over.state, ConditionState::False);
        assert_eq!(
            condition(&look(now, Some(life()), None)).state,
            ConditionState::True
        );
    }
}
