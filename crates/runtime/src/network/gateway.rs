//! The privileged half of the network: the gateway namespace, its uplink and the cables.
//!
//! Owns: [`Gateway`], address numbers, per-sandbox sockets. Doesn't: hold state that a new housekeeper couldn't read back
//! from the kernel or from `network.json`.
//!
//! Addresses: one /16 of 198.18.0.0/15 or 100.64.0.0/10 that no route of the host overlaps, and one ULA /64 made from
//! the id. Number 1 is the host's end of the uplink, 2 the gateway's, 16 and above are sandboxes. All are /32 and /128:
//! a sandbox has no neighbours, only a default route to the gateway.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::addresses::{RANGE_PREFIX, RANGE6_PREFIX, choose_range, hardware, range6, tag};
use super::netlink::{End, Message, Netlink, Route};
use super::prepare::{bound_socket, forward, prepare_namespace, prepare_sandbox, sandbox_sockets};
use super::rules::{self, CABLE_PREFIX};
use super::sysctl::{self, Record};
use super::watch::Watch;
use super::{INTERNAL_ADDRESS, NetConfig, NetError, NetInfo};
use super::{namespace, refusal};

/// The gateway as a next hop inside sandboxes (IPv6).
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const FIRST_INDEX: u32 = 16;
const LAST_INDEX: u32 = 65_533;
/// A cable vanishes with its sandbox's namespace, which the kernel clears away in batches. Removing one by hand takes up to
/// tens of milliseconds, so it is done only for those that stay longer than this.
const FADE: Duration = Duration::from_secs(5);
/// Cables removed by hand in one go.
const SWEEP: usize = 4;
/// The gateway namespace of one server and everything joined to it.
#[derive(Debug)]
pub struct Gateway {
    config: NetConfig,
    pub(super) netns: OwnedFd,
    pub(super) netlink: Netlink,
    pub(super) range: Ipv4Addr,
    pub(super) range6: Ipv6Addr,
    pub(super) v6: bool,
    pub(super) mtu: u32,
    /// Address number → sandbox.
    taken: BTreeMap<u32, u32>,
    /// Detached sandboxes whose cables may still be there, oldest first.
    fading: VecDeque<(u32, Instant)>,
    refusals: Vec<OwnedFd>,
    watch: Watch,
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
        let mut policy = rules::Policy {
            table: &tag,
            uplink: &tag,
            range: (range, RANGE_PREFIX),
            range6: (range6, RANGE6_PREFIX),
            allow: &config.allow,
            group: inner_group,
        };
        // Before there is a way for any packet.
        namespace::inside(netns.as_fd(), || rules::load(&policy.gateway()))?;
        policy.group = outer_group;
        let watch = Watch::begin(&tag, policy.host())?;
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
            watch,
        };
        gateway.connect_uplink(&mut host, &tag, fresh)?;
        forward(&mut record, &config.id, v6)?;
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

    /// Readable when the host's rules were changed, by whomever: then [`Gateway::look`].
    #[must_use]
    pub fn news(&self) -> BorrowedFd<'_> {
        self.watch.news()
    }

    /// When to [`Gateway::look`] where nothing is to be read.
    #[must_use]
    pub fn next_look(&self) -> Duration {
        self.watch.next()
    }

    /// Whether the host's half of the rules still stands; what is missing is set again and named, here and in the log.
    pub fn look(&mut self) -> Vec<String> {
        self.watch.look()
    }

    /// The sockets of [`NetInfo::sockets`] made anew, for a sandbox whose sockets were all lost with the processes that held
    /// them. Needs no [`Gateway`]: the caller is privileged and single-threaded like it.
    ///
    /// # Errors
    /// [`NetError`]; for example while somebody still holds the old ones.
    pub fn reopen(id: &str, info: &NetInfo) -> Result<Vec<OwnedFd>, NetError> {
        let netns = namespace::find(id).ok_or_else(|| {
            NetError::sys(
                "find the gateway namespace",
                std::io::Error::from(std::io::ErrorKind::NotFound),
            )
        })?;
        namespace::inside(netns.as_fd(), || {
            info.sockets
                .iter()
                .map(|role| bound_socket(*role, &info.host_veth))
                .collect()
        })
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

    pub(super) fn numbered(&self, index: u32, v6: bool) -> IpAddr {
        if v6 {
            IpAddr::V6(Ipv6Addr::from(u128::from(self.range6) + u128::from(index)))
        } else {
            IpAddr::V4(Ipv4Addr::from(u32::from(self.range) + index))
        }
    }
}

fn cable(sandbox: u32) -> String {
    format!("{CABLE_PREFIX}{sandbox}")
}
