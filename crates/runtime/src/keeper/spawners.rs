//! The spawner processes and what is asked of them. What becomes of their answers is in `answers`.

mod answers;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub(crate) use self::answers::{Pending, to_keeper_error};
use super::core::{Keeper, Timer, Token, Watch};
use super::link::{Link, LinkError};
use crate::spawner::protocol::{Channel, NO_REQUEST, Op, Request, Response, SpawnError};
use crate::spawner::{CHANNEL_FD, Role, SpawnerConfig};

/// Index of the spawner that only starts instances.
pub(crate) const STARTER: u32 = 0;
/// Index of the spawner that does everything slow.
pub(crate) const HOUSEKEEPER: u32 = 1;

/// What the allocator (jemalloc) reads when a process begins.
pub(super) const HEAP_VARIABLE: &str = "MALLOC_CONF";

/// One spawner process.
#[derive(Debug)]
pub(crate) struct Spawner {
    pub(crate) process: Option<Process>,
    /// Starts since it last answered something: a spawner that dies at once is started slower and slower.
    failures: u32,
    /// Why the last one could not begin to work, in its own words.
    last_words: Option<SpawnError>,
}

impl Spawner {
    /// Nobody is there to answer.
    fn gone(&self) -> SpawnError {
        self.last_words.clone().unwrap_or_else(gone)
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    link: Link<Request>,
    pub(crate) pending: HashMap<u64, Pending>,
    next_request: u64,
}

impl Keeper {
    pub(crate) fn start_spawners(&mut self) {
        self.spawners = vec![
            Spawner {
                process: None,
                failures: 0,
                last_words: None,
            },
            Spawner {
                process: None,
                failures: 0,
                last_words: None,
            },
        ];
        self.start_spawner(STARTER);
        self.start_spawner(HOUSEKEEPER);
    }

    pub(crate) fn start_spawner(&mut self, index: u32) {
        if self.ending.is_some() || self.spawner(index).is_some() {
            return;
        }
        match self.launch_spawner(index) {
            Ok(process) => {
                tracing::info!(index, pid = process.pid, "spawner started");
                if let Some(spawner) = self.spawners.get_mut(index as usize) {
                    spawner.process = Some(process);
                }
                if index == STARTER {
                    self.deposit_all();
                } else {
                    self.ask(
                        HOUSEKEEPER,
                        Op::RefusalSockets,
                        Vec::new(),
                        Pending::Refusals,
                    );
                    self.retry_destroys();
                }
                self.pump();
                self.refill();
            }
            Err(error) => {
                tracing::error!(index, %error, "start a spawner");
                self.after(Duration::from_secs(1), Timer::StartSpawner(index));
            }
        }
    }

    fn launch_spawner(&self, index: u32) -> io::Result<Process> {
        let starter = index == STARTER;
        let config = SpawnerConfig {
            role: if starter {
                Role::Starter
            } else {
                Role::Housekeeper
            },
            id: self.config.id.clone(),
            runtime_dir: self.config.runtime_dir(),
            images_dir: self.config.data_dir.join("images"),
            logs_dir: Some(self.config.logs_dir()),
            copy_layers: self.config.copy_layers,
            disk_reserve: self.config.disk_reserve,
            host_dirs: self.config.host_dirs.clone(),
            network: self.config.net.clone(),
            on_keeper_gone: if starter {
                super::successor_arguments(&self.config)
            } else {
                Vec::new()
            },
        };
        let (ours, theirs) = Channel::pair()?;
        let theirs: OwnedFd = theirs.into();
        let log = super::process::open_log(&self.config)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("utsuwa")
            .args(["internal", "spawner", &serde_json::to_string(&config)?])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if starter {
            // Its heap is small, and pages given back while nothing happens would be asked for again on each wake.
            command.env(HEAP_VARIABLE, "dirty_decay_ms:-1,muzzy_decay_ms:-1");
        }
        give_channel(&mut command, theirs);
        let child = command.spawn()?;
        let pid = child.id();
        let pidfd = pidfd_open(to_pid(pid)?, PidfdFlags::empty())?;
        let link = Link::new(ours)?;
        self.watch(&link, Token::Spawner(index), Watch::Edge)?;
        self.watch(&pidfd, Token::SpawnerEnded(index), Watch::Level)?;
        Ok(Process {
            pid,
            pidfd,
            link,
            pending: HashMap::new(),
            next_request: 1,
        })
    }

    pub(crate) fn spawner(&mut self, index: u32) -> Option<&mut Process> {
        self.spawners.get_mut(index as usize)?.process.as_mut()
    }

    /// Asks a spawner. Without one, the answer is an error at once.
    pub(crate) fn ask(&mut self, index: u32, op: Op, descriptors: Vec<OwnedFd>, pending: Pending) {
        if self.spawner(index).is_none() {
            let gone = self
                .spawners
                .get(index as usize)
                .map_or_else(gone, Spawner::gone);
            self.answered(pending, Err(gone), Vec::new());
            return;
        }
        let Some(process) = self.spawner(index) else {
            return;
        };
        let id = process.next_request;
        process.next_request += 1;
        process.pending.insert(id, pending);
        if let Err(error) = process.link.send(Request { id, op }, descriptors) {
            self.spawner_broken(index, &error);
        }
    }

    /// Tells a spawner something that has no answer.
    pub(crate) fn tell(&mut self, index: u32, op: Op, descriptors: Vec<OwnedFd>) {
        if let Some(process) = self.spawner(index)
            && let Err(error) = process
                .link
                .send(Request { id: NO_REQUEST, op }, descriptors)
        {
            self.spawner_broken(index, &error);
        }
    }

    fn spawner_broken(&mut self, index: u32, error: &LinkError) {
        if self.ending.is_none() {
            tracing::warn!(index, %error, "a spawner can't be reached; it is replaced");
        }
        if let Some(process) = self.spawner(index) {
            // Its end is reported by its pidfd, where everything is cleaned up.
            let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
    }

    pub(crate) fn serve_spawner(&mut self, index: u32) {
        loop {
            let Some(process) = self.spawner(index) else {
                return;
            };
            if let Err(error) = process.link.flush() {
                self.spawner_broken(index, &error);
                return;
            }
            let received = process.link.receive::<Response>();
            match received {
                Ok(Some((response, descriptors))) => {
                    let Some(pending) = process.pending.remove(&response.id) else {
                        self.note_last_words(index, response);
                        continue;
                    };
                    if let Some(spawner) = self.spawners.get_mut(index as usize) {
                        spawner.failures = 0;
                        spawner.last_words = None;
                    }
                    self.answered(pending, response.result, descriptors);
                }
                Ok(None) => return,
                Err(error) => {
                    self.spawner_broken(index, &error);
                    return;
                }
            }
        }
    }

    pub(crate) fn spawner_ended(&mut self, index: u32) {
        // What it answered before it ended counts.
        loop {
            let Some(process) = self.spawner(index) else {
                return;
            };
            let Ok(Some((response, descriptors))) = process.link.receive::<Response>() else {
                break;
            };
            match process.pending.remove(&response.id) {
                Some(pending) => self.answered(pending, response.result, descriptors),
                None => self.note_last_words(index, response),
            }
        }
        let Some(spawner) = self.spawners.get_mut(index as usize) else {
            return;
        };
        let Some(process) = spawner.process.take() else {
            return;
        };
        spawner.failures += 1;
        let failures = spawner.failures;
        let ended = super::exit::learn(process.pidfd.as_fd(), process.pid);
        self.unwatch(&process.link);
        self.unwatch(&process.pidfd);
        if self.ending.is_none() {
            tracing::error!(
                index,
                pid = process.pid,
                ?ended,
                "a spawner ended; starting another"
            );
            let delay = Duration::from_millis(if failures <= 1 {
                0
            } else {
                100 << failures.min(6)
            });
            self.after(delay, Timer::StartSpawner(index));
        }
        let gone = self
            .spawners
            .get(index as usize)
            .map_or_else(gone, Spawner::gone);
        for (_, pending) in process.pending {
            self.answered(pending, Err(gone.clone()), Vec::new());
        }
    }

    /// An error that answers nothing says why a spawner could not begin to work; it ends then.
    fn note_last_words(&mut self, index: u32, response: Response) {
        if response.id == NO_REQUEST
            && let Err(error) = response.result
            && let Some(spawner) = self.spawners.get_mut(index as usize)
        {
            spawner.last_words = Some(error);
        }
    }
}

fn gone() -> SpawnError {
    SpawnError::SandboxGone {
        detail: "the spawner process ended; another is being started, try again".to_owned(),
    }
}

pub(crate) fn to_pid(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

#[expect(
    unsafe_code,
    reason = "the only way to give a child a descriptor under a fixed number"
)]
fn give_channel(command: &mut Command, channel: OwnedFd) {
    let place = move || {
        let from = channel.as_raw_fd();
        // SAFETY: dup2 and fcntl are async-signal-safe, and this process is single-threaded. Number CHANNEL_FD in the
        // child belongs to nobody: everything this process opens is close-on-exec.
        let result = unsafe {
            if from == CHANNEL_FD {
                libc::fcntl(from, libc::F_SETFD, 0)
            } else {
                libc::dup2(from, CHANNEL_FD)
            }
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: the closure only makes async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(place) };
}

#[cfg(test)]
pub(super) mod tests;
