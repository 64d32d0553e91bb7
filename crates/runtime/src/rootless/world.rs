//! Making and entering the namespaces of a user's server.
//!
//! Failure: [`RootlessError`], with what would help. What was made for an `up` that then fails is ended by
//! [`World::abandon`].

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};
use rustix::fs::FlockOperation;
use rustix::thread::{Gid, Uid};

use super::holder::{ALONE, Holding, MADE, MAPPED, READY};
use super::ids::Subordinate;
use super::process::Known;
use super::{egress, ids, place, residents};
use crate::keeper::Visitor;
use crate::network;
use crate::sandbox::cgroup;

/// Why there is no server of an ordinary user.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    #[error("{step}: {source}")]
    Io { step: String, source: io::Error },
    /// The kernel or its administrator doesn't allow what this needs.
    #[error("{what}")]
    Refused { what: String, hint: String },
}

fn io_error(step: impl Into<String>) -> impl FnOnce(io::Error) -> RootlessError {
    let step = step.into();
    move |source| RootlessError::Io { step, source }
}

/// Where one user's server is.
#[derive(Debug, Clone)]
pub struct Place {
    /// Absolute, without links.
    data: PathBuf,
    id: String,
    /// In the directory of all servers of the user.
    run: PathBuf,
}

/// The namespaces of a server, entered.
#[derive(Debug)]
pub struct World {
    place: Place,
    /// Made by this process; nobody else relies on it yet.
    made: bool,
    egress: Result<Option<String>, String>,
    /// What to end last. Known by now: the notes about them go with the server's directory.
    residents: Vec<Known>,
}

impl Place {
    /// Of the server over the data directory `data`, which must exist. Makes nothing.
    ///
    /// # Errors
    /// The directory can't be found.
    pub fn of(data: &Path, id: &str) -> Result<Self, RootlessError> {
        let data = data
            .canonicalize()
            .map_err(io_error(format!("find {}", data.display())))?;
        let uid = rustix::process::getuid().as_raw();
        let run = place::runtime_dir(uid, id);
        Ok(Self {
            data,
            id: id.to_owned(),
            run,
        })
    }

    /// Of all servers of the user.
    fn base(&self) -> &Path {
        self.run.parent().unwrap_or(&self.run)
    }

    fn note_file(&self) -> PathBuf {
        self.run.join(place::HOLDER)
    }

    /// A process in the namespaces: the holder, or the keeper if that was killed.
    fn resident(&self) -> Option<u32> {
        if let Some(holder) = Known::noted(&self.note_file()) {
            return Some(holder.pid);
        }
        residents::keeper(&self.run, rustix::process::getuid().as_raw())
    }

    /// Whether anything of this server runs.
    #[must_use]
    pub fn is_inhabited(&self) -> bool {
        self.resident().is_some()
    }

    /// Enters the namespaces, which are made if nobody is in them. Must be called by a process with one thread, which then is
    /// root in them, and nowhere else.
    ///
    /// # Errors
    /// [`RootlessError`].
    pub fn enter(self) -> Result<World, RootlessError> {
        place::make(self.base(), &self.id, rustix::process::getuid().as_raw()).map_err(
            io_error(format!("make the directory {}", self.run.display())),
        )?;
        // Two `up` at the same moment make one.
        let lock = self.lock()?;
        let (resident, made) = match self.resident() {
            Some(pid) => (pid, false),
            None => {
                let made = self.make().inspect_err(|_| self.remove());
                (made?, true)
            }
        };
        let egress = egress::ensure(&self.run, resident);
        let residents = self.residents();
        if let Err(error) = enter(resident) {
            if made {
                residents.iter().for_each(Known::end);
            }
            return Err(error);
        }
        drop(lock);
        Ok(World {
            place: self,
            made,
            egress,
            residents,
        })
    }

    /// For a server that isn't there after all; what can't go now is nobody's at the next start.
    fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.run);
        self.remove_base();
    }

    /// The directory of all servers of the user goes with the last one: while others have theirs in it, it isn't empty.
    fn remove_base(&self) {
        let _ = std::fs::remove_dir(self.base());
    }

    fn lock(&self) -> Result<OwnedFd, RootlessError> {
        let path = self.run.join("holder.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error(format!("open {}", path.display())))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|e| io_error(format!("lock {}", path.display()))(e.into()))?;
        Ok(file.into())
    }

    /// Starts the holder; answers its process id when the namespaces are complete.
    fn make(&self) -> Result<u32, RootlessError> {
        let step = || io_error("start the process that holds the namespaces");
        let holding = Holding {
            ways: vec![self.data.clone(), self.base().to_owned()],
            addresses: host_addresses()?,
        };
        let argument = serde_json::to_string(&holding).map_err(|e| step()(e.into()))?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("utsuwa")
            .args(["internal", "holder", &argument])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(step())?;
        let pid = child.id();
        let (Some(mut to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(step()(io::ErrorKind::BrokenPipe.into()));
        };
        let mut from = BufReader::new(from);
        let made = (|| {
            expect(&mut from, MADE)?;
            let told = match Subordinate::of_user() {
                Ok(subordinate) => {
                    map(pid, &subordinate)?;
                    MAPPED
                }
                Err(_) => ALONE,
            };
            writeln!(to, "{told}").map_err(step())?;
            expect(&mut from, READY)?;
            Known::of(pid, "holder")
                .ok_or_else(|| step()(io::ErrorKind::NotFound.into()))?
                .note(&self.note_file())
                .map_err(step())
        })();
        if made.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        made.map(|()| pid)
    }

    /// What lives in the namespaces for the others' sake, those first that others need.
    fn residents(&self) -> Vec<Known> {
        let egress = egress::noted(&self.run);
        egress
            .into_iter()
            .chain(Known::noted(&self.note_file()))
            .collect()
    }
}

/// Addresses of this host by which others reach it; loopback and link-local ones are closed to instances anyway.
///
/// # Errors
/// [`RootlessError::Io`] of netlink.
pub fn host_addresses() -> Result<Vec<IpAddr>, RootlessError> {
    let all = network::host_addresses().map_err(|error| {
        io_error("list the addresses of this host")(io::Error::other(error.to_string()))
    })?;
    Ok(all
        .into_iter()
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect())
}

/// Its next line must be `wanted`; another one is what went wrong.
fn expect(from: &mut impl BufRead, wanted: &str) -> Result<(), RootlessError> {
    let mut line = String::new();
    from.read_line(&mut line)
        .map_err(io_error("hear from the process that holds the namespaces"))?;
    if line.trim() == wanted {
        return Ok(());
    }
    let what = match line.trim() {
        "" => "the process that holds the namespaces ended without a word".to_owned(),
        said => said.to_owned(),
    };
    let hint = super::lacks::user_namespaces().err().map_or_else(
        || {
            "`utsuwa doctor` shows what is missing; as root it runs anyway: sudo utsuwa up"
                .to_owned()
        },
        |missing| missing.to_string(),
    );
    Err(RootlessError::Refused { what, hint })
}

fn map(pid: u32, subordinate: &Subordinate) -> Result<(), RootlessError> {
    for (program, groups) in [("newuidmap", false), ("newgidmap", true)] {
        let output = Command::new(program)
            .arg(pid.to_string())
            .args(subordinate.mapping(groups))
            .output();
        let why = match output {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        return Err(RootlessError::Refused {
            what: format!(
                "map the ids that /etc/subuid and /etc/subgid give you: {program}: {why}"
            ),
            hint: "have it installed: apt-get install uidmap".to_owned(),
        });
    }
    Ok(())
}

/// Joins the user and the mount namespace of `pid`; the network stays the host's.
fn enter(pid: u32) -> Result<(), RootlessError> {
    let open = |kind: &str| {
        let path = format!("/proc/{pid}/ns/{kind}");
        File::open(&path).map_err(io_error(format!("open {path}")))
    };
    let (user, mounts) = (open("user")?, open("mnt")?);
    let step = |what: &'static str| move |e: nix::errno::Errno| io_error(what)(e.into());
    setns(user, CloneFlags::CLONE_NEWUSER).map_err(step("enter the user namespace"))?;
    setns(mounts, CloneFlags::CLONE_NEWNS).map_err(step("enter the mount namespace"))?;
    let become_root = || -> rustix::io::Result<()> {
        if ids::may_set_groups() {
            rustix::thread::set_thread_groups(&[])?;
        }
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
    };
    become_root().map_err(|e| io_error("become root of the user namespace")(e.into()))
}

/// The holder's network, for a keeper that starts: it lives there.
pub(crate) fn network_of_holder(run: &Path) -> Option<PathBuf> {
    let holder = Known::noted(&run.join(place::HOLDER))?;
    Some(PathBuf::from(format!("/proc/{}/ns/net", holder.pid)))
}

impl World {
    /// Ends what this process made, for a server that doesn't start after all.
    pub fn abandon(self) {
        let keeper = self.place.run.join("keeper.sock");
        if self.made && Visitor::connect(&keeper, &self.place.id).is_err() {
            self.residents.iter().for_each(Known::end);
            self.place.remove();
        }
    }

    /// After `down`: nothing of the server is left.
    pub fn end(self) {
        self.residents.iter().for_each(Known::end);
        self.place.remove_base();
    }

    /// The program through which instances reach the internet, if there is one.
    #[must_use]
    pub fn egress(&self) -> Option<&str> {
        self.egress.as_ref().ok()?.as_deref()
    }

    /// What is weaker than as root, one sentence each.
    #[must_use]
    pub fn weaker(&self) -> Vec<String> {
        let mut all = Vec::new();
        all.push(match ids::Ids::here().count() {
            1 => "you have no subordinate ids (/etc/subuid, newuidmap): all of every image belongs to one user, its USER has no effect, \
                  and the server can touch what the keeper can"
                .to_owned(),
            _ => "services share one range of user ids".to_owned(),
        });
        if cgroup::Cgroups::open(&self.place.id).is_ok_and(|cgroups| !cgroups.limits()) {
            all.push(
                "no cgroup was delegated to you: limits of CPU and memory are not enforced, idle instances keep their CPU, and ends for \
                 want of memory are not recognised; processes are limited for each user of an image"
                    .to_owned(),
            );
        }
        match &self.egress {
            Ok(Some(_)) => {}
            Ok(None) => all.push(
                "instances reach nothing outside: neither pasta nor slirp4netns is installed; apt-get install passt, then \
                 `utsuwa down` and `utsuwa up`"
                    .to_owned(),
            ),
            Err(why) => all.push(format!("instances reach nothing outside: {why}")),
        }
        all
    }
}
