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

    fn slots(&self) -> (Vec<usize>, Vec<SlotView>) {
        let limit = self.settings.container_concurrency;
        self.instances
            .iter()
            .enumerate()
            .filter(|(_, i)| i.ready)
            .map(|(index, i)| {
                (
                    index,
                    SlotView {
                        in_flight: count(i.requests.len()),
                        limit,
                    },
                )
            })
            .unzip()
    }

    fn arrive(&mut self) -> Result<(), Broken> {
        self.arrivals += 1;
        self.last_active = Some(self.now);
        let request = self.arrivals;
        self.accepted.insert(request);
        let (index, slots) = self.slots();
        let starting = count(self.instances.len() - slots.len());
        match admit::admit(
            &slots,
            None,
            count(self.queue.len()),
            starting,
            self.dice.roll(),
        ) {
            Admission::Take(slot) => self.serve(index[slot], request, self.now),
            Admission::Wait { wake } => {
                self.queue.push_back((request, self.now));
                self.schedule(
                    self.now.plus(admit::pending_window(Some(self.startup))),
                    Event::GiveUp(request),
                );
                if wake && !self.wake_raised {
                    self.wake_raised = true;
                    self.totals.wakes += 1;
                    return self.look();
                }
                // Somebody is there or on the way: the loop looks soon, not for each request.
                self.look_by(self.now.plus(scale::QUEUE_LOOK));
                Ok(())
            }
            Admission::QueueFull => {
                self.end(request);
                self.totals.refused += 1;
                Ok(())
            }
        }
    }

    fn serve(&mut self, index: usize, request: u64, since: Timestamp) -> Result<(), Broken> {
        self.totals.longest_wait = self.totals.longest_wait.max(self.now.since(since));
        let instance = &mut self.instances[index];
        invariant::may_route(
            &instance.id,
            if instance.ready {
                &Reach::Ready
            } else {
                &Reach::Starting
            },
            &self.gone,
        )?;
        instance.requests.insert(request);
        instance.idle_since = None;
        // The ingress asks for it with the request.
        let before = std::mem::take(&mut instance.tier);
        if before != Tier::Awake && self.tell_tiers {
            self.story.push(format!(
                "{:>9}  a request thaws an instance",
                clock(self.now)
            ));
        }
        let instance = &self.instances[index];
        let limit = self.settings.container_concurrency;
        assert!(
            limit == 0 || count(instance.requests.len()) <= limit,
            "more requests inside than slots"
        );
        let finish = Event::Finish(instance.id.clone(), request);
        self.schedule(self.now.plus(self.service), finish);
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Broken> {
        while !self.queue.is_empty() {
            let (index, slots) = self.slots();
            let Some(slot) = admit::choose_instance(&slots, self.dice.roll()) else {
                break;
            };
            let Some((request, since)) = self.queue.pop_front() else {
                break;
            };
            self.serve(index[slot], request, since)?;
        }
        Ok(())
    }

    fn finish(&mut self, id: &InstanceId, request: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(instance) = self.instances.iter_mut().find(|i| i.id == *id) else {
            return Ok(());
        };
        instance.requests.remove(&request);
        let idle = instance.requests.is_empty();
        if idle {
            instance.idle_since = Some(now);
        }
        self.last_active = Some(now);
        self.end(request);
        self.totals.served += 1;
        self.drain()?;
        if idle { self.look() } else { Ok(()) }
    }

    fn crash_oldest(&mut self) -> Result<(), Broken> {
        if self.instances.is_empty() {
            return Ok(());
        }
        let dead = self.instances.remove(0);
        for request in &dead.requests {
            self.end(*request);
            self.totals.failed += 1;
        }
        self.gone.insert(dead.id);
        self.story
            .push(format!("{:>9}  an instance crashed", clock(self.now)));
        self.look()
    }

    fn end(&mut self, request: u64) {
        let ends = self.ends.entry(request).or_default();
        *ends += 1;
        assert_eq!(*ends, 1, "request {request} ended twice");
    }

    /// One pass of the loop.
    fn look(&mut self) -> Result<(), Broken> {
        self.totals.looks += 1;
        let sample = Sample {
            at: self.now,
            concurrency_us: self.concurrency_us,
            arrivals: self.arrivals,
        };
        self.history.push(sample, self.settings.stable_window);
        let ready = count(self.instances.iter().filter(|i| i.ready).count());
        let input = ScaleInput {
            now: self.now,
            settings: &self.settings,
            history: &self.history,
            in_flight: self.in_flight(),
            queued: count(self.queue.len()),
            last_active: self.last_active,
            ready,
            starting: count(self.instances.len()) - ready,
            idle_since: self.instances.iter().filter_map(|i| i.idle_since).max(),
            routed: self.routed,
            proving: false,
        };
        let decision = scale::look(&input, &mut self.state);
        let views: Vec<InstanceView> = self.instances.iter().map(view).collect();
        let plan = instances::plan(decision.desired, self.settings.max, &views);
        invariant::retires_idle_only(&plan.retire, &views)?;
        let before = count(self.instances.len());
        for id in &plan.retire {
            self.instances.retain(|i| i.id != *id);
            self.gone.insert(id.clone());
        }
        for _ in 0..plan.start {
            self.start();
        }
        let after = count(self.instances.len());
        invariant::at_most_max(before, after, self.settings.max)?;
        self.totals.most = self.totals.most.max(after);
        if self.last_desired != Some(decision.desired) || !plan.is_rest() {
            let mut line = format!("{:>9}  {}", clock(self.now), decision.because.summary);
            if !plan.is_rest() {
                line.push_str(&format!(" → {}", plan.because.summary));
            }
            self.story.push(line);
            self.last_desired = Some(decision.desired);
        }
        if let Some(at) = decision.wake_at {
            self.look_by(at);
        }
        self.look_at_tiers()
    }

    /// The same pass, on how much of the instances stays awake.
    fn look_at_tiers(&mut self) -> Result<(), Broken> {
        let barred = self.no_swap.clone().map(|why| (Tier::Reclaimed, why));
        let views: Vec<TierView> = self
            .instances
            .iter()
            .map(|i| TierView {
                id: i.id.clone(),
                ready: i.ready,
                in_flight: count(i.requests.len()),
                idle_since: i.idle_since,
                tier: i.tier,
                under_way: false,
                not_before: None,
                barred: barred.clone(),
            })
            .collect();
        let settings = TierSettings {
            throttled: self.throttled,
            retention: self.settings.retention,
            keeps_some: self.settings.min > 0 || self.settings.manual.is_some_and(|n| n > 0),
        };
        let plan = tiers::plan(&views, &settings, self.now);
        invariant::freezes_idle_only(&plan, &views)?;
        for (ids, tier) in [
            (&plan.freeze, Tier::Frozen),
            (&plan.reclaim, Tier::Reclaimed),
            (&plan.thaw, Tier::Awake),
        ] {
            for instance in self.instances.iter_mut().filter(|i| ids.contains(&i.id)) {
                instance.tier = tier;
            }
        }
        let summary = plan.because.map(|b| b.summary).unwrap_or_default();
        let acts = !plan.freeze.is_empty() || !plan.reclaim.is_empty() || !plan.thaw.is_empty();
        // Counts alone are no news.
        let news = acts
            || (summary != self.last_tiers
                && (!summary.contains(" awake, ") || summary.contains(';')));
        if self.tell_tiers && news && !summary.is_empty() {
            self.story
                .push(format!("{:>9}  {summary}", clock(self.now)));
        }
        self.last_tiers = summary;
        // What was just done may have a next step.
        let next = if acts { Some(self.now) } else { plan.next };
        if let Some(at) = next {
            self.look_by(at);
        }
        Ok(())
    }

    /// The earliest wish wins.
    fn look_by(&mut self, at: Timestamp) {
        if self.look_at.is_none_or(|planned| at < planned) {
            self.look_at = Some(at);
            self.look_era += 1;
            self.schedule(at, Event::Look(self.look_era));
        }
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
