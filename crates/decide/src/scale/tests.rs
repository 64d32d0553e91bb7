use utsuwa_model::scaling::Metric;

use super::*;
use crate::demand::Sample;

const IDLE: Duration = Duration::from_secs(900);

fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000)
}

fn settings() -> ScalingSettings {
    ScalingSettings::for_concurrency(80, IDLE)
}

/// A minute of `level` requests in the system, then nothing until `now`.
fn history(level: u64, until: i64, now: i64) -> DemandHistory {
    let mut history = DemandHistory::default();
    let mut sum = 0;
    for second in 0..=now {
        history.push(
            Sample {
                at: at(second),
                concurrency_us: sum,
                arrivals: 0,
            },
            Duration::from_secs(60),
        );
        if second < until {
            sum += level * 1_000_000;
        }
    }
    history
}

fn input<'a>(
    settings: &'a ScalingSettings,
    history: &'a DemandHistory,
    now: i64,
) -> ScaleInput<'a> {
    ScaleInput {
        now: at(now),
        settings,
        history,
        in_flight: 0,
        queued: 0,
        last_active: None,
        ready: 0,
        starting: 0,
        idle_since: None,
        routed: true,
        proving: false,
    }
}

#[test]
fn the_first_request_wakes_one_at_once() {
    let (s, none) = (settings(), DemandHistory::default());
    for (queued, want) in [(1, 1), (48, 1), (49, 2), (200, 5)] {
        let decision = look(
            &ScaleInput {
                queued,
                ..input(&s, &none, 5)
            },
            &mut ScalerState::default(),
        );
        assert_eq!(
            decision.desired, want,
            "{queued}: {}",
            decision.because.summary
        );
        assert_eq!(decision.wake_at, Some(at(5).plus(QUEUE_LOOK)));
    }
    let single = ScalingSettings::for_concurrency(1, IDLE);
    let one = look(
        &ScaleInput {
            queued: 1,
            ..input(&single, &none, 5)
        },
        &mut ScalerState::default(),
    );
    assert_eq!(one.desired, 1, "never more instances than requests");
}

#[test]
fn bounds_beat_demand() {
    let none = DemandHistory::default();
    let capped = ScalingSettings {
        max: Ceiling::AtMost(2),
        ..settings()
    };
    let decision = look(
        &ScaleInput {
            queued: 200,
            ..input(&capped, &none, 5)
        },
        &mut ScalerState::default(),
    );
    assert_eq!(decision.desired, 2);
    assert!(
        decision.because.summary.contains("the maximum"),
        "{}",
        decision.because.summary
    );

    let floor = ScalingSettings {
        min: 3,
        ..settings()
    };
    assert_eq!(
        look(&input(&floor, &none, 5), &mut ScalerState::default()).desired,
        3
    );
    let unrouted = ScaleInput {
        routed: false,
        ready: 3,
        ..input(&floor, &none, 5)
    };
    assert_eq!(
        look(&unrouted, &mut ScalerState::default()).desired,
        0,
        "the minimum holds while routed"
    );
}

#[test]
fn the_last_one_sleeps_after_its_idle_time() {
    let s = settings();
    let past = history(1, 10, 70);
    let mut state = ScalerState {
        last_active: Some(at(10)),
        ..ScalerState::default()
    };
    let held = look(
        &ScaleInput {
            ready: 1,
            ..input(&s, &past, 70)
        },
        &mut state,
    );
    assert_eq!(
        (held.desired, held.wake_at),
        (1, Some(at(910))),
        "{}",
        held.because.summary
    );
    let gone = look(
        &ScaleInput {
            ready: 1,
            ..input(&s, &past, 910)
        },
        &mut state,
    );
    assert_eq!(gone.desired, 0, "{}", gone.because.summary);
    let rest = look(&input(&s, &past, 911), &mut state);
    assert_eq!(
        (rest.desired, rest.wake_at),
        (0, None),
        "at rest there is no next look"
    );
}

/// The average of the last minute still says 1 after the last request: the truth is that nobody asked, and how long it stays.
#[test]
fn what_is_kept_without_a_request_is_not_said_to_be_wanted() {
    let (s, past) = (settings(), history(1, 3, 10));
    let mut state = ScalerState::default();
    let idle = ScaleInput {
        ready: 1,
        last_active: Some(at(3)),
        ..input(&s, &past, 10)
    };
    let decision = look(&idle, &mut state);
    assert_eq!(decision.desired, 1);
    assert_eq!(
        decision.because.summary,
        "keep 1: no request, and the last one stays 15m (retention period)"
    );
    let minimum = ScalingSettings {
        min: 1,
        ..s.clone()
    };
    let idle = ScaleInput {
        settings: &minimum,
        ..idle
    };
    let decision = look(&idle, &mut ScalerState::default());
    assert_eq!(decision.because.summary, "want 1: the minimum");
}

#[test]
fn a_short_idle_time_beats_the_window() {
    let s = ScalingSettings {
        retention: Duration::from_secs(5),
        ..settings()
    };
    let past = history(1, 10, 14);
    let mut state = ScalerState {
        last_active: Some(at(10)),
        ..ScalerState::default()
    };
    let held = look(
        &ScaleInput {
            ready: 1,
            ..input(&s, &past, 14)
        },
        &mut state,
    );
    assert_eq!((held.desired, held.wake_at), (1, Some(at(15))));
    let over = look(
        &ScaleInput {
            ready: 1,
            ..input(&s, &past, 15)
        },
        &mut state,
    );
    assert_eq!(over.desired, 0, "{}", over.because.summary);
}

#[test]
fn proof_only_instances_sleep_soon() {
    let s = settings();
    let calm = history(0, 0, 30);
    let proven = ScaleInput {
        ready: 1,
        idle_since: Some(at(25)),
        ..input(&s, &calm, 30)
    };
    let held = look(&proven, &mut ScalerState::default());
    assert_eq!((held.desired, held.wake_at), (1, Some(at(35))));
    assert_eq!(
        look(
            &ScaleInput {
                now: at(35),
                ..proven
            },
            &mut ScalerState::default()
        )
        .desired,
        0
    );
    // After a restart nobody knows whether it was used: the full time.
    assert_eq!(
        look(
            &ScaleInput {
                now: at(35),
                ..proven
            },
            &mut ScalerState::adopt(1, at(30))
        )
        .desired,
        1
    );
}

#[test]
fn missing_data_keeps_what_is_there() {
    let (s, none) = (settings(), DemandHistory::default());
    assert_eq!(
        look(
            &ScaleInput {
                ready: 4,
                ..input(&s, &none, 5)
            },
            &mut ScalerState::default()
        )
        .desired,
        4
    );
}

#[test]
fn never_zero_with_a_request_inside() {
    let s = settings();
    let calm = history(0, 0, 100);
    let decision = look(
        &ScaleInput {
            ready: 1,
            in_flight: 1,
            ..input(&s, &calm, 100)
        },
        &mut ScalerState::default(),
    );
    assert_eq!(decision.desired, 1);
    let unrouted = ScaleInput {
        routed: false,
        ready: 1,
        in_flight: 1,
        ..input(&s, &calm, 100)
    };
    assert_eq!(look(&unrouted, &mut ScalerState::default()).desired, 1);
}

#[test]
fn proving_asks_for_the_initial_scale() {
    let none = DemandHistory::default();
    for (initial, want) in [(0, 0), (1, 1), (3, 3)] {
        let s = ScalingSettings {
            initial_scale: initial,
            ..settings()
        };
        let proving = ScaleInput {
            proving: true,
            routed: false,
            ..input(&s, &none, 5)
        };
        assert_eq!(look(&proving, &mut ScalerState::default()).desired, want);
    }
}

#[test]
fn manual_means_exactly_that_many() {
    let busy = history(500, 60, 60);
    for count in [0, 4] {
        let s = ScalingSettings {
            manual: Some(count),
            ..settings()
        };
        let decision = look(
            &ScaleInput {
                ready: 1,
                in_flight: 80,
                queued: 400,
                ..input(&s, &busy, 60)
            },
            &mut ScalerState::default(),
        );
        assert_eq!(decision.desired, count);
        let unrouted = ScaleInput {
            routed: false,
            ..input(&s, &busy, 60)
        };
        assert_eq!(look(&unrouted, &mut ScalerState::default()).desired, 0);
    }
}

#[test]
fn activation_scale_on_waking() {
    let none = DemandHistory::default();
    let s = ScalingSettings {
        activation_scale: 3,
        ..settings()
    };
    assert_eq!(
        look(
            &ScaleInput {
                queued: 1,
                ..input(&s, &none, 5)
            },
            &mut ScalerState::default()
        )
        .desired,
        3
    );
}

#[test]
fn by_rate_the_window_counts_arrivals() {
    let mut history = DemandHistory::default();
    for second in 0..=60 {
        let arrivals = u64::try_from(second).unwrap_or(0) * 300;
        history.push(
            Sample {
                at: at(second),
                concurrency_us: 0,
                arrivals,
            },
            Duration::from_secs(60),
        );
    }
    let s = ScalingSettings {
        metric: Metric::RequestsPerSecond,
        target: 100.0,
        ..settings()
    };
    let decision = look(
        &ScaleInput {
            ready: 3,
            in_flight: 1,
            ..input(&s, &history, 60)
        },
        &mut ScalerState::default(),
    );
    assert_eq!(decision.desired, 3, "{}", decision.because.summary);
}
