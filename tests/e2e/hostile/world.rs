//! A made-up host: a network namespace that the server under test takes for the machine's, and behind its only cable a world with
//! the addresses that instances must not reach.
//!
//! Owns: both namespaces, who listens where, the bait. The thread that makes a [`World`] lives in its host namespace from then on,
//! and so does all that it starts.

use std::io::{BufRead, BufReader};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::harness::{Server, until};

/// Where everything that could be reached listens, instances too.
const PORT: u16 = 8080;
const HOST: &str = "10.66.200.2";
/// What is behind the cable: one public address as a control, the rest closed to instances.
const ADDRESSES: [&str; 12] = [
    "203.0.113.1",
    "10.66.0.1",
    "172.16.66.1",
    "192.168.66.1",
    "100.64.66.1",
    "169.254.66.1",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd66::1",
];
const MORE_ADDRESSES: [&str; 3] = ["fd00:ec2::254", "64:ff9b::a42:1", "2002:a42:1::1"];

/// See above. Dropped last.
#[derive(Debug)]
pub(crate) struct World {
    names: [String; 2],
    end: Arc<AtomicBool>,
    listeners: Vec<std::thread::JoinHandle<()>>,
    bait: Option<(Child, ChildStdin)>,
    /// `pid=…&at=…` of the bait.
    bait_at: String,
    /// A port that listens on the host's loopback alone.
    loopback: u16,
    before: std::fs::File,
}

impl World {
    pub(crate) fn new(program: &Path) -> Self {
        let id = std::process::id();
        let names = [format!("uth{id}"), format!("utw{id}")];
        let before = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        for name in &names {
            run("ip", &["netns", "add", name]);
            run("ip", &["-n", name, "link", "set", "lo", "up"]);
        }
        let [host, world] = &names;
        run(
            "ip",
            &[
                "-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns",
                world,
            ],
        );
        for (space, address, address6) in [
            (host, "10.66.200.2/24", "2001:db8:66::2/64"),
            (world, "10.66.200.1/24", "2001:db8:66::1/64"),
        ] {
            run(
                "ip",
                &["-n", space, "address", "add", address, "dev", "eth0"],
            );
            run(
                "ip",
                &[
                    "-n", space, "address", "add", address6, "dev", "eth0", "nodad",
                ],
            );
            run("ip", &["-n", space, "link", "set", "eth0", "up"]);
        }
        run(
            "ip",
            &["-n", host, "route", "add", "default", "via", "10.66.200.1"],
        );
        run(
            "ip",
            &[
                "-n",
                host,
                "route",
                "add",
                "default",
                "via",
                "2001:db8:66::1",
            ],
        );
        for address in ADDRESSES.iter().chain(&MORE_ADDRESSES) {
            run("ip", &["-n", world, "address", "add", address, "dev", "lo"]);
        }
        let end = Arc::new(AtomicBool::new(false));
        let mut listeners = vec![accept(listen_in(world, PORT), &end)];
        // The real metadata address answers at its own port.
        listeners.push(accept(listen_in(world, 80), &end));
        enter(host);
        listeners.push(accept(listen_in(host, PORT), &end));
        let only = TcpListener::bind("127.0.0.1:0").unwrap();
        let loopback = only.local_addr().unwrap().port();
        listeners.push(accept(TcpListener::bind(("::1", loopback)).unwrap(), &end));
        listeners.push(accept(only, &end));
        let mut world = Self {
            names,
            end,
            listeners,
            bait: None,
            bait_at: String::new(),
            loopback,
            before,
        };
        world.put_out_bait(program);
        world
    }

    fn put_out_bait(&mut self, program: &Path) {
        let mut child = Command::new(program)
            .arg("bait")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        self.bait_at = format!("pid={}&at={}", told["pid"], told["at"].as_str().unwrap());
        let hold = child.stdin.take().unwrap();
        self.bait = Some((child, hold));
    }

    /// What the attempts are told: where things are that must not be reached, and the limits they must not pass.
    pub(crate) fn parameters(&self, server: &Server, peer: &str) -> String {
        let pid = until(
            "the peer to have an instance",
            Duration::from_secs(20),
            || server.instance_pids(peer).first().copied(),
        );
        let inside = |family: &str| {
            let shown = text(
                "nsenter",
                &[
                    "--target",
                    &pid.to_string(),
                    "--net",
                    "ip",
                    "-brief",
                    family,
                    "address",
                    "show",
                    "up",
                    "scope",
                    "global",
                ],
            );
            first_address(&shown, |_| true)
        };
        let gateway = first_address(
            &text("ip", &["-brief", "-4", "address", "show"]),
            |device| device != "lo" && !device.starts_with("eth0"),
        );
        format!(
            "port={PORT}&loopback={}&api={}&host={HOST}&gateway={gateway}&peer={}&peer6={}&{}{}",
            self.loopback,
            server.api.port(),
            inside("-4"),
            inside("-6"),
            self.bait_at,
            if has_resource() { "&resource=1" } else { "" },
        )
    }

    /// For the same attempts made on the host itself, without a sandbox.
    pub(crate) fn bare_parameters(&self) -> String {
        format!(
            "port={PORT}&loopback={0}&api={0}&host=127.0.0.1&{1}",
            self.loopback, self.bait_at
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((mut child, hold)) = self.bait.take() {
            drop(hold);
            drop(child.wait());
        }
        self.end.store(true, Ordering::Relaxed);
        for listener in self.listeners.drain(..) {
            drop(listener.join());
        }
        let _ = move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network));
        for name in &self.names {
            drop(Command::new("ip").args(["netns", "delete", name]).status());
        }
    }
}

/// Whether root here may set what only `CAP_SYS_RESOURCE` may; some hosts take it away.
fn has_resource() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap() & (1 << 24) != 0
}

/// The first address in the output of `ip -brief address`, without its prefix length, of a device that is wanted.
fn first_address(shown: &str, wanted: impl Fn(&str) -> bool) -> String {
    shown
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let device = words.next()?;
            let address = words.nth(1)?.split('/').next()?;
            wanted(device).then(|| address.to_owned())
        })
        .next()
        .unwrap_or_default()
}

fn enter(namespace: &str) {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// A socket belongs to the namespace in which it was made, whoever accepts from it.
fn listen_in(namespace: &str, port: u16) -> TcpListener {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            enter(namespace);
            TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).unwrap()
        });
        made.join().unwrap()
    })
}

/// Takes connections and lets them go until told to end.
fn accept(listener: TcpListener, end: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    listener.set_nonblocking(true).unwrap();
    let end = end.clone();
    std::thread::Builder::new()
        .name("listener".to_owned())
        .spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if listener.accept().is_err() {
                    std::thread::park_timeout(Duration::from_millis(5));
                }
            }
        })
        .unwrap()
}

fn run(program: &str, args: &[&str]) {
    text(program, args);
}

fn text(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
