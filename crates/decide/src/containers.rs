//! In which order the containers of one instance are started (`cloud-run-spec.md` §2.7).
//!
//! Owns: whose turn it is. Deliberately not here: starting and probing them.
//!
//! Invariants:
//! 1. A container is started after everything it depends on has passed, and as soon as that is so.
//! 2. Without circles every container comes to its turn.

use std::collections::BTreeSet;

/// The containers that may be started now, by number. `after` says of each what it depends on; those in `passed` run and have
/// passed their startup probe, if they have one.
///
/// With `after` = [[1], []] container 1 is due first, and 0 once 1 has passed.
#[must_use]
pub fn due(
    after: &[Vec<usize>],
    started: &BTreeSet<usize>,
    passed: &BTreeSet<usize>,
) -> Vec<usize> {
    let ready = |number: &usize| {
        !started.contains(number) && after[*number].iter().all(|one| passed.contains(one))
    };
    (0..after.len()).filter(ready).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_after_what_it_depends_on() {
        // 0 needs 1 and 2, 2 needs 3.
        let after = [vec![1, 2], vec![], vec![3], vec![]];
        let of = |numbers: &[usize]| numbers.iter().copied().collect::<BTreeSet<_>>();
        for (started, passed, expected) in [
            (of(&[]), of(&[]), vec![1, 3]),
            (of(&[1, 3]), of(&[]), vec![]),
            (of(&[1, 3]), of(&[1]), vec![]),
            (of(&[1, 3]), of(&[3]), vec![2]),
            (of(&[1, 2, 3]), of(&[1, 3]), vec![]),
            (of(&[1, 2, 3]), of(&[1, 2, 3]), vec![0]),
            (of(&[0, 1, 2, 3]), of(&[1, 2, 3]), vec![]),
        ] {
            assert_eq!(
                due(&after, &started, &passed),
                expected,
                "{started:?} {passed:?}"
            );
        }
    }
}
