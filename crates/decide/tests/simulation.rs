//! Generated traffic against the closed loop: whatever comes, the promises hold, everybody gets an end, and the revision falls
//! asleep. A failure prints its smallest case, seed included; cases that found a bug are kept below as tests of their own.
#![expect(clippy::unwrap_used, reason = "tests")]

mod simulator;

use std::time::Duration;

use proptest::prelude::*;
use simulator::{Dice, Simulator};
use utsuwa_model::scaling::{Ceiling, ScalingSettings};

#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    concurrency: u32,
    max: u32,
    min: u32,
    startup_ms: u64,
    service_ms: u64,
    window_s: u64,
    /// (second, requests at once)
    bursts: Vec<(u64, u32)>,
    /// (second, requests per second)
    rates: Vec<(u64, u32)>,
    crashes: Vec<u64>,
}

fn case() -> impl Strategy<Value = Case> {
    (
        any::<u64>(),
        prop_oneof![Just(0), Just(1), Just(3), 4..100_u32],
        1..20_u32,
        0..3_u32,
        1..3_000_u64,
        1..2_000_u64,
        6..60_u64,
        prop::collection::vec((0..100_u64, 1..300_u32), 0..4),
        prop::collection::vec((0..100_u64, 0..30_u32), 0..4),
        prop::collection::vec(0..100_u64, 0..3),
    )
        .prop_map(
            |(
                seed,
                concurrency,
                max,
                min,
                startup_ms,
                service_ms,
                window_s,
                bursts,
                rates,
                crashes,
            )| Case {
                seed,
                concurrency,
                max,
                min: min.min(max),
                startup_ms,
                service_ms,
                window_s,
                bursts,
                rates,
                crashes,
            },
        )
}

fn simulate(case: &Case) -> Simulator {
    let window = Duration::from_secs(case.window_s);
    let settings = ScalingSettings {
        min: case.min,
        max: Ceiling::AtMost(case.max),
        stable_window: window,
        retention: window,
        ..ScalingSettings::for_concurrency(case.concurrency, window)
    };
    let (startup, service) = (
        Duration::from_millis(case.startup_ms),
        Duration::from_millis(case.service_ms),
    );
    let mut simulator = Simulator::new(settings, startup, service, case.seed);
    for (second, requests) in &case.bursts {
        simulator.burst(Duration::from_secs(*second), *requests);
    }
    for (second, rate) in &case.rates {
        simulator.arrivals(Duration::from_secs(*second), f64::from(*rate));
    }
    for second in &case.crashes {
        simulator.crash(Duration::from_secs(*second));
    }
    simulator.arrivals(Duration::from_secs(101), 0.0);
    simulator.run(Duration::from_secs(3600)).unwrap();
    simulator
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn promises_hold_and_it_falls_asleep(case in case()) {
        let simulator = simulate(&case);
        let totals = &simulator.totals;
        prop_assert_eq!(totals.served + totals.refused + totals.failed, simulator.arrived(), "{}", simulator.summary());
        prop_assert!(totals.most <= case.max);
        if case.min == 0 {
            prop_assert!(simulator.is_asleep(), "{}\n{}", simulator.summary(), simulator.story.join("\n"));
        } else {
            prop_assert_eq!(simulator.live(), case.min);
        }
    }
}

/// A panic that only the queue had seen left no next look behind, and the instance stayed for ever.
#[test]
fn one_request_after_a_second_of_silence() {
    let case = Case {
        seed: 0,
        concurrency: 0,
        max: 1,
        min: 0,
        startup_ms: 1,
        service_ms: 1,
        window_s: 6,
        bursts: vec![(1, 1)],
        rates: vec![],
        crashes: vec![],
    };
    assert!(simulate(&case).is_asleep());
}

/// The same seed tells the same story: nothing depends on chance, time or order from outside.
#[test]
fn a_seed_replays() {
    let case = Case {
        seed: Dice(7).roll(),
        concurrency: 0,
        max: 9,
        min: 0,
        startup_ms: 700,
        service_ms: 300,
        window_s: 10,
        bursts: vec![(3, 120), (40, 7)],
        rates: vec![(5, 20), (60, 2)],
        crashes: vec![20],
    };
    assert_eq!(simulate(&case).story, simulate(&case).story);
    assert!(!simulate(&case).story.is_empty());
}

/// 200 requests at once to a sleeping service with concurrency 80 and at most 2: one wake, at most two instances, all answered.
#[test]
fn two_hundred_at_once() {
    let settings = ScalingSettings {
        max: Ceiling::AtMost(2),
        ..ScalingSettings::for_concurrency(80, Duration::from_secs(900))
    };
    let mut simulator = Simulator::new(
        settings,
        Duration::from_millis(20),
        Duration::from_millis(100),
        1,
    );
    simulator.burst(Duration::from_secs(10), 200);
    simulator.run(Duration::from_secs(60)).unwrap();
    let totals = &simulator.totals;
    assert_eq!((totals.served, totals.wakes), (200, 1));
    assert!(totals.started <= 2);
}
