//! The passes of the loop: the product's decisions, carried out and checked.

use super::*;

impl Simulator {
    /// One pass of the loop.
    pub(super) fn look(&mut self) -> Result<(), Broken> {
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
    pub(super) fn look_at_tiers(&mut self) -> Result<(), Broken> {
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
    pub(super) fn look_by(&mut self, at: Timestamp) {
        if self.look_at.is_none_or(|planned| at < planned) {
            self.look_at = Some(at);
            self.look_era += 1;
            self.schedule(at, Event::Look(self.look_era));
        }
    }
}
