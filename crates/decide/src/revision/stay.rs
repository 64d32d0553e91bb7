//! Whether an instance that was reached stays; asked for deploys alone.
//!
//! A container without a startup probe says nothing of itself: that it was started is all that is known. Where an instance has
//! such a one besides the container that takes requests, its end would end every instance of the revision, moments after each
//! start. So a deploy watches it for a while. That costs nothing where the app itself takes longer to listen.

use std::time::Duration;

use utsuwa_model::Timestamp;
use utsuwa_model::instance::Exit;

use super::wrote;

/// How long all containers of an instance run before they are believed to stay: programs that find something missing end within
/// some tens of milliseconds, and whoever deploys doesn't feel it.
pub const SETTLE: Duration = Duration::from_millis(250);

/// What is told meanwhile.
pub(super) const WATCHED: &str =
    "The first instance was reached. Waiting whether its other containers stay.";

/// Until when one instance is watched, at `now`; `None`: it has stayed. `whole_since`: since when all its containers run,
/// unknown while they don't.
#[must_use]
pub fn watched_until(whole_since: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let until = whole_since.unwrap_or(now).plus(SETTLE);
    (until > now).then_some(until)
}

/// When `wanted` of these will have stayed, if all do; `None`: so many have. Of each, until when it is watched.
#[must_use]
pub fn stays_by(
    watched: impl IntoIterator<Item = Option<Timestamp>>,
    wanted: usize,
) -> Option<Timestamp> {
    let mut watched: Vec<Option<Timestamp>> = watched.into_iter().collect();
    // Who has stayed is first, then who will have soonest.
    watched.sort();
    let last = wanted.checked_sub(1)?;
    watched.get(last).copied().flatten()
}

/// Why the deploy failed, and what to do. Google's sentence on ports would lead elsewhere: the app listened.
pub(super) fn left_message(container: &str, exit: &Exit, last_lines: &[String]) -> String {
    let how = exit.describe_when("right after its start");
    let mut text = match container {
        "" => format!("The container {how}."),
        name => format!("The container {name:?} {how}."),
    };
    text.push_str(&wrote(last_lines));
    let stay = match exit {
        Exit::Code(0) => {
            " A container must keep running as long as its instance, also when its work is done."
        }
        _ => "",
    };
    format!(
        "{text}\n\nThe end of one container is the end of its instance, so no instance of this revision would last.{stay} Logs for \
         this revision might contain more information."
    )
}

#[cfg(test)]
mod tests {
    use utsuwa_model::revision::Outcome;

    use super::super::{ImageState, Proof, ProofInstance, judge};
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp(0).plus(Duration::from_millis(ms))
    }

    #[test]
    fn an_instance_is_watched_from_when_it_is_whole() {
        for (whole_since, now, until) in [
            (None, 0, Some(at(250))),
            (None, 900, Some(at(1150))),
            (Some(at(100)), 100, Some(at(350))),
            (Some(at(100)), 349, Some(at(350))),
            (Some(at(100)), 350, None),
            (Some(at(100)), 9000, None),
        ] {
            assert_eq!(
                watched_until(whole_since, at(now)),
                until,
                "{whole_since:?} {now}"
            );
        }
    }

    #[test]
    fn as_many_as_are_wanted_must_stay() {
        let (stayed, soon, later) = (None, Some(at(10)), Some(at(20)));
        for (watched, wanted, by) in [
            (vec![], 1, None),
            (vec![stayed], 1, None),
            (vec![later], 1, later),
            (vec![later, soon], 1, soon),
            (vec![later, stayed, soon], 1, None),
            (vec![later, stayed, soon], 2, soon),
            (vec![later, stayed, soon], 3, later),
            (vec![later], 0, None),
        ] {
            assert_eq!(
                stays_by(watched.clone(), wanted),
                by,
                "{watched:?} {wanted}"
            );
        }
    }

    #[test]
    fn watched_is_not_yet_ready() {
        let proof = |instance, check_disabled, watched_until| Proof {
            image: ImageState::There,
            instance,
            check_disabled,
            watched_until,
            port: 8080,
            ..Proof::default()
        };
        use ProofInstance::{Reached, Starting};
        for (instance, check_disabled, watched, outcome) in [
            (Reached, false, None, Outcome::Ready),
            (Reached, false, Some(at(9)), Outcome::Pending),
            (Reached, true, Some(at(9)), Outcome::Pending),
            (Starting, true, Some(at(9)), Outcome::Pending),
            (Starting, true, None, Outcome::Ready),
        ] {
            let proof = proof(instance, check_disabled, watched);
            assert_eq!(judge(&proof).0, outcome, "{proof:?}");
        }
        let (.., message) = judge(&proof(Reached, false, Some(at(9))));
        assert_eq!(message, WATCHED);
    }

    #[test]
    fn who_left_is_told_by_name_with_how_and_what_to_do() {
        let judged = |exit: Exit, lines: &[&str]| {
            let left = ProofInstance::Left {
                container: "side".to_owned(),
                exit,
                last_lines: lines.iter().map(|&line| line.to_owned()).collect(),
            };
            let (outcome, ..) = judge(&Proof {
                image: ImageState::There,
                instance: left,
                ..Proof::default()
            });
            match outcome {
                Outcome::Failed { reason, message } => (reason, message),
                other => unreachable!("{other:?}"),
            }
        };
        let (reason, message) = judged(Exit::Code(7), &["no config", ""]);
        assert_eq!(reason, "ExitCode7");
        assert_eq!(
            message,
            "The container \"side\" exited with status 7 right after its start. Container failed with: no config\n\nThe end of one \
             container is the end of its instance, so no instance of this revision would last. Logs for this revision might contain \
             more information."
        );
        let (reason, message) = judged(Exit::Signal(11), &[]);
        assert_eq!(reason, "HealthCheckContainerError");
        assert!(
            message.contains("signal 11 (SIGSEGV) right after"),
            "{message}"
        );
        let (_, message) = judged(Exit::Code(0), &[]);
        assert!(message.contains("must keep running"), "{message}");
    }
}
