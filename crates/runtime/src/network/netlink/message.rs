//! The requests that the gateway makes, as bytes.
//!
//! Owns: the layout of each request and the words for its error.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{HEADER_BYTES, push};

const NLM_F_CREATE_EXCLUSIVE: u16 = 0x600;
const NLM_F_CREATE_REPLACE: u16 = 0x500;
const VETH_INFO_PEER: u16 = 1;
const NESTED: u16 = 0x8000;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// One request. Build with the functions below.
#[derive(Debug)]
pub(crate) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) step: String,
    pub(super) fine: &'static [i32],
}

/// Names an end of a cable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) hardware: [u8; 6],
}

impl Message {
    pub(super) fn new(
        kind: u16,
        flags: u16,
        header: &[u8],
        step: String,
        fine: &'static [i32],
    ) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(header);
        Self { bytes, step, fine }
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push(&mut self.bytes, kind, value);
        self
    }

    /// A veth pair: `here` in the client's namespace, `there` in `netns`.
    pub(crate) fn make_cable(
        here: End<'_>,
        there: End<'_>,
        netns: BorrowedFd<'_>,
        mtu: u32,
    ) -> Self {
        let mut peer = vec![0; 16];
        push(&mut peer, libc::IFLA_IFNAME, &text(there.name));
        push(&mut peer, libc::IFLA_ADDRESS, &there.hardware);
        push(&mut peer, libc::IFLA_MTU, &mtu.to_ne_bytes());
        push(
            &mut peer,
            libc::IFLA_NET_NS_FD,
            &netns.as_raw_fd().to_ne_bytes(),
        );
        let mut data = Vec::new();
        push(&mut data, VETH_INFO_PEER | NESTED, &peer);
        let mut info = Vec::new();
        push(&mut info, libc::IFLA_INFO_KIND, b"veth");
        push(&mut info, libc::IFLA_INFO_DATA | NESTED, &data);
        let step = format!("make the cable {} to {}", here.name, there.name);
        Self::new(
            libc::RTM_NEWLINK,
            NLM_F_CREATE_EXCLUSIVE,
            &[0; 16],
            step,
            &[],
        )
        .attribute(libc::IFLA_IFNAME, &text(here.name))
        .attribute(libc::IFLA_ADDRESS, &here.hardware)
        .attribute(libc::IFLA_MTU, &mtu.to_ne_bytes())
        .attribute(libc::IFLA_LINKINFO | NESTED, &info)
    }

    /// Sets a link up.
    pub(crate) fn up(index: u32) -> Self {
        let up = (libc::IFF_UP as u32).to_ne_bytes();
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..12].copy_from_slice(&up);
        header[12..16].copy_from_slice(&up);
        Self::new(
            libc::RTM_NEWLINK,
            0,
            &header,
            format!("set link {index} up"),
            &[],
        )
    }

    /// Removes a link by name; one that isn't there is fine.
    pub(crate) fn remove_link(name: &str) -> Self {
        Self::new(
            libc::RTM_DELLINK,
            0,
            &[0; 16],
            format!("remove link {name}"),
            &[libc::ENODEV, libc::EINVAL],
        )
        .attribute(libc::IFLA_IFNAME, &text(name))
    }

    /// Gives a link an address that makes no route (`/32`, `/128`), at once usable.
    pub(crate) fn address(index: u32, address: IpAddr) -> Self {
        const IFA_F_NODAD: u8 = 2;
        let mut header = [0; 8];
        header[0] = family(address);
        header[1] = if address.is_ipv4() { 32 } else { 128 };
        header[2] = IFA_F_NODAD;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let step = format!("give link {index} the address {address}");
        let message = Self::new(
            libc::RTM_NEWADDR,
            NLM_F_CREATE_REPLACE,
            &header,
            step,
            &[libc::EEXIST],
        );
        message
            .attribute(libc::IFA_LOCAL, &octets(address))
            .attribute(libc::IFA_ADDRESS, &octets(address))
    }

    /// A route to `destination` out of a link, straight or through `via` (which needs no route of its own).
    pub(crate) fn route(destination: IpAddr, prefix: u8, index: u32, via: Option<IpAddr>) -> Self {
        const RTNH_F_ONLINK: u32 = 4;
        let mut header = [0; 12];
        header[0] = family(destination);
        header[1] = prefix;
        header[4] = libc::RT_TABLE_MAIN;
        header[5] = libc::RTPROT_STATIC;
        header[6] = if via.is_some() || destination.is_ipv6() {
            libc::RT_SCOPE_UNIVERSE
        } else {
            libc::RT_SCOPE_LINK
        };
        header[7] = libc::RTN_UNICAST;
        if via.is_some() {
            header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        }
        let step = format!("route {destination}/{prefix} out of link {index}");
        let mut message = Self::new(libc::RTM_NEWROUTE, NLM_F_CREATE_REPLACE, &header, step, &[])
            .attribute(libc::RTA_OIF, &index.to_ne_bytes());
        if prefix > 0 {
            message = message.attribute(libc::RTA_DST, &octets(destination));
        }
        match via {
            Some(via) => message.attribute(libc::RTA_GATEWAY, &octets(via)),
            None => message,
        }
    }

    /// A neighbour that never needs asking.
    pub(crate) fn neighbour(index: u32, address: IpAddr, hardware: [u8; 6]) -> Self {
        const NUD_PERMANENT: u16 = 0x80;
        let mut header = [0; 12];
        header[0] = family(address);
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        let step = format!("enter the neighbour {address} at link {index}");
        Self::new(libc::RTM_NEWNEIGH, NLM_F_CREATE_REPLACE, &header, step, &[])
            .attribute(libc::NDA_DST, &octets(address))
            .attribute(libc::NDA_LLADDR, &hardware)
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn text(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
