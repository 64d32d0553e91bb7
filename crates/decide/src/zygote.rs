//! Starts prepared ahead: what is learnt of a program, how many instances are parked for it, and why.
//!
//! A parked instance has its runtime and its modules in memory and waits before anything of the app's own runs; the next start is
//! its going on. Owns: the judgement of what was learnt, the count, the time. Deliberately not here: parking.
//!
//! Invariants:
//! 1. Parked and live instances together never exceed the maximum, and nothing is parked for what nobody can call.
//! 2. Who starts has the CPU: nothing is parked until [`QUIET`] after the last start.
//! 3. Where something speaks against it, starts are as always, and the reason is told.

use std::collections::BTreeSet;
use std::time::Duration;

use utsuwa_model::scaling::Ceiling;
use utsuwa_model::{Because, Timestamp};

use crate::words::many;

/// Starts at once beyond this many are as slow as ever: each parked instance costs some tens of megabytes.
pub const MOST: u32 = 4;
/// Pause between a start and the parking for the next one.
pub const QUIET: Duration = Duration::from_secs(2);
/// So long a burst of starts is expected to come again.
pub const REMEMBERED: Duration = Duration::from_secs(600);
/// Failures that may pass after which the next attempt waits longest.
const PATIENCE: u32 = 6;
/// Modules of one program, at most; a large one has two thousand.
const MODULES: usize = 8_192;
/// Characters of a module's dotted name.
const NAME: usize = 200;

/// Modules that change others, which therefore must not be there before them.
const PATCHERS: &[&str] = &[
    "gevent.monkey",
    "eventlet.patcher",
    "ddtrace.auto",
    "newrelic.agent",
];

/// What is known of a program's start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Lessons {
    /// Nothing yet: the next instance that starts is looked at.
    #[default]
    None,
    /// In the order in which they were imported.
    Modules(Vec<String>),
    /// It is started as always, and why.
    Refused(String),
}

/// What the imports of an instance teach, or why there are none to see.
#[must_use]
pub fn judge(learnt: Result<Vec<String>, String>) -> Lessons {
    let names = match learnt {
        Ok(names) => names,
        Err(why) => return Lessons::Refused(why),
    };
    if let Some(patcher) = PATCHERS
        .iter()
        .find(|patcher| names.iter().any(|name| name == *patcher))
    {
        return Lessons::Refused(format!(
            "it imports {patcher}, which changes modules that must not be imported before it"
        ));
    }
    let mut seen = BTreeSet::new();
    let modules: Vec<String> = names
        .into_iter()
        .filter(|name| is_module(name))
        .filter(|name| seen.insert(name.clone()))
        .take(MODULES)
        .collect();
    if modules.is_empty() {
        Lessons::None
    } else {
        Lessons::Modules(modules)
    }
}

fn is_module(name: &str) -> bool {
    let letter = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '.';
    !name.is_empty() && name.len() <= NAME && name.chars().all(letter)
}

/// What parking depends on.
#[derive(Debug, Clone)]
pub struct ZygoteInput<'a> {
    pub now: Timestamp,
    pub lessons: &'a Lessons,
    /// Requests may be led to the revision.
    pub callable: bool,
    /// Instances that start or take requests.
    pub live: u32,
    /// Of them so many start now.
    pub starting: u32,
    pub max: Ceiling,
    /// Parked, or on the way to it.
    pub parked: u32,
    /// Of them so many wait already.
    pub waiting: u32,
    /// The most starts at once of late.
    pub burst: u32,
    /// When the last start was asked for.
    pub last_start: Option<Timestamp>,
    /// Whether memory for one more is free.
    pub fits: bool,
    /// No attempt before this: the last one failed.
    pub not_before: Option<Timestamp>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct ZygotePlan {
    pub park: u32,
    pub drop: u32,
    /// When the answer may be another one.
    pub look_at: Option<Timestamp>,
    pub because: Because,
}

/// How many to park or to let go.
#[must_use]
pub fn plan(input: &ZygoteInput<'_>) -> ZygotePlan {
    let room = match input.max {
        Ceiling::AtMost(most) => most.saturating_sub(input.live),
        Ceiling::Unlimited => u32::MAX,
    };
    let wanted = match input.lessons {
        Lessons::Modules(_) if input.callable => input.burst.clamp(1, MOST).min(room),
        Lessons::Modules(_) | Lessons::None | Lessons::Refused(_) => 0,
    };
    let quiet_at = input.last_start.map(|at| at.plus(QUIET));
    let wait = [quiet_at, input.not_before]
        .into_iter()
        .flatten()
        .max()
        .filter(|at| *at > input.now);
    let missing = wanted.saturating_sub(input.parked);
    let may = wait.is_none() && input.starting == 0 && input.fits;
    ZygotePlan {
        // One after the other: they shall not take the CPUs from those who serve.
        park: u32::from(missing > 0 && may && input.parked == input.waiting),
        drop: input.parked.saturating_sub(wanted),
        look_at: wait.filter(|_| missing > 0),
        because: explain(input, wanted, wait.is_some()),
    }
}

fn explain(input: &ZygoteInput<'_>, wanted: u32, waits: bool) -> Because {
    let summary = match input.lessons {
        Lessons::None => "zygote: what the program imports is learnt at its next start".to_owned(),
        Lessons::Refused(why) => format!("zygote: starts are as always: {why}"),
        Lessons::Modules(_) if !input.callable => {
            "zygote: nothing is parked: no requests are led here".to_owned()
        }
        Lessons::Modules(_) if wanted == 0 => {
            "zygote: nothing is parked: all instances that may be are there".to_owned()
        }
        Lessons::Modules(modules) => {
            let state = if input.waiting >= wanted {
                "for the next start"
            } else if !input.fits {
                "no memory is free for more"
            } else if waits {
                "more after a pause"
            } else {
                "more on the way"
            };
            let count = u32::try_from(modules.len()).unwrap_or(u32::MAX);
            format!(
                "zygote: {} of {wanted} parked with {}, {state}",
                input.waiting,
                many(count, "module")
            )
        }
    };
    Because::new(summary)
        .fact("parked", input.waiting)
        .fact("wanted", wanted)
}

/// How long nothing is parked after `failures` in a row.
#[must_use]
pub fn backoff(failures: u32) -> Duration {
    Duration::from_secs(10 << failures.min(PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn input(lessons: &Lessons) -> ZygoteInput<'_> {
        ZygoteInput {
            now: Timestamp(0).plus(Duration::from_secs(1_000)),
            lessons,
            callable: true,
            live: 0,
            starting: 0,
            max: Ceiling::AtMost(10),
            parked: 0,
            waiting: 0,
            burst: 0,
            last_start: None,
            fits: true,
            not_before: None,
        }
    }

    #[test]
    fn modules_keep_their_order_and_come_once() {
        let learnt = names(&[
            "re",
            "flask",
            "re",
            "flask.app",
            "x-y",
            "",
            "a b",
            "quote\"",
        ]);
        assert_eq!(
            judge(Ok(learnt)),
            Lessons::Modules(names(&["re", "flask", "flask.app"]))
        );
        assert_eq!(judge(Ok(Vec::new())), Lessons::None);
    }

    #[test]
    fn what_changes_others_is_refused() {
        let lessons = judge(Ok(names(&["re", "gevent.monkey", "ssl"])));
        assert!(
            matches!(&lessons, Lessons::Refused(why) if why.contains("gevent.monkey")),
            "{lessons:?}"
        );
        let told = judge(Err("it is not Python".to_owned()));
        assert_eq!(told, Lessons::Refused("it is not Python".to_owned()));
    }

    #[test]
    fn one_is_parked_when_it_is_quiet() {
        let lessons = Lessons::Modules(names(&["re"]));
        let quiet = input(&lessons);
        assert_eq!((plan(&quiet).park, plan(&quiet).drop), (1, 0));
        let there = ZygoteInput {
            parked: 1,
            waiting: 1,
            ..quiet.clone()
        };
        assert_eq!((plan(&there).park, plan(&there).drop), (0, 0));
        assert!(
            plan(&there)
                .because
                .summary
                .contains("1 of 1 parked with 1 module, for the next start")
        );
        let starts = ZygoteInput {
            live: 1,
            starting: 1,
            ..quiet.clone()
        };
        assert_eq!(plan(&starts).park, 0);
        let just_started = ZygoteInput {
            last_start: Some(quiet.now),
            ..quiet.clone()
        };
        assert_eq!(
            (plan(&just_started).park, plan(&just_started).look_at),
            (0, Some(quiet.now.plus(QUIET)))
        );
        let failed = ZygoteInput {
            not_before: Some(quiet.now.plus(backoff(0))),
            ..quiet.clone()
        };
        assert_eq!(
            (plan(&failed).park, plan(&failed).look_at),
            (0, failed.not_before)
        );
        let no_memory = ZygoteInput {
            fits: false,
            ..quiet
        };
        assert_eq!(plan(&no_memory).park, 0);
        assert!(plan(&no_memory).because.summary.contains("no memory"));
    }

    #[test]
    fn a_burst_is_answered_with_more_one_after_the_other() {
        let lessons = Lessons::Modules(names(&["re"]));
        let quiet = ZygoteInput {
            burst: 9,
            parked: 1,
            waiting: 1,
            ..input(&lessons)
        };
        assert_eq!(plan(&quiet).park, 1);
        let under_way = ZygoteInput {
            parked: 2,
            ..quiet.clone()
        };
        assert_eq!(plan(&under_way).park, 0);
        let all = ZygoteInput {
            parked: MOST,
            waiting: MOST,
            ..quiet.clone()
        };
        assert_eq!((plan(&all).park, plan(&all).drop), (0, 0));
        let over = ZygoteInput { burst: 1, ..all };
        assert_eq!(plan(&over).drop, MOST - 1);
    }

    #[test]
    fn never_more_than_may_be_and_none_that_nobody_can_call() {
        let lessons = Lessons::Modules(names(&["re"]));
        let full = ZygoteInput {
            live: 10,
            parked: 1,
            waiting: 1,
            ..input(&lessons)
        };
        assert_eq!((plan(&full).park, plan(&full).drop), (0, 1));
        let closed = ZygoteInput {
            callable: false,
            parked: 1,
            waiting: 1,
            ..input(&lessons)
        };
        assert_eq!((plan(&closed).park, plan(&closed).drop), (0, 1));
        for lessons in [Lessons::None, Lessons::Refused("no".to_owned())] {
            let parked = ZygoteInput {
                parked: 1,
                ..input(&lessons)
            };
            assert_eq!(
                (plan(&parked).park, plan(&parked).drop),
                (0, 1),
                "{lessons:?}"
            );
        }
    }
}
