//! The housekeeper: everything that takes longer than a wake may.
//!
//! Owns: making pooled sandboxes, their cgroups and networks, and taking them down; unpacking, copying and deleting layers
//! and old logs, each in a child; looking whether the network's rules still stand. Doesn't: start programs in them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::chores::{self, Chore, Ended};
use super::making::Newborn;
use super::protocol::{Channel, Op, Reply, Request, SpawnError};
use super::turn::Turn;
use super::unpacker::{Finished, Job};
use super::{Role, SpawnerConfig, Worker, respond, wrong_role};
use crate::keeper::held::Held;
use crate::network::Gateway;
use crate::rootless::Ids;
use crate::sandbox::cgroup::{Cgroups, SandboxCgroup};
use crate::sandbox::inside::Plan;
use crate::sandbox::layers::Method;
use crate::sandbox::probe::Features;
use crate::sandbox::{seccomp, shift, stage};

/// A cgroup can't be removed while a process is still ending in it; this is how long and how often we look again.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);
const REMOVE_INTERVAL: Duration = Duration::from_millis(5);
/// Sandboxes raised together at most: what the keeper asks for at once.
const TOGETHER: usize = 16;

#[derive(Debug)]
pub(super) struct Removal {
    /// `None`: nobody waits for it.
    pub(super) request: Option<u64>,
    pub(super) cgroup: SandboxCgroup,
    pub(super) began: Instant,
}

/// State of the housekeeper.
#[derive(Debug)]
pub(super) struct Housekeeper {
    /// Until it ends, no other one makes anything.
    _turn: Turn,
    pub(super) cgroups: Cgroups,
    pub(super) gateway: Option<Gateway>,
    pub(super) plan: Plan,
    pub(super) ids: Ids,
    pub(super) newborns: Vec<Newborn>,
    pub(super) images: PathBuf,
    /// Free bytes that unpacking leaves.
    pub(super) disk_reserve: u64,
    pub(super) logs: Option<PathBuf>,
    pub(super) method: Method,
    pub(super) removals: Vec<Removal>,
    jobs: Vec<Job>,
    pub(super) chores: Vec<Chore>,
}

impl Housekeeper {
    pub(super) fn new(
        config: &SpawnerConfig,
        features: &Features,
        turn: Turn,
    ) -> Result<Self, SpawnError> {
        let cgroups = Cgroups::open(&config.id)?;
        let v1_controllers = (!cgroups.is_v2()).then(|| {
            if !cgroups.limits() {
                // What is there is not the instance's.
                return Vec::new();
            }
            let mut shown = features.v1_controllers();
            if !cgroups.enter_cpuset() {
                shown.retain(|controllers| controllers != "cpuset");
            }
            shown
        });
        let stage = stage::build(
            &config.runtime_dir.join("stage"),
            v1_controllers.as_deref().unwrap_or_default(),
        )?;
        let gateway = match &config.network {
            Some(network) => Some(
                Gateway::set_up(network).map_err(|e| SpawnError::Network { why: e.to_string() })?,
            ),
            None => None,
        };
        let plan = Plan {
            stage,
            v1_controllers,
            filter: seccomp::compile(),
            filter_for_gvisor: seccomp::compile_for_gvisor(),
        };
        let mut housekeeper = Self {
            _turn: turn,
            cgroups,
            gateway,
            plan,
            ids: Ids::here(),
            images: config.images_dir.clone(),
            disk_reserve: config.disk_reserve,
            newborns: Vec::new(),
            logs: config.logs_dir.clone(),
            method: Method::choose(features, &config.images_dir, config.copy_layers),
            removals: Vec::new(),
            jobs: Vec::new(),
            chores: Vec::new(),
        };
        let mut rubbish = chores::left_over(&housekeeper.images);
        rubbish.extend(housekeeper.removed_logs());
        housekeeper.throw_away(&rubbish);
        Ok(housekeeper)
    }

    fn destroy(&mut self, channel: &Channel, request: u64, sandbox: u32) {
        if let Some(gateway) = &mut self.gateway
            && let Err(error) = gateway.detach(sandbox)
        {
            respond(
                channel,
                request,
                Err(SpawnError::Network {
                    why: error.to_string(),
                }),
                &[],
            );
            return;
        }
        self.removals.push(Removal {
            request: Some(request),
            cgroup: self.cgroups.sandbox(sandbox),
            began: Instant::now(),
        });
        self.remove_cgroups(channel);
    }

    fn remove_cgroups(&mut self, channel: &Channel) {
        self.removals.retain(|removal| {
            let result = match removal.cgroup.remove() {
                Err(SpawnError::Sys { errno: libc::EBUSY, .. }) if removal.began.elapsed() < REMOVE_DEADLINE => return true,
                other => other,
            };
            match (removal.request, result) {
                (Some(request), result) => respond(channel, request, result.map(|()| Reply::Done), &[]),
                (None, Err(error)) => tracing::warn!(%error, "the cgroup of a sandbox that could not be made stays behind"),
                (None, Ok(())) => {}
            }
            false
        });
    }
}

impl Worker for Housekeeper {
    fn serve(&mut self, channel: &Channel, request: Request, mut descriptors: Vec<OwnedFd>) {
        let id = request.id;
        let result = match request.op {
            Op::MakeSandbox { sandbox } => match self.make(id, sandbox) {
                Ok(()) => {
                    if self.newborns.len() >= TOGETHER {
                        self.raise(channel);
                    }
                    return;
                }
                Err(error) => Err(error),
            },
            Op::JoinSandbox { sandbox } => {
                self.join(channel, id, sandbox, descriptors);
                return;
            }
            Op::DestroySandbox { sandbox } => {
                self.destroy(channel, id, sandbox);
                return;
            }
            Op::Unpack {
                diff_id,
                media_type,
            } => match Job::begin(
                id,
                &self.images,
                &diff_id,
                &media_type,
                descriptors.pop(),
                self.disk_reserve,
            ) {
                Ok(job) => {
                    self.jobs.push(job);
                    return;
                }
                Err(error) => Err(error),
            },
            Op::RemoveLayer { diff_id } => {
                let chore = self
                    .layer_and_copies(&diff_id)
                    .and_then(|trees| Chore::remove(Some(id), &trees));
                return self.begin(channel, id, chore);
            }
            Op::Prepare { rootfs } => {
                let chore = self.prepare(id, &rootfs);
                return self.begin(channel, id, chore);
            }
            Op::ReleaseIds { uid_base } => {
                let chore = Chore::remove(Some(id), &[shift::all_of(&self.images, uid_base)]);
                return self.begin(channel, id, chore);
            }
            Op::Reclaim { sandbox, others } => {
                let all = std::iter::once(sandbox).chain(others);
                let all = all.map(|number| self.cgroups.sandbox(number)).collect();
                let chore = Chore::reclaim(id, all).map(Some);
                return self.begin(channel, id, chore);
            }
            Op::RemoveOldLogs => {
                let chore = Chore::remove(Some(id), &self.removed_logs());
                return self.begin(channel, id, chore);
            }
            Op::RefusalSockets => {
                let sockets = match &self.gateway {
                    Some(gateway) => gateway
                        .refusal_sockets()
                        .map_err(|e| SpawnError::Network { why: e.to_string() }),
                    None => Ok(Vec::new()),
                };
                match sockets {
                    Ok(sockets) => {
                        let borrowed: Vec<BorrowedFd<'_>> =
                            sockets.iter().map(AsFd::as_fd).collect();
                        respond(channel, id, Ok(Reply::Done), &borrowed);
                        return;
                    }
                    Err(error) => Err(error),
                }
            }
            Op::Learn { .. } => Err(wrong_role("Learn", Role::Housekeeper)),
            Op::Hold { .. } => Err(wrong_role("Hold", Role::Housekeeper)),
            Op::Release { .. } => Err(wrong_role("Release", Role::Housekeeper)),
            Op::Start { .. } => Err(wrong_role("Start", Role::Housekeeper)),
        };
        respond(channel, id, result, &[]);
    }

    fn end(self: Box<Self>) -> Held {
        Held::default()
    }

    fn waiting(&self) -> Vec<BorrowedFd<'_>> {
        let jobs = self.jobs.iter().map(Job::waits_for);
        jobs.chain(self.chores.iter().map(Chore::waits_for))
            .chain(self.gateway.iter().map(Gateway::news))
            .collect()
    }

    /// Jobs first, then chores, then the gateway, as in `waiting`; indices come highest first, so that what was removed moves none to come.
    fn wake(&mut self, channel: &Channel, index: usize) {
        if let Some(job) = self.jobs.get_mut(index) {
            if job.advance() {
                let Finished { request, result } = self.jobs.remove(index).finish();
                respond(channel, request, result, &[]);
            }
            return;
        }
        let index = index - self.jobs.len();
        if index >= self.chores.len() {
            if let Some(gateway) = &mut self.gateway {
                gateway.look();
            }
            return;
        }
        if self.chores.get_mut(index).is_some_and(Chore::advance) {
            let Ended {
                request,
                result,
                rubbish,
            } = self.chores.remove(index).finish();
            match (request, result) {
                (Some(request), result) => respond(channel, request, result, &[]),
                (None, Err(error)) => tracing::warn!(%error, "the next start tries again"),
                (None, Ok(_)) => {}
            }
            self.throw_away(&rubbish);
        }
    }

    fn next_tick(&self) -> Option<Duration> {
        let look = self.gateway.as_ref().map(Gateway::next_look);
        let own = if !self.newborns.is_empty() {
            // As soon as no other request waits to be read.
            Some(Duration::ZERO)
        } else if self.removals.is_empty() {
            None
        } else {
            Some(REMOVE_INTERVAL)
        };
        own.into_iter().chain(look).min()
    }

    fn tick(&mut self, channel: &Channel) {
        self.raise(channel);
        self.remove_cgroups(channel);
        if let Some(gateway) = &mut self.gateway
            && gateway.next_look().is_zero()
        {
            gateway.look();
        }
    }
}
