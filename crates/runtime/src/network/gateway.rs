//! The privileged half of the network: the gateway namespace, its uplink and the cables.
//!
//! Owns: [`Gateway`], address numbers, per-sandbox sockets. Doesn't: hold state that a new housekeeper couldn't read back
//! from the kernel or from `network.json`.
//!
//! Addresses: one /16 of 198.18.0.0/15 or 100.64.0.0/10 that no route of the host overlaps, and one ULA /64 made from
//! the id. Number 1 is the host's end of the uplink, 2 the gateway's, 16 and above are sandboxes. All are /32 and /128:
//! a sandbox has no neighbours, only a default route to the gateway.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::netlink::{End, Message, Netlink, Route};
use super::rules::{self, CABLE_PREFIX, UPLINK_INSIDE};
use super::sysctl::{self, Record};
use super::{EgressRule, HOST_ADDRESS, INTERNAL_ADDRESS, NetConfig, NetError, NetInfo, SocketRole};
use super::{firewall, namespace, refusal};

/// The gateway as a next hop inside sandboxes (IPv6).
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const FIRST_INDEX: u32 = 16;
const LAST_INDEX: u32 = 65_533;
const RANGE_PREFIX: u8 = 16;
const RANGE6_PREFIX: u8 = 64;
/// A cable vanishes with its sandbox's namespace, which the kernel clears away in batches. Removing one by hand takes up to
/// tens of milliseconds, so it is done only for those that stay longer than this.
const FADE: Duration = Duration::from_secs(5);
/// Cables removed by hand in one go.
const SWEEP: usize = 4;
/// Waiting connections per listener; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// The gateway namespace of one server and everything joined to it.
#[derive(Debug)]
pub struct Gateway {
    config: NetConfig,
    netns: OwnedFd,
    netlink: Netlink,
    range: Ipv4Addr,
    range6: Ipv6Addr,
    v6: bool,
    mtu: u32,
    /// Address number → sandbox.
    taken: BTreeMap<u32, u32>,
    /// Detached sandboxes whose cables may still be there, oldest first.
    fading: VecDeque<(u32, Instant)>,
    refusals: Vec<OwnedFd>,
}

impl Gateway {
    /// Makes or finds again the gateway namespace, its uplink, the tables and forwarding. Idempotent; a changed
    /// `config` takes effect at once for the tables, and for sandboxes attached from now on for their sockets.
    ///
    /// # Errors
    /// [`NetError`], naming the step.
    pub fn set_up(config: &NetConfig) -> Result<Self, NetError> {
        let tag = tag(&config.id)?;
        let mut host = Netlink::open()?;
        let mut record = Record::load(&config.id);
        let (links, routes) = (host.links()?, host.routes()?);
        let uplink = links.iter().find(|link| link.name == tag);
        let others: Vec<Route> = routes
            .iter()
            .filter(|route| route.link.is_none() || route.link != uplink.map(|uplink| uplink.index))
            .cloned()
            .collect();
        let range = choose_range(&config.id, record.range, &others)?;
        let range6 = range6(&config.id);
        let outside = |v6: bool| {
            others.iter().filter(move |route| {
                route.prefix == 0 && route.unicast && route.destination.is_ipv6() == v6
            })
        };
        let v6 = outside(true).next().is_some()
            && sysctl::read("net/ipv6/conf/all/forwarding").is_some();
        let mtu = config.mtu.unwrap_or_else(|| {
            let of = |route: &Route| {
                route.mtu.or_else(|| {
                    links
                        .iter()
                        .find(|link| Some(link.index) == route.link)
                        .map(|link| link.mtu)
                })
            };
            outside(false)
                .chain(outside(true))
                .filter_map(of)
                .min()
                .unwrap_or(1500)
                .clamp(1280, 9000)
        });
        record.range = Some(range);
        record.save(&config.id)?;

        let found = namespace::find(&config.id);
        let fresh = found.is_none();
        let netns = match found {
            Some(netns) => netns,
            None => namespace::make(&config.id)?,
        };
        let (netlink, inner_group, inner_refusals) = namespace::inside(netns.as_fd(), || {
            prepare_namespace()?;
            let (refusals, group) = refusal::subscribe()?;
            Ok((Netlink::open()?, group, refusals))
        })?;
        let (outer_refusals, outer_group) = refusal::subscribe()?;
        let mut gateway = Self {
            config: config.clone(),
            netns,
            netlink,
            range,
            range6,
            v6,
            mtu,
            taken: BTreeMap::new(),
            fading: VecDeque::new(),
            refusals: vec![inner_refusals, outer_refusals],
        };
        gateway.connect_uplink(&mut host, &tag, fresh)?;
        let mut policy = rules::Policy {
            table: &tag,
            uplink: &tag,
            range: (range, RANGE_PREFIX),
            range6: (range6, RANGE6_PREFIX),
            allow: &config.allow,
            group: inner_group,
        };
        namespace::inside(gateway.netns.as_fd(), || rules::load(&policy.gateway()))?;
        policy.group = outer_group;
        rules::load(&policy.host())?;
        firewall::open(&tag, &tag)?;
        forward(&mut record, v6)?;
        record.save(&config.id)?;
        gateway.find_cables()?;
        Ok(gateway)
    }

    /// Joins `netns` to the gateway as sandbox number `sandbox` and returns the sockets of [`NetInfo::sockets`].
    /// A cable left from an earlier sandbox of that number is replaced.
    ///
    /// # Errors
    /// [`NetError`]; nothing of the sandbox is left in the gateway then.
    pub fn attach(
        &mut self,
        sandbox: u32,
        netns: BorrowedFd<'_>,
    ) -> Result<(NetInfo, Vec<OwnedFd>), NetError> {
        self.detach(sandbox)?;
        // A leftover of that name is replaced now; sweeping it later would hit the new cable.
        self.fading.retain(|(faded, _)| *faded != sandbox);
        let span = LAST_INDEX - FIRST_INDEX + 1;
        let index = (0..span)
            .map(|step| FIRST_INDEX + (sandbox % span + step) % span)
            .find(|index| !self.taken.contains_key(index))
            .ok_or(NetError::AddressesUsedUp(span))?;
        self.taken.insert(index, sandbox);
        let attached = self.join(sandbox, index, netns);
        if attached.is_err() {
            // The first error is the one to report.
            let _ = self.detach(sandbox);
        }
        attached
    }

    /// Lets the cable of `sandbox` go: its address may be given away at once, and the cable ends with the sandbox's network
    /// namespace, or is removed by a later call if that outlives it. A sandbox that isn't attached is no error.
    ///
    /// # Errors
    /// [`NetError`], naming the step.
    pub fn detach(&mut self, sandbox: u32) -> Result<(), NetError> {
        let known = self.taken.len();
        self.taken.retain(|_, holder| *holder != sandbox);
        if self.taken.len() != known {
            self.fading.push_back((sandbox, Instant::now()));
        }
        self.sweep()
    }

    /// Removes cables that should have vanished by now.
    fn sweep(&mut self) -> Result<(), NetError> {
        for _ in 0..SWEEP {
            match self.fading.front() {
                Some((sandbox, since)) if since.elapsed() >= FADE => {
                    let name = cable(*sandbox);
                    self.fading.pop_front();
                    self.netlink.run(vec![Message::remove_link(&name)])?;
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Sockets that deliver refused connections to [`super::RefusalReader`]: one of the gateway, one of the host. The same
    /// sockets at each call, so only one reader gets each report.
    ///
    /// # Errors
    /// When a descriptor can't be duplicated.
    pub fn refusal_sockets(&self) -> Result<Vec<OwnedFd>, NetError> {
        let copies: Result<_, _> = self.refusals.iter().map(OwnedFd::try_clone).collect();
        copies.map_err(|error| NetError::sys("duplicate the sockets of refused connections", error))
    }

    /// Removes everything that [`Gateway::set_up`] and [`Gateway::attach`] made for the server `id`, whoever called them.
    ///
    /// # Errors
    /// The first [`NetError`]; what can be removed is removed regardless.
    pub fn tear_down(id: &str) -> Result<(), NetError> {
        let tag = tag(id)?;
        let mut outcome = Ok(());
        if let Some(netns) = namespace::find(id) {
            // Sockets of a server that still runs would keep the namespace and its cables alive.
            let emptied = namespace::inside(netns.as_fd(), || {
                let mut netlink = Netlink::open()?;
                let cables = netlink
                    .links()?
                    .into_iter()
                    .filter(|link| link.name.starts_with(CABLE_PREFIX));
                netlink.run(
                    cables
                        .map(|link| Message::remove_link(&link.name))
                        .collect(),
                )?;
                rules::unload(&tag)
            });
            outcome = outcome.and(emptied);
        }
        let mut host = Netlink::open()?;
        outcome = outcome.and(host.run(vec![Message::remove_link(&tag)]));
        outcome = outcome.and(rules::unload(&tag));
        outcome = outcome.and(firewall::close(&tag));
        outcome = outcome.and(Record::load(id).restore(id));
        outcome = outcome.and(Record::remove(id));
        outcome = outcome.and(namespace::release(id));
        outcome
    }

    /// Makes the uplink, unless it is there and leads to this namespace, and (again) all that belongs to it.
    fn connect_uplink(
        &mut self,
        host: &mut Netlink,
        tag: &str,
        fresh: bool,
    ) -> Result<(), NetError> {
        let outer = hardware(0xfffe_0001);
        let inner = hardware(0xfffe_0002);
        let complete = !fresh && host.link(tag).is_ok() && self.netlink.link(UPLINK_INSIDE).is_ok();
        if !complete {
            host.run(vec![Message::remove_link(tag)])?;
            let (here, there) = (
                End {
                    name: tag,
                    hardware: outer,
                },
                End {
                    name: UPLINK_INSIDE,
                    hardware: inner,
                },
            );
            host.run(vec![Message::make_cable(
                here,
                there,
                self.netns.as_fd(),
                self.mtu,
            )])?;
        }
        let (outside, inside) = (
            host.link(tag)?.index,
            self.netlink.link(UPLINK_INSIDE)?.index,
        );
        let any = |v6: bool| {
            if v6 {
                IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            } else {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            }
        };
        let (mut hosts, mut ours) = (
            vec![Message::up(outside)],
            vec![Message::up(1), Message::up(inside)],
        );
        for v6 in if self.v6 {
            &[false, true][..]
        } else {
            &[false][..]
        } {
            let (near, far) = (self.numbered(1, *v6), self.numbered(2, *v6));
            let (network, prefix) = if *v6 {
                (self.range6.into(), RANGE6_PREFIX)
            } else {
                (self.range.into(), RANGE_PREFIX)
            };
            hosts.push(Message::address(outside, near));
            hosts.push(Message::neighbour(outside, far, inner));
            hosts.push(Message::route(network, prefix, outside, Some(far)));
            ours.push(Message::address(inside, far));
            ours.push(Message::neighbour(inside, near, outer));
            ours.push(Message::route(any(*v6), 0, inside, Some(near)));
        }
        ours.push(Message::address(1, INTERNAL_ADDRESS.into()));
        ours.push(Message::address(1, HOST_ADDRESS.into()));
        host.run(hosts)?;
        self.netlink.run(ours)
    }

    fn join(
        &mut self,
        sandbox: u32,
        index: u32,
        netns: BorrowedFd<'_>,
    ) -> Result<(NetInfo, Vec<OwnedFd>), NetError> {
        let name = cable(sandbox);
        let (here, there) = (hardware(0xfffe_0003), hardware(index));
        let mut within = namespace::inside(netns, || {
            prepare_sandbox()?;
            Netlink::open()
        })?;
        let ends = (
            End {
                name: &name,
                hardware: here,
            },
            End {
                name: "eth0",
                hardware: there,
            },
        );
        // A link of that name that we don't know of is a leftover.
        self.netlink.run(vec![
            Message::remove_link(&name),
            Message::make_cable(ends.0, ends.1, netns, self.mtu),
        ])?;
        let outside = self.netlink.link(&name)?.index;
        let eth0 = within.link("eth0")?.index;

        let mut inner = vec![Message::up(1), Message::up(eth0)];
        let mut outer = vec![Message::up(outside)];
        let mut hops: Vec<(IpAddr, IpAddr, IpAddr)> = vec![(
            self.numbered(index, false),
            INTERNAL_ADDRESS.into(),
            Ipv4Addr::UNSPECIFIED.into(),
        )];
        if self.v6 {
            hops.push((
                self.numbered(index, true),
                GATEWAY6.into(),
                Ipv6Addr::UNSPECIFIED.into(),
            ));
        }
        for (address, hop, any) in &hops {
            inner.push(Message::address(eth0, *address));
            inner.push(Message::neighbour(eth0, *hop, here));
            inner.push(Message::route(*any, 0, eth0, Some(*hop)));
            outer.push(Message::neighbour(outside, *address, there));
            outer.push(Message::route(
                *address,
                if address.is_ipv4() { 32 } else { 128 },
                outside,
                None,
            ));
        }
        within.run(inner)?;
        self.netlink.run(outer)?;

        let (roles, sockets) =
            namespace::inside(self.netns.as_fd(), || sandbox_sockets(&self.config, &name))?;
        let address = Ipv4Addr::from(u32::from(self.range) + index);
        let address6 = self
            .v6
            .then(|| Ipv6Addr::from(u128::from(self.range6) + u128::from(index)));
        Ok((
            NetInfo {
                index,
                host_veth: name,
                address,
                address6,
                sockets: roles,
            },
            sockets,
        ))
    }

    /// Learns which sandboxes an earlier housekeeper attached.
    fn find_cables(&mut self) -> Result<(), NetError> {
        let links = self.netlink.links()?;
        for route in self.netlink.routes()? {
            let IpAddr::V4(address) = route.destination else {
                continue;
            };
            let Some(link) = links.iter().find(|link| Some(link.index) == route.link) else {
                continue;
            };
            if let (32, Some(Ok(sandbox))) = (
                route.prefix,
                link.name.strip_prefix(CABLE_PREFIX).map(str::parse),
            ) {
                self.taken.insert(
                    u32::from(address).wrapping_sub(u32::from(self.range)),
                    sandbox,
                );
            }
        }
        Ok(())
    }

    fn numbered(&self, index: u32, v6: bool) -> IpAddr {
        if v6 {
            IpAddr::V6(Ipv6Addr::from(u128::from(self.range6) + u128::from(index)))
        } else {
            IpAddr::V4(Ipv4Addr::from(u32::from(self.range) + index))
        }
    }
}

/// The name of the uplink, the tables and the tag of rules: at most 15 characters.
fn tag(id: &str) -> Result<String, NetError> {
    let fits = (1..=8).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if fits {
        Ok(format!("utsuwa-{id}"))
    } else {
        Err(NetError::BadId(id.to_owned()))
    }
}

fn cable(sandbox: u32) -> String {
    format!("{CABLE_PREFIX}{sandbox}")
}

/// A locally administered unicast hardware address.
fn hardware(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [0x02, 0x75, a, b, c, d]
}

/// FNV-1a: spreads ids over ranges, nothing more.
fn spread(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn range6(id: &str) -> Ipv6Addr {
    let [.., a, b, c, d, e] = spread(id).to_be_bytes();
    Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// The range of an earlier run, or else the first free one, starting at a place that differs by id.
fn choose_range(
    id: &str,
    earlier: Option<Ipv4Addr>,
    routes: &[Route],
) -> Result<Ipv4Addr, NetError> {
    let candidates: Vec<Ipv4Addr> = [198_u8, 198]
        .iter()
        .zip([18_u8, 19])
        .map(|(a, b)| (*a, b))
        .chain((64..128).map(|b| (100, b)))
        .map(|(a, b)| Ipv4Addr::new(a, b, 0, 0))
        .collect();
    let overlaps = |range: Ipv4Addr| {
        routes.iter().any(|route| {
            let IpAddr::V4(destination) = route.destination else {
                return false;
            };
            // Wider than /8 is a default route in disguise (a VPN's 0.0.0.0/1).
            let common = u32::from(route.prefix.min(RANGE_PREFIX));
            route.prefix >= 8 && (u32::from(destination) ^ u32::from(range)) >> (32 - common) == 0
        })
    };
    let start = usize::try_from(spread(id) % candidates.len() as u64).unwrap_or(0);
    earlier
        .into_iter()
        .chain(
            candidates[start..]
                .iter()
                .chain(&candidates[..start])
                .copied(),
        )
        .find(|range| !overlaps(*range))
        .ok_or_else(|| NetError::NoFreeRange {
            tried: "198.18.0.0/15 and 100.64.0.0/10 (in steps of /16)".to_owned(),
        })
}

/// Switches of the gateway namespace. Defaults first: new links take them over.
fn prepare_namespace() -> Result<(), NetError> {
    quiet_ipv6()?;
    for which in ["all", "default"] {
        sysctl::write(&format!("net/ipv4/conf/{which}/send_redirects"), "0")?;
        sysctl::write(&format!("net/ipv4/conf/{which}/accept_redirects"), "0")?;
        sysctl::write(&format!("net/ipv4/conf/{which}/arp_ignore"), "8")?;
    }
    sysctl::write("net/ipv4/ip_forward", "1")?;
    sysctl::write("net/ipv6/conf/all/forwarding", "1")
}

/// Switches of a sandbox: low ports and ping for everybody in it, as on Cloud Run.
fn prepare_sandbox() -> Result<(), NetError> {
    quiet_ipv6()?;
    sysctl::write("net/ipv4/ip_unprivileged_port_start", "0")?;
    sysctl::write("net/ipv4/ping_group_range", "0 2147483647")
}

/// No addresses of the kernel's own making, no waiting for duplicates, no routers found by themselves.
fn quiet_ipv6() -> Result<(), NetError> {
    for (switch, value) in [
        ("addr_gen_mode", "1"),
        ("accept_dad", "0"),
        ("accept_ra", "0"),
        ("router_solicitations", "0"),
    ] {
        sysctl::write(&format!("net/ipv6/conf/default/{switch}"), value)?;
    }
    Ok(())
}

/// Lets the host forward. An interface that learned its IPv6 routes from announcements would stop to do so when
/// forwarding starts, hence the 2.
fn forward(record: &mut Record, v6: bool) -> Result<(), NetError> {
    record.change("net/ipv4/ip_forward", "1")?;
    if v6 && sysctl::read("net/ipv6/conf/all/forwarding").as_deref() == Some("0") {
        let names = std::fs::read_dir("/proc/sys/net/ipv6/conf").map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        });
        for name in names
            .unwrap_or_default()
            .iter()
            .filter(|name| *name != "all")
        {
            let path = format!("net/ipv6/conf/{name}/accept_ra");
            if sysctl::read(&path).as_deref() == Some("1") {
                record.change(&path, "2")?;
            }
        }
        record.change("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// The sockets of one cable, in the thread's namespace. Many cables have sockets with the same address and port; bound to
/// their device they don't collide, and each hears only its own cable.
fn sandbox_sockets(
    config: &NetConfig,
    name: &str,
) -> Result<(Vec<SocketRole>, Vec<OwnedFd>), NetError> {
    let mut roles = vec![SocketRole::DnsUdp, SocketRole::DnsTcp];
    roles.extend(
        config
            .ingress_ports
            .iter()
            .map(|port| SocketRole::Ingress { port: *port }),
    );
    roles.extend(config.allow.iter().filter_map(|rule| match rule {
        EgressRule::Host { port } => Some(SocketRole::HostForward { port: *port }),
        EgressRule::Network { .. } => None,
    }));
    let mut unique = Vec::new();
    roles.retain(|role| {
        !unique.contains(role) && {
            unique.push(*role);
            true
        }
    });
    let sockets: Result<Vec<_>, _> = roles.iter().map(|role| bound_socket(*role, name)).collect();
    Ok((roles, sockets?))
}

fn bound_socket(role: SocketRole, device: &str) -> Result<OwnedFd, NetError> {
    let (address, port, kind) = match role {
        SocketRole::DnsUdp => (INTERNAL_ADDRESS, 53, Type::DGRAM),
        SocketRole::DnsTcp => (INTERNAL_ADDRESS, 53, Type::STREAM),
        SocketRole::Ingress { port } => (INTERNAL_ADDRESS, port, Type::STREAM),
        SocketRole::HostForward { port } => (HOST_ADDRESS, port, Type::STREAM),
    };
    let open = || -> std::io::Result<OwnedFd> {
        let protocol = if kind == Type::DGRAM {
            Protocol::UDP
        } else {
            Protocol::TCP
        };
        let socket = Socket::new(Domain::IPV4, kind.cloexec().nonblocking(), Some(protocol))?;
        // The device first: without it the second cable's bind would collide with the first's.
        socket.bind_device(Some(device.as_bytes()))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((address, port)).into())?;
        if kind == Type::STREAM {
            socket.listen(BACKLOG)?;
        }
        Ok(socket.into())
    };
    open().map_err(|error| NetError::sys(format!("listen at {address}:{port} on {device}"), error))
}
