//! A closed loop in simulated time: requests arrive, wait, are served by instances that take time to start, while the deciding
//! functions count, choose and let go. No clock, no threads: the same script gives the same story on every machine.
//!
//! Owns: the world (queue, slots, startup, service time) and the story. The decisions are the product's own.
//! Every step checks the promises of `utsuwa_decide::invariant`.
#![allow(
    clippy::allow_attributes,
    dead_code,
    reason = "scripts and generated traffic use different parts"
)]

mod looks;
mod requests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use utsuwa_decide::admit::{self, Admission, SlotView};
use utsuwa_decide::demand::{DemandHistory, Sample};
use utsuwa_decide::instances::{self, InstanceView};
use utsuwa_decide::scale::{self, ScaleInput, ScalerState};
use utsuwa_decide::tiers::{self, TierSettings, TierView};
use utsuwa_decide::words::{many, time};
use utsuwa_decide::{invariant, invariant::Broken};
use utsuwa_model::demand::Reach;
use utsuwa_model::instance::Tier;
use utsuwa_model::scaling::ScalingSettings;
use utsuwa_model::{InstanceId, Timestamp};

/// A small generator (SplitMix64), so that a printed seed replays a run.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[derive(Debug, Clone)]
enum Event {
    Arrive,
    Burst(u32),
    Rate(f64),
    Route(bool),
    Settings(Box<ScalingSettings>),
    Ready(InstanceId),
    Crash,
    Finish(InstanceId, u64),
    GiveUp(u64),
    Look(u64),
}

#[derive(Debug)]
struct SimInstance {
    id: InstanceId,
    started: Timestamp,
    ready: bool,
    idle_since: Option<Timestamp>,
    requests: BTreeSet<u64>,
    tier: Tier,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) served: u32,
    pub(crate) refused: u32,
    pub(crate) failed: u32,
    pub(crate) started: u32,
    pub(crate) wakes: u32,
    pub(crate) most: u32,
    pub(crate) longest_wait: Duration,
    pub(crate) looks: u32,
}

#[derive(Debug)]
pub(crate) struct Simulator {
    now: Timestamp,
    events: BTreeMap<(Timestamp, u64), Event>,
    sequence: u64,
    settings: ScalingSettings,
    startup: Duration,
    service: Duration,
    routed: bool,
    rate: f64,
    rate_era: u64,
    arrival_left: bool,
    instances: Vec<SimInstance>,
    queue: VecDeque<(u64, Timestamp)>,
    history: DemandHistory,
    state: ScalerState,
    concurrency_us: u64,
    counted_until: Timestamp,
    arrivals: u64,
    last_active: Option<Timestamp>,
    wake_raised: bool,
    look_at: Option<Timestamp>,
    look_era: u64,
    last_desired: Option<u32>,
    accepted: BTreeSet<u64>,
    ends: BTreeMap<u64, u32>,
    gone: BTreeSet<InstanceId>,
    dice: Dice,
    /// CPU for requests only.
    pub(crate) throttled: bool,
    /// Why the memory of the idle can't be given back, if it can't.
    pub(crate) no_swap: Option<String>,
    /// Whether the story tells of tiers.
    pub(crate) tell_tiers: bool,
    last_tiers: String,
    pub(crate) totals: Totals,
    pub(crate) story: Vec<String>,
}

impl Simulator {
    pub(crate) fn new(
        settings: ScalingSettings,
        startup: Duration,
        service: Duration,
        seed: u64,
    ) -> Self {
        Self {
            now: Timestamp(0),
            events: BTreeMap::new(),
            sequence: 0,
            settings,
            startup,
            service,
            routed: true,
            rate: 0.0,
            rate_era: 0,
            arrival_left: false,
            instances: Vec::new(),
            queue: VecDeque::new(),
            history: DemandHistory::default(),
            state: ScalerState::default(),
            concurrency_us: 0,
            counted_until: Timestamp(0),
            arrivals: 0,
            last_active: None,
            wake_raised: false,
            look_at: None,
            look_era: 0,
            last_desired: None,
            accepted: BTreeSet::new(),
            ends: BTreeMap::new(),
            gone: BTreeSet::new(),
            dice: Dice(seed),
            throttled: true,
            no_swap: None,
            tell_tiers: false,
            last_tiers: String::new(),
            totals: Totals::default(),
            story: Vec::new(),
        }
    }

    pub(crate) fn burst(&mut self, at: Duration, count: u32) {
        self.schedule(Timestamp(0).plus(at), Event::Burst(count));
    }

    pub(crate) fn arrivals(&mut self, at: Duration, per_second: f64) {
        self.schedule(Timestamp(0).plus(at), Event::Rate(per_second));
    }

    pub(crate) fn route(&mut self, at: Duration, routed: bool) {
        self.schedule(Timestamp(0).plus(at), Event::Route(routed));
    }

    pub(crate) fn crash(&mut self, at: Duration) {
        self.schedule(Timestamp(0).plus(at), Event::Crash);
    }

    pub(crate) fn change(&mut self, at: Duration, settings: ScalingSettings) {
        self.schedule(Timestamp(0).plus(at), Event::Settings(Box::new(settings)));
    }

    fn schedule(&mut self, at: Timestamp, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Runs until nothing is left to happen or `until` is over.
    pub(crate) fn run(&mut self, until: Duration) -> Result<(), Broken> {
        let end = Timestamp(0).plus(until);
        self.look()?;
        while let Some((&(at, sequence), _)) = self.events.first_key_value() {
            if at > end {
                break;
            }
            let Some(event) = self.events.remove(&(at, sequence)) else {
                break;
            };
            self.count_until(at);
            self.handle(event)?;
            self.check()?;
        }
        self.count_until(end);
        invariant::each_ends_once(&self.accepted, &self.ends, self.in_system() == 0)
    }

    fn count_until(&mut self, at: Timestamp) {
        let micros = u64::try_from(at.since(self.counted_until).as_micros()).unwrap_or(0);
        self.concurrency_us += u64::from(self.in_system()) * micros;
        self.counted_until = at;
        self.now = at;
    }

    fn in_flight(&self) -> u32 {
        self.instances.iter().map(|i| count(i.requests.len())).sum()
    }

    fn in_system(&self) -> u32 {
        self.in_flight() + count(self.queue.len())
    }

    fn handle(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Burst(requests) => {
                for _ in 0..requests {
                    self.arrive()?;
                }
            }
            Event::Rate(rate) => {
                self.rate = rate;
                self.rate_era += 1;
                if rate > 0.0 && !self.arrival_left {
                    self.arrival_left = true;
                    self.schedule(self.now, Event::Arrive);
                }
            }
            Event::Arrive => {
                self.arrival_left = self.rate > 0.0;
                if self.rate > 0.0 {
                    let gap = Duration::from_secs_f64(1.0 / self.rate);
                    self.schedule(self.now.plus(gap), Event::Arrive);
                    self.arrive()?;
                }
            }
            Event::Route(routed) => {
                self.routed = routed;
                self.look()?;
            }
            Event::Settings(settings) => {
                self.settings = *settings;
                self.look()?;
            }
            Event::Ready(id) => {
                let now = self.now;
                if let Some(instance) = self.instances.iter_mut().find(|i| i.id == id) {
                    instance.ready = true;
                    instance.idle_since = Some(now);
                    self.wake_raised = false;
                    self.drain()?;
                    self.look()?;
                }
            }
            Event::Crash => self.crash_oldest()?,
            Event::Finish(id, request) => self.finish(&id, request)?,
            Event::GiveUp(request) => {
                if let Some(index) = self
                    .queue
                    .iter()
                    .position(|(waiting, _)| *waiting == request)
                {
                    self.queue.remove(index);
                    self.end(request);
                    self.totals.refused += 1;
                }
            }
            Event::Look(era) if era == self.look_era => {
                self.look_at = None;
                self.look()?;
            }
            Event::Look(_) => {}
        }
        Ok(())
    }

    fn start(&mut self) {
        self.totals.started += 1;
        let id: InstanceId = format!("{:032x}", self.totals.started)
            .parse()
            .expect("32 hexadecimal digits");
        self.instances.push(SimInstance {
            id: id.clone(),
            started: self.now,
            ready: false,
            idle_since: None,
            requests: BTreeSet::new(),
            tier: Tier::Awake,
        });
        self.schedule(self.now.plus(self.startup), Event::Ready(id));
    }

    fn check(&self) -> Result<(), Broken> {
        let raised = self.wake_raised || self.settings.manual == Some(0) || self.look_at.is_some();
        invariant::waiting_is_heard(count(self.queue.len()), count(self.instances.len()), raised)
    }

    /// Nothing is there, nothing is planned: the next look would be caused by a request only.
    pub(crate) fn is_asleep(&self) -> bool {
        self.instances.is_empty() && self.look_at.is_none()
    }

    pub(crate) fn arrived(&self) -> u32 {
        count(self.accepted.len())
    }

    pub(crate) fn live(&self) -> u32 {
        count(self.instances.len())
    }

    pub(crate) fn summary(&self) -> String {
        let t = &self.totals;
        format!(
            "{:>9}  {} served, {} refused, {} failed; {} started, woken {}, at most {}; longest wait {}",
            "end",
            t.served,
            t.refused,
            t.failed,
            many(t.started, "instance"),
            many(t.wakes, "time"),
            t.most,
            time(t.longest_wait),
        )
    }
}

fn view(i: &SimInstance) -> InstanceView {
    InstanceView {
        id: i.id.clone(),
        reach: if i.ready {
            Reach::Ready
        } else {
            Reach::Starting
        },
        in_flight: count(i.requests.len()),
        idle_since: i.idle_since,
        started: i.started,
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// `12.345s` since the start.
fn clock(at: Timestamp) -> String {
    format!("{}.{:03}s", at.0 / 1_000_000, at.0 % 1_000_000 / 1_000)
}
