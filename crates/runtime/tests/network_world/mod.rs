//! A host and an internet to test the network in: two network namespaces with a cable between them.

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};
use utsuwa_runtime::network::{EgressRule, Gateway, NetConfig};

/// A server on the internet.
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(crate) const INTERNET6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 10);
/// A server in a private network that the host reaches.
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
pub(crate) const PRIVATE6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 9);

pub(crate) struct World {
    pub(crate) id: String,
    host: Namespace,
    internet: Namespace,
}

struct Namespace {
    name: String,
    descriptor: OwnedFd,
}

impl Namespace {
    fn new(name: String) -> Self {
        shell(&format!(
            "ip netns add {name} && ip -n {name} link set lo up"
        ));
        let descriptor = std::fs::File::open(format!("/run/netns/{name}"))
            .unwrap()
            .into();
        Self { name, descriptor }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

impl World {
    /// `None`, with a word about it, without root.
    pub(crate) fn new(test: &str, letter: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            crate::skip::skip(test, "the network tests need root");
            return None;
        }
        let id = format!("{letter}{:x}", std::process::id());
        let host = Namespace::new(format!("utsuwa-test-host-{id}"));
        let internet = Namespace::new(format!("utsuwa-test-net-{id}"));
        let (h, i) = (&host.name, &internet.name);
        shell(&format!(
            "ip netns exec {h} sysctl -qw net.ipv4.ip_forward=0
             ip -n {h} link add h0 type veth peer name i0 netns {i}
             ip -n {h} addr add 192.0.2.2/24 dev h0; ip -n {i} addr add 192.0.2.1/24 dev i0
             ip -n {h} addr add 2001:db8:1::2/64 dev h0 nodad; ip -n {i} addr add 2001:db8:1::1/64 dev i0 nodad
             ip -n {h} link set h0 up; ip -n {i} link set i0 up
             ip -n {h} route add default via 192.0.2.1; ip -n {h} -6 route add default via 2001:db8:1::1
             ip -n {i} addr add {INTERNET}/32 dev lo; ip -n {i} addr add {INTERNET6}/128 dev lo nodad
             ip -n {i} addr add {PRIVATE}/32 dev lo; ip -n {i} addr add {PRIVATE6}/128 dev lo nodad"
        ));
        let world = Self { id, host, internet };
        for listener in
            world.at_internet(|| [TcpListener::bind("0.0.0.0:80").unwrap(), v6_listener()])
        {
            // Ends with the test process.
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let caller = stream.peer_addr().unwrap().ip();
                    let mut said = Vec::new();
                    let _ = stream.read_to_end(&mut said);
                    let _ = stream.write_all(format!("you are {caller}").as_bytes());
                }
            });
        }
        Some(world)
    }

    pub(crate) fn config(&self, id: &str, allow: &[EgressRule]) -> NetConfig {
        let id = format!("{id}{}", &self.id[1..]);
        NetConfig {
            id,
            ingress_ports: vec![8080],
            allow: allow.to_vec(),
            mtu: None,
        }
    }

    pub(crate) fn set_up(&self, allow: &[EgressRule]) -> Gateway {
        let config = self.config(&self.id[..1], allow);
        self.on_host(|| Gateway::set_up(&config).unwrap())
    }

    pub(crate) fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(self.host.descriptor.as_fd(), work)
    }

    pub(crate) fn at_internet<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(self.internet.descriptor.as_fd(), work)
    }

    pub(crate) fn spawn_on_host(&self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let host = self.host.descriptor.try_clone().unwrap();
        std::thread::spawn(move || {
            setns(host, CloneFlags::CLONE_NEWNET).unwrap();
            work();
        })
    }

    pub(crate) fn run_on_host(&self, command: &str) -> String {
        self.on_host(|| shell(command))
    }

    pub(crate) fn on_internet(&self, command: &str) -> String {
        self.at_internet(|| shell(command))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let id = self.id.clone();
        let _ = self.on_host(|| Gateway::tear_down(&id));
    }
}

/// A process in its own network namespace, owned by a user namespace that maps nobody: as the launcher's pool holds them.
pub(crate) struct Sandbox {
    process: Child,
    netns: OwnedFd,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let mut process = Command::new("unshare")
            .args(["--user", "--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", process.id()));
        assert!(netns.is_ok(), "{netns:?}; it ended: {:?}", {
            // One that lives is ended by signal 9 now.
            drop(process.kill());
            process.wait()
        });
        let netns = netns.unwrap().into();
        Self { process, netns }
    }

    pub(crate) fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(self.netns.as_fd(), work)
    }

    pub(crate) fn run(&self, command: &str) -> String {
        self.inside(|| shell(command))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs `work` in a thread of its own in that network namespace.
fn within<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    let result = std::thread::scope(|scope| {
        let body = || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(body).join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// IPv6 only, so that the IPv4 listener may share the port.
fn v6_listener() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    socket.set_only_v6(true).unwrap();
    socket
        .bind(&std::net::SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80)).into())
        .unwrap();
    socket.listen(16).unwrap();
    socket.into()
}
