//! A data directory with a busybox image, its keeper, and a driver; nothing is left behind.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::allow_attributes,
    dead_code,
    unreachable_pub,
    reason = "tests"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, timeout};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, InstanceSpec, Kernel, Limits, ProcessSpec, RootfsSpec};
use utsuwa_model::quantity::{MemoryBytes, MilliCpu};
use utsuwa_runtime::client::{InternalEvent, SandboxDriver};
use utsuwa_runtime::keeper::protocol::{Op, Reply, Status};
use utsuwa_runtime::keeper::{self, KeeperConfig};
use utsuwa_runtime::network::NetConfig;
use utsuwa_runtime::spawner::protocol::Channel;
use utsuwa_runtime::{Driver, InstanceEvent};

use crate::busybox;

pub const UID_BASE: u32 = 0x3000_0000;
/// Longest time anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
const APPLETS: [&str; 15] = [
    "sh", "cat", "ls", "dd", "sleep", "head", "tail", "httpd", "yes", "nc", "wget", "seq", "kill",
    "true", "tr",
];

pub struct World {
    pub config: KeeperConfig,
    layer: String,
    next: u64,
    directory: tempfile::TempDir,
    down: bool,
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut KeeperConfig)) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("utsuwa-keeper-")
            .tempdir()
            .unwrap();
        let layer = busybox_layer(&directory.path().join("images/layers"));
        let mut config = KeeperConfig::new(directory.path(), 0, 0, None).unwrap();
        config.net = Some(NetConfig {
            id: config.id.clone(),
            ingress_ports: vec![80],
            allow: Vec::new(),
            mtu: None,
        });
        config.binary = PathBuf::from(env!("CARGO_BIN_EXE_utsuwa-roles"));
        change(&mut config);
        let world = Self {
            config,
            layer,
            next: 1,
            directory,
            down: false,
        };
        keeper::ensure_keeper(&world.config)
            .unwrap_or_else(|error| panic!("{error}\n{}", world.messages()));
        world
    }

    /// What keeper and spawners wrote.
    pub fn messages(&self) -> String {
        fs::read_to_string(&self.config.log_file).unwrap_or_default()
    }

    pub fn logs_of_service(&self) -> PathBuf {
        self.config.logs_dir().join("demo/local/hello")
    }

    /// Makes layer `number` by `fill`, with the images' ids.
    pub fn make_layer(&self, number: u8, fill: impl FnOnce(&Path)) -> String {
        busybox::make_layer(&self.config.data_dir.join("images/layers"), number, fill)
    }

    pub fn spec(&mut self, script: &str) -> InstanceSpec {
        self.spec_of(&["sh", "-c", script])
    }

    pub fn spec_of(&mut self, args: &[&str]) -> InstanceSpec {
        let number = self.next;
        self.next += 1;
        InstanceSpec {
            id: format!("{number:032x}").parse().unwrap(),
            revision: "demo/local/hello/hello-00001-abc".parse().unwrap(),
            rootfs: RootfsSpec {
                layers: vec![self.layer.clone()],
                uid_base: UID_BASE,
            },
            process: ProcessSpec {
                args: args.iter().map(|&argument| argument.to_owned()).collect(),
                env: vec!["PATH=/bin".to_owned()],
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

    /// As seen by a visitor, who gets no events; `None` while no keeper answers.
    pub fn status(&self) -> Option<Status> {
        let mut visitor = keeper::Visitor::connect(&self.config.socket(), &self.config.id).ok()?;
        match visitor.ask(Op::Status, &[]) {
            Ok((Reply::Status(status), _)) => Some(status),
            _ => None,
        }
    }

    /// A connection on which nothing was said.
    pub fn connect(&self) -> Channel {
        let kind = rustix::net::SocketType::SEQPACKET;
        let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
        let address = rustix::net::SocketAddrUnix::new(self.config.socket()).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        Channel::from(socket)
    }

    /// Packets sent on a connection of their own, as a program of any version may; answers what came back to each, until
    /// the keeper hung up.
    pub fn speak(&self, packets: &[serde_json::Value]) -> Vec<serde_json::Value> {
        let channel = self.connect();
        let answers = packets.iter().map_while(|packet| {
            channel.send(packet, &[]).ok()?;
            Some(channel.receive().ok()??.0)
        });
        answers.collect()
    }

    pub async fn server(&self) -> Server {
        let (sender, internal) = mpsc::channel(4096);
        let driver =
            SandboxDriver::connect(&self.config.socket(), &self.config.id, "test", Some(sender))
                .await
                .unwrap_or_else(|error| panic!("{error}\n{}", self.messages()));
        let events = driver.events();
        Server {
            driver,
            events,
            internal,
        }
    }

    /// Ends everything, and checks that nothing is left.
    pub fn down(mut self) -> keeper::protocol::DownReport {
        let report = keeper::down(&self.config, Duration::from_secs(5))
            .unwrap_or_else(|error| panic!("{error}\n{}", self.messages()));
        self.down = true;
        let left = self.leftovers();
        assert!(
            left.is_empty(),
            "left behind: {left:?}; {report:?}\n{}",
            self.messages()
        );
        // `utsuwa down` fails then.
        assert!(
            report.problems.is_empty(),
            "{report:?}\n{}",
            self.messages()
        );
        report
    }

    /// Kernel objects and files that carry our id.
    pub fn leftovers(&self) -> Vec<String> {
        let id = &self.config.id;
        let mut left = Vec::new();
        let name = format!("utsuwa-{id}");
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            if line.contains(id.as_str()) {
                left.push(format!("mount {line}"));
            }
            if let Some(mount) = line
                .split(' ')
                .nth(4)
                .filter(|mount| mount.starts_with("/sys/fs/cgroup"))
            {
                let path = Path::new(mount).join(&name);
                if path.exists() {
                    left.push(format!("cgroup {}", path.display()));
                }
            }
        }
        for line in fs::read_to_string("/proc/net/dev")
            .unwrap()
            .lines()
            .filter(|line| line.contains(id.as_str()))
        {
            left.push(format!("device {line}"));
        }
        if self.config.runtime_dir().exists() {
            left.push(format!("directory {}", self.config.runtime_dir().display()));
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if command.contains(id.as_str()) {
                left.push(format!("process {} {command}", entry.file_name().display()));
            }
        }
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.down {
            let report = keeper::down(&self.config, Duration::ZERO);
            let clean = report
                .as_ref()
                .is_ok_and(|report| report.problems.is_empty());
            if std::thread::panicking() || !clean {
                eprintln!("{report:?}\nkeeper's messages:\n{}", self.messages());
            }
        }
    }
}

/// A server as far as this crate knows one.
pub struct Server {
    pub driver: SandboxDriver,
    pub events: broadcast::Receiver<InstanceEvent>,
    pub internal: mpsc::Receiver<InternalEvent>,
}

impl Server {
    /// The next exit.
    pub async fn exit(&mut self) -> (InstanceId, Exit, Vec<String>) {
        let InstanceEvent::Exited {
            id,
            exit,
            last_lines,
            ..
        } = timeout(PATIENCE, self.events.recv())
            .await
            .expect("an exit in time")
            .unwrap();
        // As the server does once it wrote the exit down.
        self.driver.acknowledge(&id).await.unwrap();
        (id, exit, last_lines)
    }

    /// Makes sure that no exit comes: all that there are have been sent before the keeper answers this.
    pub async fn no_more_exits(&mut self) {
        self.driver.status().await.unwrap();
        assert!(self.events.try_recv().is_err(), "an exit was told twice");
    }

    /// Until the instance answers HTTP.
    pub async fn get(&self, id: &InstanceId) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_get(id).await {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn try_get(&self, id: &InstanceId) -> std::io::Result<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (socket, address): (_, SocketAddr) = self
            .driver
            .socket(id)
            .await
            .map_err(std::io::Error::other)?;
        let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let mut stream = socket.connect(address).await?;
        stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

/// Waits for `condition`, looking again and again.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether `exit` tells of a SIGKILL as well as the kernel lets it. An instance is no child of a keeper that adopted it, so only a
/// kernel that tells strangers (Linux 6.15) knows how it ended.
pub fn tells_of_sigkill(exit: &Exit) -> bool {
    let known = utsuwa_runtime::sandbox::probe::probe()
        .exit_by_pidfd
        .is_ok();
    *exit == Exit::Signal(9) || (!known && matches!(exit, Exit::Unknown { .. }))
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn busybox_layer(layers: &Path) -> String {
    busybox::make_layer(layers, 0x0b, |root| {
        busybox::put_busybox(root, &APPLETS);
        fs::create_dir(root.join("www")).unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        fs::write(root.join("www/hello"), "hello from inside\n").unwrap();
    })
}

/// Whether the kernel says that everything in the cgroup of `pid` has come to rest.
pub fn at_rest(pid: u32) -> bool {
    let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    memberships.lines().any(|line| {
        let (controllers, path) = line.split_once(':').unwrap().1.split_once(':').unwrap();
        let path = path.trim_start_matches('/');
        let (file, says) = match controllers {
            "" => (
                Path::new("/sys/fs/cgroup").join(path).join("cgroup.events"),
                "frozen 1",
            ),
            "freezer" => {
                let hierarchy = Path::new("/sys/fs/cgroup/freezer");
                (hierarchy.join(path).join("freezer.state"), "FROZEN")
            }
            _ => return false,
        };
        fs::read_to_string(file).is_ok_and(|text| text.contains(says))
    })
}

/// The CPU time that the cgroup of `pid` gets per 100 ms, in microseconds.
pub fn cpu_quota(pid: u32) -> u64 {
    limit(pid, "cpu", "cpu.max", "cpu.cfs_quota_us").expect("a CPU limit")
}

/// The memory that the cgroup of `pid` may have; `None`: no limit.
pub fn memory_limit(pid: u32) -> Option<u64> {
    limit(pid, "memory", "memory.max", "memory.limit_in_bytes")
        // No limit on v1 is the largest number that it can count.
        .filter(|bytes| *bytes < 1 << 60)
}

/// What the cgroup of `pid` says of a controller, in the file of v2 or of v1.
fn limit(pid: u32, controller: &str, v2: &str, v1: &str) -> Option<u64> {
    let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in memberships.lines() {
        let (controllers, path) = line.split_once(':').unwrap().1.split_once(':').unwrap();
        let path = path.trim_start_matches('/');
        // v1: one directory for each controller; v2: one for all.
        let file = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup").join(path).join(v2),
            all if all.split(',').any(|one| one == controller) => PathBuf::from("/sys/fs/cgroup")
                .join(controller)
                .join(path)
                .join(v1),
            _ => continue,
        };
        if let Ok(text) = fs::read_to_string(file) {
            return text.split_whitespace().next().unwrap().parse().ok();
        }
    }
    panic!("process {pid} has no {controller} limit: {memberships}");
}

/// A second of a real machine's time. One without hardware help, beside other work, takes a multiple of it for the same.
#[expect(
    clippy::disallowed_methods,
    reason = "a test learns of its machine from the environment"
)]
pub fn a_second() -> Duration {
    let emulated = std::env::var_os("UTSUWA_TEST_EMULATED").is_some();
    Duration::from_secs(if emulated { 15 } else { 1 })
}
