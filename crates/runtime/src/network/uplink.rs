//! The cable between the host and the gateway namespace, and the way back to how the host was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use super::addresses::{RANGE_PREFIX, RANGE6_PREFIX, hardware, tag};
use super::gateway::Gateway;
use super::netlink::{End, Link, Message, Netlink};
use super::rules::{self, CABLE_PREFIX, UPLINK_INSIDE};
use super::sysctl::Record;
use super::{HOST_ADDRESS, INTERNAL_ADDRESS, NetError, firewall, namespace};

/// Devices of other software that needs forwarding and may have found it switched on by us (docker, libvirt, CNI, podman,
/// LXD and Incus): it stays on for them.
const FORWARDERS: [&str; 8] = [
    "docker", "br-", "virbr", "cni", "podman", "lxcbr", "lxdbr", "incusbr",
];

impl Gateway {
    /// Removes everything that [`Gateway::set_up`] and [`Gateway::attach`] made for the server `id`, whoever called them.
    ///
    /// # Errors
    /// The first [`NetError`]; what can be removed is removed regardless.
    pub fn tear_down(id: &str) -> Result<(), NetError> {
        let tag = tag(id)?;
        let mut host = Netlink::open()?;
        // Sockets of a server that still runs would keep the namespace and its cables alive, so it is emptied first.
        let emptied = namespace::find(id).map_or(Ok(()), |netns| {
            namespace::inside(netns.as_fd(), || {
                let mut netlink = Netlink::open()?;
                let mut links = netlink.links()?;
                links.retain(|link| link.name.starts_with(CABLE_PREFIX));
                netlink.run(
                    links
                        .iter()
                        .map(|link| Message::remove_link(&link.name))
                        .collect(),
                )?;
                rules::unload(&tag)
            })
        });
        let steps: [Result<(), NetError>; 7] = [
            emptied,
            host.run(vec![Message::remove_link(&tag)]),
            rules::unload(&tag),
            firewall::close(&tag),
            host.links().and_then(|links| {
                let forwards = |link: &&Link| {
                    FORWARDERS
                        .iter()
                        .any(|prefix| link.name.starts_with(prefix))
                };
                Record::load(id).restore(
                    id,
                    links.iter().find(forwards).map(|link| link.name.as_str()),
                )
            }),
            Record::remove(id),
            namespace::release(id),
        ];
        steps.into_iter().collect()
    }

    /// Makes the uplink, unless it is there and leads to this namespace, and (again) all that belongs to it.
    pub(super) fn connect_uplink(
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
}
