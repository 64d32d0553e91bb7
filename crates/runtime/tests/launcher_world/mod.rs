//! A keeper's minimum: starts the two spawners, asks them, reaps what they make, and leaves nothing behind.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests, and a module shared by them"
)]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{WaitId, WaitIdOptions};
use utsuwa_model::host_dir::HostDir;
use utsuwa_model::instance::{InstanceSpec, Kernel, Limits, ProcessSpec, RootfsSpec, StartPhases};
use utsuwa_model::quantity::{MemoryBytes, MilliCpu};
use utsuwa_runtime::network::{NetConfig, NetInfo, SocketRole};
use utsuwa_runtime::sandbox::cgroup::{Cgroups, SandboxCgroup};
use utsuwa_runtime::spawner::protocol::{Channel, Op, Reply, Request, Response, SpawnError};
use utsuwa_runtime::spawner::{CHANNEL_FD, Role, SpawnerConfig};

use crate::busybox;

pub const UID_BASE: u32 = 0x2000_0000;
const APPLETS: [&str; 38] = [
    "sh", "id", "cat", "ls", "dd", "sleep", "stat", "readlink", "mount", "umount", "touch",
    "mkdir", "chown", "ps", "hostname", "grep", "env", "pwd", "head", "mknod", "unshare", "chroot",
    "tail", "true", "ip", "ping", "nc", "find", "sed", "od", "tr", "cut", "seq", "kill", "wc",
    "dmesg", "df", "ln",
];

pub struct Spawner {
    child: Child,
    channel: Channel,
    next: u64,
}

impl Spawner {
    fn start(config: &SpawnerConfig) -> Self {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let number = theirs.as_raw_fd();
        let mut command = Command::new(env!("CARGO_BIN_EXE_utsuwa-roles"));
        command.args([
            "internal",
            "spawner",
            &serde_json::to_string(config).unwrap(),
        ]);
        #[expect(unsafe_code, reason = "dup2 in the child, before exec")]
        // SAFETY: dup2 is async-signal-safe; the number stays open until after spawn.
        unsafe {
            command.pre_exec(move || {
                if libc::dup2(number, CHANNEL_FD) < 0 {
                    Err(std::io::Error::last_os_error())
                } else {
                    Ok(())
                }
            });
        }
        let child = command.spawn().unwrap();
        Self {
            child,
            channel: ours,
            next: 1,
        }
    }

    pub fn send(&mut self, op: Op, descriptors: &[BorrowedFd<'_>]) -> u64 {
        let id = self.next;
        self.next += 1;
        self.channel.send(&Request { id, op }, descriptors).unwrap();
        id
    }

    pub fn receive(&self) -> (Response, Vec<OwnedFd>) {
        self.channel
            .receive::<Response>()
            .unwrap()
            .expect("the spawner lives")
    }

    pub fn ask(
        &mut self,
        op: Op,
        descriptors: &[BorrowedFd<'_>],
    ) -> (Result<Reply, SpawnError>, Vec<OwnedFd>) {
        let id = self.send(op, descriptors);
        let (response, descriptors) = self.receive();
        assert_eq!(response.id, id);
        (response.result, descriptors)
    }
}

impl Spawner {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.stop();
    }
}

pub struct World {
    pub starter: Spawner,
    pub housekeeper: Spawner,
    pub cgroups: Cgroups,
    pub images: PathBuf,
    next_sandbox: u32,
    _directory: tempfile::TempDir,
}

/// A pooled sandbox.
pub struct Sandbox {
    pub number: u32,
    pub pid: u32,
    pub net: NetInfo,
    pub pidfd: OwnedFd,
    pub control: OwnedFd,
    pub sockets: Vec<OwnedFd>,
    pub cgroup: SandboxCgroup,
}

/// A running instance with its output.
pub struct Instance {
    pub sandbox: Sandbox,
    pub phases: StartPhases,
    pub output: File,
}

#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
}

impl World {
    pub fn new() -> Self {
        Self::with_network(None)
    }

    pub fn id() -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("t{:x}{count}", std::process::id() & 0xf_ffff)
    }

    pub fn with_network(network: Option<NetConfig>) -> Self {
        Self::with(network, 0)
    }

    /// One in which layers are copied, as where ids can't be mapped.
    pub fn that_copies() -> Self {
        Self::begin(None, true, 0, Vec::new())
    }

    /// `disk_reserve`: bytes that unpacking must leave.
    pub fn with(network: Option<NetConfig>, disk_reserve: u64) -> Self {
        Self::begin(network, false, disk_reserve, Vec::new())
    }

    /// One whose keeper allows directories of the host.
    pub fn that_allows(host_dirs: Vec<HostDir>) -> Self {
        Self::begin(None, false, 0, host_dirs)
    }

    fn begin(
        network: Option<NetConfig>,
        copy_layers: bool,
        disk_reserve: u64,
        host_dirs: Vec<HostDir>,
    ) -> Self {
        let id = network
            .as_ref()
            .map_or_else(Self::id, |network| network.id.clone());
        let directory = tempfile::Builder::new()
            .prefix("utsuwa-launcher-")
            .tempdir()
            .unwrap();
        let images = directory.path().join("images");
        fs::create_dir_all(images.join("layers")).unwrap();
        // As the keeper does it: the housekeeper waits for its turn there before it makes anything.
        fs::create_dir(directory.path().join("run")).unwrap();
        let config = |role| SpawnerConfig {
            role,
            id: id.clone(),
            runtime_dir: directory.path().join("run"),
            images_dir: images.clone(),
            logs_dir: None,
            copy_layers,
            disk_reserve,
            host_dirs: host_dirs.clone(),
            network: network.clone(),
            on_keeper_gone: Vec::new(),
        };
        let starter = Spawner::start(&config(Role::Starter));
        let housekeeper = Spawner::start(&config(Role::Housekeeper));
        let cgroups = Cgroups::open(&id).unwrap();
        let world = Self {
            starter,
            housekeeper,
            cgroups,
            images,
            next_sandbox: 0,
            _directory: directory,
        };
        world.busybox_layer();
        world
    }

    /// Where the layer number `number` lies and its diff id.
    pub fn layer(&self, number: u8) -> (PathBuf, String) {
        busybox::layer(&self.images.join("layers"), number)
    }

    /// Makes layer `number` by `fill`, then gives all of it to the images' ids.
    pub fn make_layer(&self, number: u8, fill: impl FnOnce(&Path)) -> String {
        busybox::make_layer(&self.images.join("layers"), number, fill)
    }

    fn busybox_layer(&self) {
        self.make_layer(0, |root| {
            busybox::put_busybox(root, &APPLETS);
            fs::create_dir_all(root.join("srv/closed")).unwrap();
            fs::write(
                root.join("etc/passwd"),
                "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/srv:/bin/sh\n",
            )
            .unwrap();
            fs::write(
                root.join("etc/group"),
                "root:x:0:\nwww:x:34:\nmedia:x:44:www\n",
            )
            .unwrap();
            fs::write(root.join("etc/resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
            fs::write(root.join("srv/plain"), "plain text").unwrap();
            fs::write(root.join("srv/text"), "echo hello\n").unwrap();
            fs::write(root.join("srv/no-interpreter"), "#!/usr/bin/nothing here\n").unwrap();
            fs::write(root.join("srv/windows"), "#!/bin/sh\r\necho hello\r\n").unwrap();
            let mut foreign = fs::read("/bin/busybox").unwrap()[..64].to_vec();
            foreign[18] = if cfg!(target_arch = "x86_64") {
                183
            } else {
                62
            };
            fs::write(root.join("srv/foreign"), foreign).unwrap();
            for name in ["text", "no-interpreter", "windows", "foreign"] {
                fs::set_permissions(
                    root.join("srv").join(name),
                    fs::Permissions::from_mode(0o755),
                )
                .unwrap();
            }
        });
    }

    pub fn spec(&self, args: &[&str]) -> InstanceSpec {
        InstanceSpec {
            id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            revision: "demo/local/hello/hello-00001-abc".parse().unwrap(),
            rootfs: RootfsSpec {
                layers: vec![self.layer(0).1],
                uid_base: UID_BASE,
            },
            process: ProcessSpec {
                args: args.iter().map(|&a| a.to_owned()).collect(),
                env: vec!["GREETING=hello".to_owned()],
                cwd: String::new(),
                user: String::new(),
            },
            limits: Limits {
                cpu: MilliCpu(1000),
                memory: MemoryBytes(64 << 20),
                pids: 64,
            },
            port: 8080,
            volumes: Vec::new(),
            host_dirs: Vec::new(),
            kernel: Kernel::default(),
            group: None,
            zygote: None,
        }
    }

    pub fn make(&mut self) -> Sandbox {
        self.next_sandbox += 1;
        let number = self.next_sandbox;
        let (result, descriptors) = self
            .housekeeper
            .ask(Op::MakeSandbox { sandbox: number }, &[]);
        let Reply::Made { pid, net } = result.unwrap() else {
            panic!("not made")
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().unwrap();
        let (pidfd, _netns, control) = (next(), next(), next());
        let sockets: Vec<OwnedFd> = descriptors.collect();
        assert_eq!(sockets.len(), net.sockets.len());
        assert!(
            net.sockets
                .iter()
                .all(|role: &SocketRole| *role != SocketRole::HostForward { port: 0 })
        );
        Sandbox {
            number,
            pid,
            net,
            pidfd,
            control,
            sockets,
            cgroup: self.cgroups.sandbox(number),
        }
    }

    pub fn start_in(
        &mut self,
        sandbox: Sandbox,
        spec: InstanceSpec,
    ) -> Result<Instance, SpawnError> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let op = Op::Start {
            sandbox: sandbox.number,
            pid: sandbox.pid,
            spec: Box::new(spec),
            net: sandbox.net.clone(),
            member: None,
            limited: false,
        };
        let (result, _) = self.starter.ask(
            op,
            &[sandbox.control.as_fd(), writer.as_fd(), writer.as_fd()],
        );
        match result {
            Ok(Reply::Started { phases, .. }) => Ok(Instance {
                sandbox,
                phases,
                output: File::from(reader),
            }),
            Ok(other) => panic!("not started: {other:?}"),
            Err(error) => {
                self.end(sandbox);
                Err(error)
            }
        }
    }

    pub fn start(&mut self, spec: InstanceSpec) -> Result<Instance, SpawnError> {
        let sandbox = self.make();
        self.start_in(sandbox, spec)
    }

    /// Runs to its end: what it wrote, how it ended, and how many were killed for memory.
    pub fn run(&mut self, spec: InstanceSpec) -> (String, End, u64) {
        let mut instance = self.start(spec).unwrap();
        let mut output = Vec::new();
        instance.output.read_to_end(&mut output).unwrap();
        let end = wait(&instance.sandbox.pidfd);
        let kills = instance.sandbox.cgroup.oom_kills().unwrap();
        self.end(instance.sandbox);
        (String::from_utf8_lossy(&output).into_owned(), end, kills)
    }

    /// Runs a shell script as root of the instance.
    pub fn script(&mut self, script: &str) -> String {
        let spec = self.spec(&["sh", "-c", script]);
        self.run(spec).0
    }

    /// Kills what is left, reaps it, and has everything removed.
    pub fn end(&mut self, sandbox: Sandbox) {
        let _ = rustix::process::pidfd_send_signal(&sandbox.pidfd, rustix::process::Signal::KILL);
        let _ =
            rustix::process::waitid(WaitId::PidFd(sandbox.pidfd.as_fd()), WaitIdOptions::EXITED);
        let (result, _) = self.housekeeper.ask(
            Op::DestroySandbox {
                sandbox: sandbox.number,
            },
            &[],
        );
        assert_eq!(result.unwrap(), Reply::Done);
        assert_eq!(sandbox.cgroup.oom_kills(), None, "the cgroup is gone");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let left = self.cgroups.list();
        for number in &left {
            let _ = self
                .housekeeper
                .ask(Op::DestroySandbox { sandbox: *number }, &[]);
        }
        self.housekeeper.stop();
        let removed = self.cgroups.remove();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "sandboxes left behind: {left:?}");
            removed.unwrap();
        }
    }
}

/// Waits at most ten seconds.
pub fn wait(pidfd: &OwnedFd) -> End {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    let ready = rustix::event::poll(
        &mut polled,
        Some(&Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        }),
    )
    .unwrap();
    assert_eq!(ready, 1, "it did not end");
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .unwrap()
        .unwrap();
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::Code(code),
        (None, Some(signal)) => End::Signal(signal),
        other => panic!("neither ended nor killed: {other:?}"),
    }
}
