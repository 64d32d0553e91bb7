//! The starter: turns pooled sandboxes into instances.
//!
//! Owns: ids and limits of a start; starts under way. Doesn't: make sandboxes or wait for exits. What it does while nothing starts
//! is in `idle`.
//!
//! Each start is driven by its control socket: `Executing`, then end of file (exec happened) or `Failed`.

mod idle;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use utsuwa_model::host_dir::HostDir;
use utsuwa_model::instance::{InstanceSpec, Kernel};

use super::pending::Pending;
use super::protocol::{Channel, Member, Op, Reply, Request, SpawnError};
use super::roots::{Kind, Roots};
use super::shared::{self, Shared};
use super::trails::{Start, Trails};
use super::uppers::Uppers;
use super::{Role, SpawnerConfig, Worker, respond, wrong_role};
use crate::keeper::held::Held;
use crate::keeper::{held_sandbox, unfinished_name};
use crate::rootless::Ids;
use crate::sandbox::cgroup::Cgroups;
use crate::sandbox::inside::{Launch, ToSandbox};
use crate::sandbox::layers::{Layers, Method};
use crate::sandbox::probe::Features;
use crate::sandbox::trail;
use crate::sandbox::walls::Wall;
use crate::sandbox::zygote::Ear;
use crate::sandbox::{gvisor, host_dirs, process};

/// A start that takes longer is given up: a thousand times what it should take.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// One request to start.
struct Asked {
    request: u64,
    began: Instant,
    sandbox: u32,
    pid: u32,
    member: Option<Member>,
    limited: bool,
}

/// State of the starter.
#[derive(Debug)]
pub(super) struct Starter {
    cgroups: Cgroups,
    mounts: PathBuf,
    layers: Layers,
    /// The keeper's rules: what a request names is looked up here.
    host_dirs: Vec<HostDir>,
    pending: Vec<Pending>,
    attached: VecDeque<String>,
    uppers: Uppers,
    shared: Shared,
    trails: Trails,
    roots: Roots,
    /// For a successor, and which starts were not finished.
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
            host_dirs: config.host_dirs.clone(),
            pending: Vec::new(),
            attached: VecDeque::new(),
            uppers: Uppers::default(),
            shared: Shared::default(),
            trails: Trails::default(),
            roots: Roots::here(),
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
        let (runsc, limits) = match spec.kernel {
            Kernel::Host => (None, spec.limits),
            Kernel::Gvisor if self.ids != Ids::OfEachService => {
                return Err(SpawnError::Invalid {
                    field: "executionEnvironment".to_owned(),
                    why: "gen1 (gVisor) needs a server that was started by root; deploy with --execution-environment=gen2"
                        .to_owned(),
                });
            }
            Kernel::Gvisor => (Some(gvisor::open()?), gvisor::with_allowance(&spec.limits)),
        };
        let member = asked.member.as_ref();
        let uid_base = self.ids.of_service(spec.rootfs.uid_base);
        shared::map_ids(asked.pid, member, uid_base, self.ids.count())?;
        let cgroup = self.cgroups.sandbox(asked.sandbox);
        if Wall::Cgroup.stands() && !(asked.limited && spec.kernel == Kernel::Host) {
            cgroup.apply(&limits)?;
        }
        for stream in [&stdout, &stderr] {
            // Programs open /dev/stdout anew (nginx): the pipe must let another user write. Only the keeper can reach its path.
            rustix::fs::fchmod(stream, Mode::from_raw_mode(0o622))
                .map_err(|e| SpawnError::sys("fchmod", e, "log pipe"))?;
        }
        // Before there is a root that would have to go again.
        let trees = host_dirs::trees(&self.host_dirs, &spec.host_dirs, uid_base)?;
        let overlay_began = Instant::now();
        let kind = Kind {
            start: Start::of(spec),
            memory_bytes: spec.limits.memory.0,
        };
        let ahead = (spec.kernel == Kernel::Host && spec.zygote.is_none())
            .then(|| self.roots.take(&kind))
            .flatten();
        let root = match ahead {
            Some(root) => root,
            None => {
                let upper = self.uppers.take(kind.memory_bytes)?;
                self.mount(names, uid_base, upper)?
            }
        };
        let overlay = overlay_began.elapsed();
        let shared = self.shared.mounts(member, &spec.volumes, uid_base)?;
        let seen_at = spec.host_dirs.iter().flat_map(|dir| &dir.mounts);
        let launch = ToSandbox::Launch(Box::new(Launch {
            args: spec.process.args.clone(),
            env: spec.process.env.clone(),
            cwd: spec.process.cwd.clone(),
            user: spec.process.user.clone(),
            volumes: spec.volumes.clone(),
            host_dirs: seen_at.cloned().collect(),
            kernel: spec.kernel,
            containers: member.map_or_else(Vec::new, |member| member.names.clone()),
            zygote: spec.zygote.clone(),
            one_id: self.ids.count() == 1,
            processes: (!self.cgroups.limits()).then_some(spec.limits.pids),
        }));
        let (ear, mouth) = spec.zygote.as_ref().map(Ear::make).transpose()?.unzip();
        let control = Channel::from(control);
        let own = [&root.root, &root.shm, &stdout, &stderr];
        let given: Vec<BorrowedFd<'_>> = own
            .into_iter()
            .chain(&shared)
            .chain(&runsc)
            .chain(&mouth)
            .map(AsFd::as_fd)
            .collect();
        control
            .send(&launch, &given)
            .map_err(|e| SpawnError::SandboxGone {
                detail: format!("sending it its program: {e}"),
            })?;
        if !trees.is_empty() {
            let given: Vec<BorrowedFd<'_>> = trees.iter().map(AsFd::as_fd).collect();
            control
                .send(&ToSandbox::HostDirs, &given)
                .map_err(|e| SpawnError::SandboxGone {
                    detail: format!("sending it directories of the host: {e}"),
                })?;
        }
        self.pending.push(Pending {
            request: asked.request,
            sandbox: asked.sandbox,
            control,
            began: asked.began,
            memory_limit: kind.memory_bytes,
            cgroup,
            overlay,
            executing: None,
            volumes: spec.volumes.len() + trees.len(),
            kernel: spec.kernel,
            upper: root.upper,
            ear,
            parking: false,
            alike: kind.start,
            pid: asked.pid,
        });
        Ok(())
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
                member,
                limited,
            } => {
                let began = Instant::now();
                self.held.hold(unfinished_name(sandbox), Vec::new());
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
                    member,
                    limited,
                };
                match self.start(&asked, &spec, &names, descriptors) {
                    Ok(()) => return,
                    Err(error) => Err(error),
                }
            }
            Op::Prepare { rootfs } => self.layers.ensure(&rootfs).map(|_| Reply::Done),
            Op::RemoveLayer { diff_id } => {
                self.trails.forget(|start| start.has_layer(&diff_id));
                self.roots.forget(|start| start.has_layer(&diff_id));
                self.layers.forget_layer(&diff_id).map(|()| Reply::Done)
            }
            Op::ReleaseIds { uid_base } => {
                self.layers.forget_ids(uid_base);
                self.trails.forget(|start| start.has_ids(uid_base));
                self.roots.forget(|start| start.has_ids(uid_base));
                Ok(Reply::Done)
            }
            Op::Learn { start, pid, ends } => {
                let owner = self.ids.of_service(start.uid_base());
                if ends {
                    self.roots.expect(&start);
                }
                return self.trails.learn(start, pid, owner);
            }
            Op::Hold { name } => {
                self.held.hold(name, descriptors);
                return;
            }
            Op::Release { name } => {
                self.held.release(&name);
                if let Some(sandbox) = held_sandbox(&name) {
                    // Of a start that failed.
                    self.held.release(&unfinished_name(sandbox));
                    self.attached.extend(self.shared.forget(sandbox));
                }
                return;
            }
            Op::MakeSandbox { .. } => Err(wrong_role("MakeSandbox", Role::Starter)),
            Op::JoinSandbox { .. } => Err(wrong_role("JoinSandbox", Role::Starter)),
            Op::DestroySandbox { .. } => Err(wrong_role("DestroySandbox", Role::Starter)),
            Op::Unpack { .. } => Err(wrong_role("Unpack", Role::Starter)),
            Op::RefusalSockets => Err(wrong_role("RefusalSockets", Role::Starter)),
            Op::Reclaim { .. } => Err(wrong_role("Reclaim", Role::Starter)),
            Op::RemoveOldLogs => Err(wrong_role("RemoveOldLogs", Role::Starter)),
        };
        respond(channel, request.id, result, &[]);
    }

    fn end(mut self: Box<Self>) -> Held {
        // What has begun is an instance, also when it has ended by now: its lines and its end are told, and it begins once.
        for begun in self.pending.iter().filter(|pending| pending.has_begun()) {
            self.held.release(&unfinished_name(begun.sandbox));
        }
        // A successor in this process must not inherit our mounts into every sandbox it makes.
        let _ = rustix::process::chdir("/");
        let _ = rustix::mount::unmount(&self.mounts, rustix::mount::UnmountFlags::DETACH);
        self.held
    }

    fn waiting(&self) -> Vec<BorrowedFd<'_>> {
        self.pending
            .iter()
            .map(
                |pending| match pending.ear.as_ref().and_then(Ear::parking) {
                    Some(ear) if pending.parking => ear,
                    _ => pending.control.as_fd(),
                },
            )
            .chain(self.trails.waiting())
            .collect()
    }

    fn wake(&mut self, channel: &Channel, index: usize) {
        let Some(pending) = self.pending.get_mut(index) else {
            return self.trails.wake(index - self.pending.len());
        };
        let Some(result) = pending.advance() else {
            return;
        };
        let done = self.pending.remove(index);
        let zygote = done.ear.is_some();
        if result.is_ok() {
            self.held.release(&unfinished_name(done.sandbox));
        }
        let learning = match &done.ear {
            Some(Ear::Learning(memory)) if result.is_ok() => Some(memory.as_fd()),
            _ => None,
        };
        let leads = result.is_ok() && done.kernel == Kernel::Host && !zygote;
        respond(
            channel,
            done.request,
            result.map(|phases| Reply::Started { phases, zygote }),
            learning.as_slice(),
        );
        if leads {
            // Also where its root stood ready: the kernel may have taken back what it knew there, and says what it knows at once.
            let owner = self.ids.of_service(done.alike.uid_base());
            let root = trail::root_of(done.pid);
            self.trails.lead(&done.alike, &root, owner);
            self.roots.started(Kind {
                start: done.alike,
                memory_bytes: done.memory_limit,
            });
        } else if zygote {
            // The next ones of its kind are copies, and mount nothing.
            self.roots.forget(|start| *start == done.alike);
        }
    }

    fn next_tick(&self) -> Option<Duration> {
        self.next_chore().or_else(|| {
            self.pending
                .iter()
                .map(|pending| START_DEADLINE.saturating_sub(pending.began.elapsed()))
                .min()
        })
    }

    fn tick(&mut self, channel: &Channel) {
        self.chores();
        let late: Vec<usize> = (0..self.pending.len())
            .rev()
            .filter(|index| self.pending[*index].began.elapsed() >= START_DEADLINE)
            .collect();
        for index in late {
            let given_up = self.pending.remove(index);
            let at = if given_up.parking {
                "importing modules ahead of its start"
            } else if given_up.executing.is_some() {
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
