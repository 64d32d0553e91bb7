//! The starter: turns pooled sandboxes into instances.
//!
//! Owns: when layer mounts go, overlays, ids and limits of a start; starts under way. Doesn't: make sandboxes or wait for exits.
//!
//! Each start is driven by its control socket: `Executing`, then end of file (exec happened) or `Failed`.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use utsuwa_model::instance::{InstanceSpec, StartPhases};

use super::protocol::{Channel, Op, Reply, Request, SpawnError};
use super::{Role, SpawnerConfig, Worker, respond, wrong_role};
use crate::keeper::held::Held;
use crate::rootless::Ids;
use crate::sandbox::cgroup::Cgroups;
use crate::sandbox::inside::{FromSandbox, Launch, ToSandbox};
use crate::sandbox::layers::{Layers, Method};
use crate::sandbox::probe::Features;
use crate::sandbox::walls::Wall;
use crate::sandbox::{process, rootfs};

/// A start that takes longer is given up: a thousand times what it should take.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Uppers that are still attached here are let go when nothing else is to do, but never more than this many at once.
const ATTACHED_LIMIT: usize = 64;
/// Nothing came for this long: time for the unmounts, each of which waits for the kernel's RCU.
const IDLE: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Pending {
    request: u64,
    control: Channel,
    began: Instant,
    memory_limit: u64,
    cgroup: crate::sandbox::cgroup::SandboxCgroup,
    overlay: Duration,
    /// Time the sandbox took for its mounts, once it said that exec is next.
    executing: Option<Duration>,
    /// How many volumes it shall have.
    volumes: usize,
    upper: String,
}

/// One request to start.
struct Asked {
    request: u64,
    began: Instant,
    sandbox: u32,
    pid: u32,
}

/// State of the starter.
#[derive(Debug)]
pub(super) struct Starter {
    cgroups: Cgroups,
    mounts: PathBuf,
    layers: Layers,
    pending: Vec<Pending>,
    attached: VecDeque<String>,
    held: Held,
    ids: Ids,
}

impl Starter {
    pub(super) fn new(config: &SpawnerConfig, features: &Features) -> Result<Self, SpawnError> {
        let cgroups = Cgroups::open(&config.id)?;
        let mounts = config.runtime_dir.join("mounts");
        std::fs::create_dir_all(&mounts)
            .map_err(|e| SpawnError::sys("mkdir", e, mounts.display().to_string()))?;
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("utsuwa-mounts", &mounts, "tmpfs", flags, c"mode=700")
            .map_err(|e| SpawnError::sys("mount", e, format!("tmpfs at {}", mounts.display())))?;
        rustix::process::chdir(&mounts)
            .map_err(|e| SpawnError::sys("chdir", e, mounts.display().to_string()))?;
        std::fs::create_dir("empty").map_err(|e| SpawnError::sys("mkdir", e, "empty layer"))?;
        let method = Method::choose(features, &config.images_dir, config.copy_layers);
        Ok(Self {
            cgroups,
            mounts,
            layers: Layers::new(&config.images_dir, method),
            pending: Vec::new(),
            attached: VecDeque::new(),
            held: Held::default(),
            ids: Ids::here(),
        })
    }

    fn layers_of(&mut self, spec: &InstanceSpec) -> Result<Vec<String>, SpawnError> {
        if !(process::ID_COUNT..=u32::MAX - process::ID_COUNT).contains(&spec.rootfs.uid_base) {
            let why = format!(
                "{} leaves no range of {} ids above the host's own",
                spec.rootfs.uid_base,
                process::ID_COUNT
            );
            return Err(SpawnError::Invalid {
                field: "uid base".to_owned(),
                why,
            });
        }
        self.layers.ensure(&spec.rootfs)
    }

    /// `names` are the mounts of its layers.
    fn start(
        &mut self,
        asked: &Asked,
        spec: &InstanceSpec,
        names: &[String],
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), SpawnError> {
        let [control, stdout, stderr]: [OwnedFd; 3] =
            descriptors.try_into().map_err(|given: Vec<OwnedFd>| {
                let why = format!(
                    "a start needs control, stdout and stderr; {} came",
                    given.len()
                );
                SpawnError::Invalid {
                    field: "descriptors".to_owned(),
                    why,
                }
            })?;
        let uid_base = self.ids.of_service(spec.rootfs.uid_base);
        if Wall::UserNamespace.stands() {
            process::map_ids(asked.pid, 0, uid_base, self.ids.count())?;
        }
        let cgroup = self.cgroups.sandbox(asked.sandbox);
        if Wall::Cgroup.stands() {
            cgroup.apply(&spec.limits)?;
        }
        for stream in [&stdout, &stderr] {
            // Programs open /dev/stdout anew (nginx): the pipe must let another user write. Only the keeper can reach its path.
            rustix::fs::fchmod(stream, Mode::from_raw_mode(0o622))
                .map_err(|e| SpawnError::sys("fchmod", e, "log pipe"))?;
        }
        let overlay_began = Instant::now();
        let root = rootfs::mount(names, uid_base, spec.limits.memory.0, asked.sandbox)?;
        let overlay = overlay_began.elapsed();
        let launch = ToSandbox::Launch(Launch {
            args: spec.process.args.clone(),
            env: spec.process.env.clone(),
            cwd: spec.process.cwd.clone(),
            user: spec.process.user.clone(),
            volumes: spec.volumes.clone(),
            one_id: self.ids.count() == 1,
            processes: (!self.cgroups.limits()).then_some(spec.limits.pids),
        });
        let control = Channel::from(control);
        self.attached.push_back(root.upper.clone());
        control
            .send(
                &launch,
                &[
                    root.root.as_fd(),
                    root.shm.as_fd(),
                    stdout.as_fd(),
                    stderr.as_fd(),
                ],
            )
            .map_err(|e| SpawnError::SandboxGone {
                detail: format!("sending it its program: {e}"),
            })?;
        self.pending.push(Pending {
            request: asked.request,
            control,
            began: asked.began,
            memory_limit: spec.limits.memory.0,
            cgroup,
            overlay,
            executing: None,
            volumes: spec.volumes.len(),
            upper: root.upper,
        });
        Ok(())
    }

    /// The sandbox's socket has something: a message, or the end.
    fn advance(pending: &mut Pending) -> Option<Result<StartPhases, SpawnError>> {
        match pending.control.receive::<FromSandbox>() {
            Ok(Some((FromSandbox::Executing { mounts, volumes }, _))) => {
                if volumes != pending.volumes {
                    // Pooled by a build that knew no volumes: an app must not write to its root what it believes to be elsewhere.
                    return Some(Err(SpawnError::SandboxGone {
                        detail: "it was made by an older build, which mounts no volumes".to_owned(),
                    }));
                }
                pending.executing = Some(mounts);
                None
            }
            Ok(Some((FromSandbox::Failed(error), _))) => Some(Err(error)),
            Ok(Some((FromSandbox::Staged, _))) => None,
            Ok(None) => Some(match pending.executing {
                Some(mounts) => {
                    let rootfs = pending.overlay + mounts;
                    let exec = pending.began.elapsed().saturating_sub(rootfs);
                    Ok(StartPhases {
                        sandbox: Duration::ZERO,
                        rootfs,
                        exec,
                    })
                }
                None if pending.cgroup.oom_kills().is_some_and(|kills| kills > 0) => {
                    Err(SpawnError::MemoryLimit {
                        limit: pending.memory_limit,
                    })
                }
                None => Err(SpawnError::SandboxGone {
                    detail: "its control socket closed".to_owned(),
                }),
            }),
            Err(error) => Some(Err(SpawnError::sys(
                "recvmsg",
                error,
                "control socket of a sandbox",
            ))),
        }
    }
}

impl Worker for Starter {
    fn serve(&mut self, channel: &Channel, request: Request, descriptors: Vec<OwnedFd>) {
        let result = match request.op {
            Op::Start {
                sandbox,
                pid,
                spec,
                net: _,
            } => {
                let began = Instant::now();
                let names = match self.layers_of(&spec) {
                    Ok(names) => names,
                    Err(error) => {
                        let given: Vec<BorrowedFd<'_>> =
                            descriptors.iter().map(AsFd::as_fd).collect();
                        return respond(channel, request.id, Err(error), &given);
                    }
                };
                let asked = Asked {
                    request: request.id,
                    began,
                    sandbox,
                    pid,
                };
                match self.start(&asked, &spec, &names, descriptors) {
                    Ok(()) => return,
                    Err(error) => Err(error),
                }
            }
            Op::Prepare { rootfs } => self.layers.ensure(&rootfs).map(|_| Reply::Done),
            Op::RemoveLayer { diff_id } => self.layers.forget_layer(&diff_id).map(|()| Reply::Done),
            Op::ReleaseIds { uid_base } => {
                self.layers.forget_ids(uid_base);
                Ok(Reply::Done)
            }
            Op::Hold { name } => {
                self.held.hold(name, descriptors);
                return;
            }
            Op::Release { name } => {
                self.held.release(&name);
                return;
            }
            Op::MakeSandbox { .. } => Err(wrong_role("MakeSandbox", Role::Starter)),
            Op::DestroySandbox { .. } => Err(wrong_role("DestroySandbox", Role::Starter)),
            Op::Unpack { .. } => Err(wrong_role("Unpack", Role::Starter)),
            Op::RefusalSockets => Err(wrong_role("RefusalSockets", Role::Starter)),
            Op::Reclaim { .. } => Err(wrong_role("Reclaim", Role::Starter)),
            Op::RemoveOldLogs => Err(wrong_role("RemoveOldLogs", Role::Starter)),
        };
        respond(channel, request.id, result, &[]);
    }

    fn end(self: Box<Self>) -> Held {
        // A successor in this process must not inherit our mounts into every sandbox it makes.
        let _ = rustix::process::chdir("/");
        let _ = rustix::mount::unmount(&self.mounts, rustix::mount::UnmountFlags::DETACH);
        self.held
    }

    fn waiting(&self) -> Vec<BorrowedFd<'_>> {
        self.pending
            .iter()
            .map(|pending| pending.control.as_fd())
            .collect()
    }

    fn wake(&mut self, channel: &Channel, index: usize) {
        let Some(result) = self.pending.get_mut(index).and_then(Self::advance) else {
            return;
        };
        let done = self.pending.remove(index);
        respond(
            channel,
            done.request,
            result.map(|phases| Reply::Started { phases }),
            &[],
        );
    }

    fn next_tick(&self) -> Option<Duration> {
        // Uppers of starts under way can't go yet: looking again and again would only take time from them.
        let too_many = self.attached.len() > ATTACHED_LIMIT.max(self.pending.len());
        if too_many || self.layers.is_behind() {
            return Some(Duration::ZERO);
        }
        let unmounts = !self.attached.is_empty() || self.layers.has_too_many();
        if unmounts && self.pending.is_empty() {
            return Some(IDLE);
        }
        self.pending
            .iter()
            .map(|pending| START_DEADLINE.saturating_sub(pending.began.elapsed()))
            .min()
    }

    fn tick(&mut self, channel: &Channel) {
        let at_once = if self.attached.len() > ATTACHED_LIMIT {
            ATTACHED_LIMIT / 2
        } else {
            1
        };
        for _ in 0..at_once {
            // One at a time: a request that comes meanwhile waits for one unmount only. Uppers of starts under way stay.
            let free = self
                .attached
                .iter()
                .position(|upper| self.pending.iter().all(|pending| pending.upper != *upper));
            let Some(upper) = free.and_then(|index| self.attached.remove(index)) else {
                break;
            };
            rootfs::release(&upper);
        }
        if self.attached.is_empty() || self.layers.is_behind() {
            self.layers.let_go();
        }
        let late: Vec<usize> = (0..self.pending.len())
            .rev()
            .filter(|index| self.pending[*index].began.elapsed() >= START_DEADLINE)
            .collect();
        for index in late {
            let given_up = self.pending.remove(index);
            let at = if given_up.executing.is_some() {
                "executing the program"
            } else {
                "preparing its files"
            };
            let error = SpawnError::Timeout {
                seconds: START_DEADLINE.as_secs(),
                at: at.to_owned(),
            };
            respond(channel, given_up.request, Err(error), &[]);
        }
    }
}
