//! Instances without CPU, and without their memory: as the server asks.
//!
//! What is frozen is read from the cgroup, never remembered: a keeper after this one sees the same. That memory was given back
//! is forgotten with the keeper; giving it back once more costs little.
//!
//! Invariants:
//! 1. Nothing starting or stopping is frozen, and what stops or is killed is thawed: on v1 no signal reaches the frozen.
//! 2. Only the frozen give memory back.
//! 3. With a server that can't thaw, and for the keeper after this one, which may be of an earlier build, nothing stays frozen.

use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Kernel, Tier};

use super::core::Keeper;
use super::instances::{Instance, Phase};
use super::protocol::{KeeperError, Reply};
use super::spawners::{HOUSEKEEPER, Pending, STARTER, to_keeper_error};
use crate::sandbox::cgroup::{FreezeError, SandboxCgroup};
use crate::sandbox::reclaim;
use crate::spawner::SpawnError;
use crate::spawner::protocol::{Op as SpawnOp, Start};

/// Who waits for memory to be given back, and how much there was.
#[derive(Debug)]
pub(crate) struct Reclaim {
    session: u32,
    request: u64,
    id: InstanceId,
    before_bytes: u64,
}

const NO_CGROUPS: &str = "this host has no cgroups";

impl Keeper {
    /// Why nothing can be frozen here; empty where it can.
    pub(crate) fn never_freezes(&self) -> &'static str {
        match &self.cgroups {
            Some(cgroups) => cgroups.never_freezes().unwrap_or_default(),
            None => NO_CGROUPS,
        }
    }

    pub(crate) fn freeze(&mut self, id: &InstanceId) -> Result<Reply, KeeperError> {
        let instance = self
            .instances
            .get(id)
            .ok_or_else(|| KeeperError::NotFound(id.clone()))?;
        if self.ending.is_some() {
            let text = "this keeper is ending; the next one may not know how to thaw";
            return Err(KeeperError::Exhausted(text.to_owned()));
        }
        if instance.stop.is_some() {
            // Its server hears of its end soon.
            return Err(KeeperError::NotFound(id.clone()));
        }
        if !matches!(instance.phase, Phase::Running) || !instance.record.is_whole() {
            let text = format!("instance {id} starts, which it needs its CPU for");
            return Err(KeeperError::Internal(text));
        }
        if self.cgroups.is_none() {
            return Err(KeeperError::Refused(NO_CGROUPS.to_owned()));
        }
        let frozen = self
            .cgroups_of(instance)
            .try_for_each(|cgroup| cgroup.freeze());
        if frozen.is_err() {
            // All of it or nothing.
            self.thaw_instance(id);
        }
        match frozen {
            Ok(()) => {
                self.learn_from(id, false);
                Ok(Reply::Done)
            }
            Err(FreezeError::Impossible(why)) => Err(KeeperError::Refused(why)),
            Err(FreezeError::Sys(error)) => Err(KeeperError::Internal(error.to_string())),
        }
    }

    /// At rest, and before it `ends`, it has looked up what a start and its requests need. Nobody starts any more while all ends.
    pub(super) fn learn_from(&mut self, id: &InstanceId, ends: bool) {
        let Some(instance) = self.instances.get(id).filter(|_| self.ending.is_none()) else {
            return;
        };
        let record = &instance.record;
        if record.spec.kernel == Kernel::Host && record.spec.group.is_none() && record.is_whole() {
            let start = Start::of(&record.spec);
            let pid = record.process.pid;
            self.tell(STARTER, SpawnOp::Learn { start, pid, ends }, Vec::new());
        }
    }

    /// Those of all its containers; none on a host without cgroups.
    fn cgroups_of(&self, instance: &Instance) -> impl Iterator<Item = SandboxCgroup> {
        let numbers = instance.record.sandboxes().into_iter();
        self.cgroups
            .iter()
            .flat_map(move |cgroups| numbers.clone().map(|number| cgroups.sandbox(number)))
    }

    pub(crate) fn thaw(&mut self, id: &InstanceId) -> Result<Reply, KeeperError> {
        let instance = self
            .instances
            .get_mut(id)
            .ok_or_else(|| KeeperError::NotFound(id.clone()))?;
        instance.reclaimed = false;
        let Some(instance) = self.instances.get(id) else {
            return Ok(Reply::Done);
        };
        self.cgroups_of(instance)
            .try_for_each(|cgroup| cgroup.thaw())
            .map(|()| Reply::Done)
            .map_err(|error| KeeperError::Internal(error.to_string()))
    }

    /// Has the memory of a frozen instance written out, which takes a while; [`Keeper::reclaimed`] answers.
    pub(crate) fn reclaim(
        &mut self,
        session: u32,
        request: u64,
        id: &InstanceId,
    ) -> Result<(), KeeperError> {
        let before_bytes = self.frozen_bytes(id)?;
        if self.runs_on(id, Kernel::Gvisor) {
            return Err(KeeperError::Refused(reclaim::GVISOR.to_owned()));
        }
        reclaim::swap().map_err(KeeperError::Refused)?;
        let pending = Pending::Reclaim(Reclaim {
            session,
            request,
            id: id.clone(),
            before_bytes,
        });
        let mut others = self.allow_swap(id, true)?;
        let sandbox = others.remove(0);
        let op = SpawnOp::Reclaim { sandbox, others };
        self.ask(HOUSEKEEPER, op, Vec::new(), pending);
        Ok(())
    }

    pub(super) fn runs_on(&self, id: &InstanceId, kernel: Kernel) -> bool {
        let instance = self.instances.get(id);
        instance.is_some_and(|instance| instance.record.spec.kernel == kernel)
    }

    /// It is done, unless it was thawed meanwhile.
    pub(crate) fn reclaimed(&mut self, reclaim: &Reclaim, result: Result<(), SpawnError>) {
        let id = &reclaim.id;
        let kept = self
            .allow_swap(id, false)
            .and_then(|_| result.map_err(|error| to_keeper_error(&error)))
            .and_then(|()| self.frozen_bytes(id));
        if let (Ok(_), Some(instance)) = (&kept, self.instances.get_mut(id)) {
            instance.reclaimed = true;
        }
        let reply = kept.map(|after_bytes| Reply::Reclaimed {
            before_bytes: reclaim.before_bytes,
            after_bytes,
        });
        self.reply(reclaim.session, reclaim.request, reply, Vec::new());
    }

    /// Whether the kernel may write out pages of it: only while we ask for that. Answers its
    /// sandboxes, at least one.
    pub(super) fn allow_swap(
        &self,
        id: &InstanceId,
        allowed: bool,
    ) -> Result<Vec<u32>, KeeperError> {
        let instance = self
            .instances
            .get(id)
            .ok_or_else(|| KeeperError::NotFound(id.clone()))?;
        self.cgroups_of(instance)
            .try_for_each(|cgroup| cgroup.allow_swap(allowed))
            .map(|()| instance.record.sandboxes())
            .map_err(|error| KeeperError::Internal(error.to_string()))
    }

    /// What a frozen instance has in memory.
    fn frozen_bytes(&self, id: &InstanceId) -> Result<u64, KeeperError> {
        let instance = self
            .instances
            .get(id)
            .ok_or_else(|| KeeperError::NotFound(id.clone()))?;
        if self.tier(instance) == Tier::Awake {
            let text = format!("instance {id} is awake and needs its memory");
            return Err(KeeperError::Internal(text));
        }
        let used = self
            .cgroups_of(instance)
            .map(|cgroup| cgroup.usage().map(|usage| usage.memory_bytes));
        used.sum::<Result<u64, _>>()
            .map_err(|error| KeeperError::Internal(error.to_string()))
    }

    /// So that a signal reaches what is in it.
    pub(crate) fn thaw_sandbox(&self, number: u32) {
        let thawed = self
            .cgroups
            .as_ref()
            .map_or(Ok(()), |cgroups| cgroups.sandbox(number).thaw());
        if let Err(error) = thawed {
            tracing::error!(number, %error, "thaw a sandbox that is to end");
        }
    }

    /// For a server or a keeper that doesn't know that instances may be frozen.
    pub(crate) fn thaw_all(&self) {
        for id in self.instances.keys() {
            self.thaw_instance(id);
        }
    }

    /// So that a signal reaches all of it.
    pub(crate) fn thaw_instance(&self, id: &InstanceId) {
        for number in self
            .instances
            .get(id)
            .map_or_else(Vec::new, |instance| instance.record.sandboxes())
        {
            self.thaw_sandbox(number);
        }
    }

    /// As its cgroup says.
    pub(crate) fn tier(&self, instance: &Instance) -> Tier {
        let mut all = self.cgroups_of(instance).peekable();
        let frozen = all.peek().is_some() && all.all(|cgroup| cgroup.is_frozen());
        match (frozen, instance.reclaimed) {
            (false, _) => Tier::Awake,
            (true, false) => Tier::Frozen,
            (true, true) => Tier::Reclaimed,
        }
    }
}
