//! A request's way through the world: a slot or the queue, and one end.

use super::*;

impl Simulator {
    pub(super) fn slots(&self) -> (Vec<usize>, Vec<SlotView>) {
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

    pub(super) fn arrive(&mut self) -> Result<(), Broken> {
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

    pub(super) fn serve(
        &mut self,
        index: usize,
        request: u64,
        since: Timestamp,
    ) -> Result<(), Broken> {
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

    pub(super) fn drain(&mut self) -> Result<(), Broken> {
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

    pub(super) fn finish(&mut self, id: &InstanceId, request: u64) -> Result<(), Broken> {
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

    pub(super) fn crash_oldest(&mut self) -> Result<(), Broken> {
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

    pub(super) fn end(&mut self, request: u64) {
        let ends = self.ends.entry(request).or_default();
        *ends += 1;
        assert_eq!(*ends, 1, "request {request} ended twice");
    }
}
