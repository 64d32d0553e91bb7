//! The worked examples of `cloud-run-spec.md` §3.2, every row.

use super::*;

const START: i64 = 1_000_000_000;

/// The parameters of the examples: up 10, down 10, window 60 s, panic at 200 %.
fn settings(target: f64) -> ScalingSettings {
    ScalingSettings {
        target,
        max_scale_up_rate: 10.0,
        max_scale_down_rate: 10.0,
        stable_window: Duration::from_secs(60),
        panic_threshold_percent: 200.0,
        target_burst_capacity: 0.0,
        ..ScalingSettings::for_concurrency(100, Duration::ZERO)
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp(START + seconds * 1_000_000)
}

fn input(stable: f64, panic: f64, ready: u32, seconds: i64) -> KpaInput {
    KpaInput {
        stable,
        panic,
        ready,
        reachable: true,
        now: at(seconds),
    }
}

#[test]
fn single_looks() {
    struct Row {
        name: &'static str,
        averages: (f64, f64),
        target: f64,
        ready: u32,
        desired: u32,
    }
    let row = |name, averages, target, ready, desired| Row {
        name,
        averages,
        target,
        ready,
        desired,
    };
    for r in [
        row("50 in flight by 10", (50.0, 10.0), 10.0, 1, 5),
        row("100 by 10", (100.0, 10.0), 10.0, 1, 10),
        row("nothing", (0.0, 0.0), 10.0, 1, 0),
        row("far below the target", (21.0, 26.0), 181.0, 1, 1),
        row("stable wins", (50.0, 49.0), 10.0, 1, 5),
    ] {
        let answer = look(
            &input(r.averages.0, r.averages.1, r.ready, 0),
            &settings(r.target),
            &mut KpaState::default(),
        );
        assert_eq!(answer.desired, r.desired, "{}", r.name);
    }
}

#[test]
fn already_in_panic() {
    for (stable, panic, desired) in [(50.0, 30.0, 50), (20.0, 30.0, 30)] {
        let mut state = KpaState {
            panic_since: Some(at(0)),
            max_panic: 5,
            ..KpaState::default()
        };
        assert_eq!(
            look(&input(stable, panic, 5, 1), &settings(1.0), &mut state).desired,
            desired
        );
    }
}

#[test]
fn rates_hold_back() {
    let up = ScalingSettings {
        max_scale_up_rate: 1.1,
        ..settings(1.0)
    };
    assert_eq!(
        look(&input(3.0, 3.1, 2, 0), &up, &mut KpaState::default()).desired,
        3
    );
    let down = ScalingSettings {
        max_scale_down_rate: 1.1,
        ..settings(10.0)
    };
    assert_eq!(
        look(&input(1.0, 1.0, 100, 0), &down, &mut KpaState::default()).desired,
        90
    );
    let unreachable = KpaInput {
        reachable: false,
        ..input(1.0, 1.0, 100, 0)
    };
    assert_eq!(
        look(&unreachable, &down, &mut KpaState::default()).desired,
        1
    );

    let mut state = KpaState::default();
    assert_eq!(
        look(&input(1000.0, 1001.0, 1, 0), &settings(1.0), &mut state).desired,
        10
    );
    assert_eq!(
        look(&input(1000.0, 1001.0, 10, 2), &settings(1.0), &mut state).desired,
        100
    );
    let mut state = KpaState::default();
    assert_eq!(
        look(&input(1.0, 1.0, 100, 0), &settings(10.0), &mut state).desired,
        10
    );
    assert_eq!(
        look(&input(1.0, 1.0, 10, 2), &settings(10.0), &mut state).desired,
        1
    );
}

#[test]
fn panic_rises_holds_and_ends() {
    let mut state = KpaState::default();
    assert_eq!(
        look(&input(11.0, 25.0, 10, 0), &settings(1.0), &mut state).desired,
        25
    );
    assert_eq!(
        look(&input(30.0, 41.0, 40, 30), &settings(1.0), &mut state).desired,
        41
    );
    let ended = look(&input(50.0, 56.0, 55, 62), &settings(1.0), &mut state);
    assert_eq!((ended.desired, ended.in_panic), (50, false));
}

#[test]
fn panic_is_renewed() {
    let mut state = KpaState::default();
    assert_eq!(
        look(&input(11.0, 25.0, 10, 0), &settings(1.0), &mut state).desired,
        25
    );
    assert_eq!(
        look(&input(30.0, 80.0, 40, 30), &settings(1.0), &mut state).desired,
        80
    );
    assert_eq!(state.panic_since, Some(at(30)));
    // Strictly after: exactly one window later it still holds.
    assert!(look(&input(1.0, 1.0, 80, 90), &settings(1.0), &mut state).in_panic);
    assert!(!look(&input(1.0, 1.0, 80, 91), &settings(1.0), &mut state).in_panic);
}

#[test]
fn scale_down_waits_out_its_delay() {
    let delayed = ScalingSettings {
        scale_down_delay: Duration::from_secs(300),
        ..settings(10.0)
    };
    let mut state = KpaState::default();
    assert_eq!(
        look(&input(40.0, 40.0, 0, 2), &delayed, &mut state).desired,
        4
    );
    assert_eq!(
        look(&input(0.0, 0.0, 0, 300), &delayed, &mut state).desired,
        4
    );
    assert_eq!(
        look(&input(0.0, 0.0, 0, 302), &delayed, &mut state).desired,
        0
    );
}

#[test]
fn activation_scale_lifts_only_what_is_wanted() {
    let activated = ScalingSettings {
        activation_scale: 3,
        ..settings(10.0)
    };
    assert_eq!(
        look(&input(1.0, 1.0, 0, 0), &activated, &mut KpaState::default()).desired,
        3
    );
    assert_eq!(
        look(&input(0.0, 0.0, 0, 0), &activated, &mut KpaState::default()).desired,
        0
    );
}

#[test]
fn excess_burst_capacity_by_the_formula() {
    // tot = 100: 1 × 100 − 100 − 10.
    for (capacity, panic, ready, want) in [
        (100.0, 10.0, 1, -10),
        (-1.0, 26.0, 1, -1),
        (0.0, 49.0, 1, 0),
        (211.0, 10.0, 0, -221),
    ] {
        let with = ScalingSettings {
            target_burst_capacity: capacity,
            ..settings(10.0)
        };
        let answer = look(
            &input(panic, panic, ready, 0),
            &with,
            &mut KpaState::default(),
        );
        assert_eq!(answer.excess_burst_capacity, want, "{capacity}");
    }
}

#[test]
fn a_restart_with_instances_begins_in_panic() {
    let mut state = KpaState::adopt(7, at(0));
    assert_eq!(
        look(&input(0.0, 0.0, 7, 2), &settings(10.0), &mut state).desired,
        7
    );
    assert_eq!(KpaState::adopt(1, at(0)), KpaState::default());
}
