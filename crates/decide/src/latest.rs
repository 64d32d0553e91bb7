//! Which revision is the latest ready one (`cloud-run-spec.md` §1.8, lifecycle item 3).
//!
//! Owns: the choice. Deliberately not here: whether a revision is ready.
//!
//! Invariants:
//! 1. What the user asked for last wins as soon as it is ready, even if it is an older revision named again.
//! 2. Otherwise the ready revision of the highest generation asked for since: a good deploy counts although a bad one
//!    overtook it.
//! 3. A newer revision that isn't ready changes nothing.

use utsuwa_model::{Because, RevisionId};

/// A revision and the generation of its service that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub id: RevisionId,
    pub generation: u64,
}

/// The answer, and why it is that one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Latest {
    pub standing: Option<Standing>,
    pub because: Because,
}

/// The latest of `ready`. `current`: what the service's generation asks for, ready or not; `before`: the answer so far, with
/// the generation it was given for, which is later than its revision's own when that was named again.
#[must_use]
pub fn latest_ready(
    ready: &[Standing],
    current: Option<&Standing>,
    before: Option<&Standing>,
) -> Latest {
    let answer = |standing: &Standing, why: String| Latest {
        standing: Some(standing.clone()),
        because: Because::new(format!("latest is {}: {why}", standing.id)),
    };
    let serves = |id: &RevisionId| ready.iter().any(|one| one.id == *id);
    if let Some(current) = current.filter(|current| serves(&current.id)) {
        return answer(current, "what was deployed last is ready".to_owned());
    }
    let unready = match current {
        Some(current) => format!("{}, deployed last, isn't ready", current.id),
        None => "what was deployed last could not be made".to_owned(),
    };
    let kept = before.filter(|before| serves(&before.id));
    let newest = ready.iter().max_by_key(|one| one.generation);
    let newer = newest.filter(|one| kept.is_none_or(|kept| one.generation > kept.generation));
    match (newer, kept) {
        (Some(newest), _) => answer(newest, format!("the newest that is ready; {unready}")),
        (None, Some(kept)) => answer(kept, format!("it was before; {unready}")),
        (None, None) => Latest {
            standing: None,
            because: Because::new(format!(
                "nothing is latest: no revision is ready; {unready}"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn one(n: u64) -> Standing {
        at(n, n)
    }

    fn at(n: u64, generation: u64) -> Standing {
        Standing {
            id: format!("a-{n}").parse().unwrap(),
            generation,
        }
    }

    #[test]
    fn the_highest_generation_that_is_ready() {
        let latest = |ready: &[Standing], current: Option<Standing>, before: Option<Standing>| {
            latest_ready(ready, current.as_ref(), before.as_ref()).standing
        };
        assert_eq!(latest(&[], Some(one(1)), None), None, "nothing is ready");
        assert_eq!(latest(&[one(1)], Some(one(1)), None), Some(one(1)));
        // A bad one changes nothing.
        assert_eq!(latest(&[one(1)], Some(one(2)), Some(one(1))), Some(one(1)));
        // The good one that a bad one overtook.
        let ready = [one(1), one(2)];
        assert_eq!(latest(&ready, Some(one(3)), Some(one(1))), Some(one(2)));
        // Rolled back to the first by name in generation 3; a bad one doesn't bring the second back.
        assert_eq!(latest(&ready, Some(at(1, 3)), Some(one(2))), Some(at(1, 3)));
        assert_eq!(latest(&ready, Some(one(4)), Some(at(1, 3))), Some(at(1, 3)));
        // What was the latest has been deleted.
        assert_eq!(latest(&[one(1)], Some(one(4)), Some(one(2))), Some(one(1)));
    }

    #[test]
    fn the_answer_says_why() {
        let why = |ready: &[Standing], current: Option<Standing>, before: Option<Standing>| {
            let latest = latest_ready(ready, current.as_ref(), before.as_ref());
            latest.because.summary
        };
        for (got, want) in [
            (
                why(&[one(1)], Some(one(1)), None),
                "latest is a-1: what was deployed last is ready",
            ),
            (
                why(&[one(1), one(2)], Some(one(3)), Some(one(1))),
                "latest is a-2: the newest that is ready; a-3, deployed last, isn't ready",
            ),
            (
                why(&[one(1)], Some(one(2)), Some(one(1))),
                "latest is a-1: it was before; a-2, deployed last, isn't ready",
            ),
            (
                why(&[one(1)], None, Some(one(1))),
                "latest is a-1: it was before; what was deployed last could not be made",
            ),
            (
                why(&[], Some(one(1)), None),
                "nothing is latest: no revision is ready; a-1, deployed last, isn't ready",
            ),
        ] {
            assert_eq!(got, want);
        }
    }
}
