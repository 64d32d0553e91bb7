//! A small blocking rtnetlink client: what the housekeeper needs and nothing else.
//!
//! Owns: message building, acknowledgements, dumps. Doesn't: know what the objects are for.
//! A [`Netlink`] stays bound to the network namespace in which it was opened, whatever the thread enters later; so one
//! client per namespace spares entering it. Blocking, because the housekeeper must stay single-threaded.
//!
//! Failure: each message carries the words for its error and the error numbers that mean "already so".

mod message;
mod nftables;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::NetError;
use message::text;
pub(crate) use message::{End, Message};
pub(crate) use nftables::{News, Table};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const HEADER_BYTES: usize = 16;
const NLM_F_DUMP: u16 = 0x300;
const RTAX_MTU: u16 = 2;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// Marks a kernel message as one of a dump (same layout for links, addresses and routes).
#[derive(Debug)]
pub(crate) struct Entry {
    /// The fixed header and the attributes behind it.
    payload: Vec<u8>,
}

/// A client in the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a client in the thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetError> {
        Self::of(libc::NETLINK_ROUTE)
    }

    fn of(protocol: i32) -> Result<Self, NetError> {
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(
                Domain::from(libc::AF_NETLINK),
                Type::RAW.cloexec(),
                Some(Protocol::from(protocol)),
            )?;
            // A lost acknowledgement must not stop the housekeeper for ever.
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            socket.set_recv_buffer_size(1 << 20)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|error| NetError::sys("open a netlink socket", error))?,
            sequence: 0,
        })
    }

    /// Sends all messages at once; the kernel works them off in order. The first refusal is the error.
    pub(crate) fn run(&mut self, messages: Vec<Message>) -> Result<(), NetError> {
        let first = self.sequence.wrapping_add(1);
        let mut batch = Vec::new();
        for message in &messages {
            self.sequence = self.sequence.wrapping_add(1);
            let start = batch.len();
            batch.extend_from_slice(&message.bytes);
            finish(&mut batch[start..], self.sequence, NLM_F_ACK);
        }
        (&self.socket)
            .write_all(&batch)
            .map_err(|error| NetError::sys("send to netlink", error))?;
        let mut outcome = Ok(());
        let mut open = messages.len();
        while open > 0 {
            for (kind, sequence, payload) in self.receive()? {
                let place = sequence.wrapping_sub(first) as usize;
                let (true, Some(message)) =
                    (i32::from(kind) == libc::NLMSG_ERROR, messages.get(place))
                else {
                    continue;
                };
                open -= 1;
                let errno = -read_i32(&payload, 0);
                if errno != 0 && !message.fine.contains(&errno) && outcome.is_ok() {
                    outcome = Err(NetError::sys(
                        message.step.clone(),
                        io::Error::from_raw_os_error(errno),
                    ));
                }
            }
        }
        outcome
    }

    /// All links, addresses or routes (`kind` is `RTM_GETLINK`, `RTM_GETADDR` or `RTM_GETROUTE`).
    pub(crate) fn dump(&mut self, kind: u16) -> Result<Vec<Entry>, NetError> {
        // A zeroed ifinfomsg, ifaddrmsg or rtmsg: all families.
        let size = if kind == libc::RTM_GETROUTE { 12 } else { 16 };
        self.all(Message::new(
            kind,
            NLM_F_DUMP,
            &vec![0; size],
            "list network objects".to_owned(),
            &[],
        ))
    }

    /// Everything that answers `message`, which asks for a dump.
    fn all(&mut self, mut message: Message) -> Result<Vec<Entry>, NetError> {
        self.sequence = self.sequence.wrapping_add(1);
        finish(&mut message.bytes, self.sequence, 0);
        (&self.socket)
            .write_all(&message.bytes)
            .map_err(|error| NetError::sys("send to netlink", error))?;
        let mut entries = Vec::new();
        loop {
            for (kind, sequence, payload) in self.receive()? {
                if sequence != self.sequence {
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(entries),
                    libc::NLMSG_ERROR => {
                        let error = io::Error::from_raw_os_error(-read_i32(&payload, 0));
                        return Err(NetError::sys(message.step, error));
                    }
                    _ => entries.push(Entry { payload }),
                }
            }
        }
    }

    /// Index and name of every link, and its MTU.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetError> {
        Ok(self
            .dump(libc::RTM_GETLINK)?
            .iter()
            .filter_map(Link::parse)
            .collect())
    }

    /// The link of that name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Link, NetError> {
        let step = format!("find link {name}");
        let message = Message::new(libc::RTM_GETLINK, 0, &[0; 16], step, &[])
            .attribute(libc::IFLA_IFNAME, &text(name))
            .attribute(libc::IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        let step = message.step.clone();
        let (kind, entry) = self.first(message)?;
        let missing = io::Error::from_raw_os_error(-read_i32(&entry.payload, 0));
        let found = (kind == libc::RTM_NEWLINK).then(|| Link::parse(&entry));
        found.flatten().ok_or_else(|| NetError::sys(step, missing))
    }

    /// Kind and content of the first answer to `message`; it may be an error.
    fn first(&mut self, mut message: Message) -> Result<(u16, Entry), NetError> {
        self.sequence = self.sequence.wrapping_add(1);
        finish(&mut message.bytes, self.sequence, 0);
        (&self.socket)
            .write_all(&message.bytes)
            .map_err(|error| NetError::sys("send to netlink", error))?;
        loop {
            for (kind, sequence, payload) in self.receive()? {
                if sequence == self.sequence {
                    return Ok((kind, Entry { payload }));
                }
            }
        }
    }

    /// Every route of every table.
    pub(crate) fn routes(&mut self) -> Result<Vec<Route>, NetError> {
        Ok(self
            .dump(libc::RTM_GETROUTE)?
            .iter()
            .filter_map(|entry| {
                let (v6, prefix) = match i32::from(*entry.payload.first()?) {
                    libc::AF_INET => (false, entry.payload[1]),
                    libc::AF_INET6 => (true, entry.payload[1]),
                    _ => return None,
                };
                let destination = match (entry.attribute(12, libc::RTA_DST), v6) {
                    (Some(bytes), false) => {
                        IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
                    }
                    (Some(bytes), true) => {
                        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
                    }
                    (None, false) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    (None, true) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                };
                Some(Route {
                    destination,
                    prefix,
                    unicast: *entry.payload.get(7)? == libc::RTN_UNICAST,
                    link: entry
                        .attribute(12, libc::RTA_OIF)
                        .map(|bytes| read_u32(bytes, 0)),
                    mtu: entry
                        .attribute(12, libc::RTA_METRICS)
                        .and_then(|metrics| find(metrics, RTAX_MTU))
                        .map(|bytes| read_u32(bytes, 0)),
                })
            })
            .collect())
    }

    /// Every address of every link.
    pub(crate) fn addresses(&mut self) -> Result<Vec<IpAddr>, NetError> {
        Ok(self
            .dump(libc::RTM_GETADDR)?
            .iter()
            .filter_map(|entry| {
                // The local one of a point-to-point link is its own; where there is no other end, IPv6 has only the other.
                let bytes = entry
                    .attribute(8, libc::IFA_LOCAL)
                    .or_else(|| entry.attribute(8, libc::IFA_ADDRESS))?;
                match i32::from(*entry.payload.first()?) {
                    libc::AF_INET => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
                    libc::AF_INET6 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
                    _ => None,
                }
            })
            .collect())
    }

    fn receive(&mut self) -> Result<Vec<(u16, u32, Vec<u8>)>, NetError> {
        let mut buffer = vec![0; 64 << 10];
        let length = loop {
            match (&self.socket).read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|error| NetError::sys("wait for netlink", error))?,
            }
        };
        let mut rest = &buffer[..length];
        let mut messages = Vec::new();
        while rest.len() >= HEADER_BYTES {
            let size = (read_u32(rest, 0) as usize).clamp(HEADER_BYTES, rest.len());
            messages.push((
                read_u16(rest, 4),
                read_u32(rest, 8),
                rest[HEADER_BYTES..size].to_vec(),
            ));
            rest = &rest[align(size).min(rest.len())..];
        }
        Ok(messages)
    }
}

/// A network device.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
}

/// A route of any table.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) destination: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) unicast: bool,
    pub(crate) link: Option<u32>,
    pub(crate) mtu: Option<u32>,
}

impl Link {
    fn parse(entry: &Entry) -> Option<Self> {
        let name = entry.attribute(16, libc::IFLA_IFNAME)?;
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        Some(Self {
            index: read_u32(&entry.payload, 4),
            name: String::from_utf8_lossy(&name[..end]).into_owned(),
            mtu: entry
                .attribute(16, libc::IFLA_MTU)
                .map_or(0, |bytes| read_u32(bytes, 0)),
        })
    }
}

impl Entry {
    fn attribute(&self, header: usize, kind: u16) -> Option<&[u8]> {
        find(self.payload.get(header..)?, kind)
    }
}

fn align(size: usize) -> usize {
    size.next_multiple_of(4)
}

/// Appends one attribute (length, type, value, padding).
pub(super) fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length =
        u16::try_from(value.len() + 4).expect("attributes are built here and far below 64 KiB");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(align(bytes.len()), 0);
}

/// The value of the first attribute of that kind.
pub(super) fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let length = usize::from(read_u16(attributes, 0));
        if length < 4 || length > attributes.len() {
            return None;
        }
        if read_u16(attributes, 2) & 0x3fff == kind {
            return attributes.get(4..length);
        }
        attributes = attributes.get(align(length)..)?;
    }
    None
}

/// Writes length, flags and sequence into a message's header.
fn finish(message: &mut [u8], sequence: u32, flags: u16) {
    let length = u32::try_from(message.len()).expect("messages are built here and small");
    let flags = read_u16(message, 6) | flags | NLM_F_REQUEST;
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

/// Zero where the message is too short, as for an absent field.
pub(super) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|two| two.try_into().ok())
        .map_or(0, u16::from_ne_bytes)
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

pub(super) fn read_i32(bytes: &[u8], at: usize) -> i32 {
    bytes
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(0, i32::from_ne_bytes)
}
