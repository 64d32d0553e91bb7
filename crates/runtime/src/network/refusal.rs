//! Refused connections, as the kernel reports them (NFLOG).
//!
//! Owns: the sockets (made by the housekeeper, which may subscribe; read by the server, which needs no right for it), the
//! parser, and the advice. Doesn't: limit the rate, which the tables do (once per minute and destination).
//!
//! A report that can't be parsed is skipped; reports that the kernel dropped because nobody read are lost, as are all while no
//! reader lives.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::netlink::{find, push, read_i32, read_u16, read_u32};
use super::{NetError, rules};

const SUBSYSTEM: u16 = 4;
/// `NLM_F_REQUEST | NLM_F_ACK`
const REQUEST_WITH_ANSWER: u16 = 5;
const PACKET: u16 = SUBSYSTEM << 8;
const CONFIG: u16 = SUBSYSTEM << 8 | 1;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_TIMEOUT: u16 = 4;
const CONFIG_THRESHOLD: u16 = 5;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const ATTRIBUTE_PAYLOAD: u16 = 9;
const ATTRIBUTE_PREFIX: u16 = 10;
/// Enough for an IPv6 header and ports.
const SNAP_BYTES: u32 = 96;
/// NFLOG groups are numbers without owners; ours are looked for from here upwards (ulogd and friends use small ones).
const FIRST_GROUP: u16 = 21_300;
const GROUPS: u16 = 256;

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusedAs {
    /// A private, link-local or otherwise special address.
    Private,
    /// Another instance.
    Peer,
    /// The host itself.
    Host,
}

/// One refused attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Address of the instance; compare with [`super::NetInfo::address`] and `address6`. Trustworthy: packets with any
    /// other source never get so far.
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: TransportProtocol,
    /// Destination port.
    pub port: u16,
    pub refused_as: RefusedAs,
}

/// What a refused packet spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    Tcp,
    Udp,
}

impl fmt::Display for TransportProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// The line for the instance's log: what was refused, why, and how to allow it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            destination,
            protocol,
            port,
            ..
        } = self;
        let (shown, rule) = match destination {
            IpAddr::V4(_) => (
                format!("{destination}:{port}"),
                format!("{destination}/32:{port}"),
            ),
            IpAddr::V6(_) => (
                format!("[{destination}]:{port}"),
                format!("[{destination}/128]:{port}"),
            ),
        };
        write!(f, "outgoing {protocol} connection to {shown} refused: ")?;
        match self.refused_as {
            RefusedAs::Private => {
                write!(
                    f,
                    "private addresses are closed to instances; to allow it, start the server with --allow-egress {rule}"
                )
            }
            RefusedAs::Peer => write!(
                f,
                "instances can't reach each other directly; call the service by its URL"
            ),
            RefusedAs::Host => write!(
                f,
                "the host itself is closed to instances; to allow it, start the server with --allow-egress host:{port} and dial \
                 host.utsuwa.internal:{port} (or --allow-egress {rule} for this address)"
            ),
        }
    }
}

/// Makes a socket in the thread's network namespace that receives the reports of a free group, and that group's number.
pub(super) fn subscribe() -> Result<(OwnedFd, u16), NetError> {
    let open = || -> io::Result<(OwnedFd, u16)> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW.cloexec(),
            Some(Protocol::from(libc::NETLINK_NETFILTER)),
        )?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        for group in FIRST_GROUP..FIRST_GROUP + GROUPS {
            match configure(&socket, group, CONFIG_COMMAND, &[COMMAND_BIND]) {
                Ok(()) => {}
                // Somebody else's group.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM)) => {
                    continue;
                }
                Err(error) => return Err(error),
            }
            let mut mode = SNAP_BYTES.to_be_bytes().to_vec();
            mode.extend_from_slice(&[COPY_PACKET, 0]);
            configure(&socket, group, CONFIG_MODE, &mode)?;
            configure(&socket, group, CONFIG_TIMEOUT, &10_u32.to_be_bytes())?;
            configure(&socket, group, CONFIG_THRESHOLD, &1_u32.to_be_bytes())?;
            socket.set_nonblocking(true)?;
            return Ok((socket.into(), group));
        }
        Err(io::Error::other(format!(
            "all {GROUPS} NFLOG groups from {FIRST_GROUP} are taken"
        )))
    };
    open().map_err(|error| NetError::sys("subscribe to refused connections", error))
}

fn configure(socket: &Socket, group: u16, attribute: u16, value: &[u8]) -> io::Result<()> {
    let mut message = vec![0; 16];
    message[4..6].copy_from_slice(&CONFIG.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_WITH_ANSWER.to_ne_bytes());
    // struct nfgenmsg: any family, version, group in network order.
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(&group.to_be_bytes());
    push(&mut message, attribute, value);
    let length = u32::try_from(message.len()).expect("a few dozen bytes");
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    (&*socket).write_all(&message)?;
    let mut answer = [0; 4096];
    loop {
        let length = (&*socket).read(&mut answer)?;
        if i32::from(read_u16(&answer[..length], 4)) == libc::NLMSG_ERROR {
            return match read_i32(&answer[..length], 16) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            };
        }
    }
}

/// Reads reports from one of [`super::Gateway::refusal_sockets`].
#[derive(Debug)]
pub struct RefusalReader {
    socket: AsyncFd<Socket>,
    ready: Vec<Refusal>,
}

impl RefusalReader {
    /// Takes the socket over. Call within a tokio runtime.
    ///
    /// # Errors
    /// When the descriptor can't be watched.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        // SAFETY: `AsyncFd` owns the socket from here on; a `Socket` keeps its descriptor open and the same while it lives.
        #[expect(unsafe_code, reason = "tokio can't know that of a foreign type")]
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self {
            socket,
            ready: Vec::new(),
        })
    }

    /// The next refused attempt. Cancel safe.
    ///
    /// # Errors
    /// When the socket fails for another reason than lost reports; the reader is of no more use then.
    pub async fn next(&mut self) -> io::Result<Refusal> {
        loop {
            if let Some(refusal) = self.ready.pop() {
                return Ok(refusal);
            }
            let mut guard = self.socket.readable().await?;
            let mut buffer = vec![0; 64 << 10];
            match guard.try_io(|socket| socket.get_ref().read(&mut buffer)) {
                Err(_would_block) => {}
                // Reports were lost because we read too slowly.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(Err(error)) => return Err(error),
                Ok(Ok(length)) => {
                    self.ready = parse(&buffer[..length]);
                    self.ready.reverse();
                }
            }
        }
    }
}

/// All reports of one datagram.
fn parse(mut bytes: &[u8]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    while bytes.len() >= 16 {
        let size = (read_u32(bytes, 0) as usize).clamp(16, bytes.len());
        if read_u16(bytes, 4) == PACKET
            && let Some(attributes) = bytes.get(20..size)
            && let Some(refusal) = parse_report(attributes)
        {
            refusals.push(refusal);
        }
        bytes = &bytes[size.next_multiple_of(4).min(bytes.len())..];
    }
    refusals
}

fn parse_report(attributes: &[u8]) -> Option<Refusal> {
    let prefix = find(attributes, ATTRIBUTE_PREFIX)?;
    let prefix = std::str::from_utf8(prefix.strip_suffix(b"\0").unwrap_or(prefix)).ok()?;
    let refused_as = match prefix {
        rules::PREFIX_PRIVATE => RefusedAs::Private,
        rules::PREFIX_PEER => RefusedAs::Peer,
        rules::PREFIX_HOST => RefusedAs::Host,
        _ => return None,
    };
    let packet = find(attributes, ATTRIBUTE_PAYLOAD)?;
    let (source, destination, protocol, transport) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            let address = |at: usize| {
                packet
                    .get(at..at + 4)
                    .and_then(|octets| <[u8; 4]>::try_from(octets).ok())
                    .map(Ipv4Addr::from)
            };
            (
                address(12)?.into(),
                address(16)?.into(),
                *packet.get(9)?,
                packet.get(header..)?,
            )
        }
        6 => {
            let address = |at: usize| {
                packet
                    .get(at..at + 16)
                    .and_then(|octets| <[u8; 16]>::try_from(octets).ok())
                    .map(Ipv6Addr::from)
            };
            (
                IpAddr::from(address(8)?),
                IpAddr::from(address(24)?),
                *packet.get(6)?,
                packet.get(40..)?,
            )
        }
        _ => return None,
    };
    let protocol = match i32::from(protocol) {
        libc::IPPROTO_TCP => TransportProtocol::Tcp,
        libc::IPPROTO_UDP => TransportProtocol::Udp,
        _ => return None,
    };
    let port = u16::from_be_bytes([*transport.get(2)?, *transport.get(3)?]);
    Some(Refusal {
        source,
        destination,
        protocol,
        port,
        refused_as,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram as the kernel sends it: one report with a prefix and the head of an IPv4 packet.
    fn datagram(packet: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 20];
        message[4..6].copy_from_slice(&PACKET.to_ne_bytes());
        push(&mut message, ATTRIBUTE_PREFIX, b"utsuwa host\0");
        push(&mut message, ATTRIBUTE_PAYLOAD, packet);
        let length = u32::try_from(message.len()).unwrap();
        message[0..4].copy_from_slice(&length.to_ne_bytes());
        message
    }

    fn packet() -> Vec<u8> {
        let mut packet = vec![
            0x46, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 17, 192, 0, 2, 2,
        ];
        // Four bytes of IP options, then the ports.
        packet.extend_from_slice(&[1, 1, 1, 1, 0x80, 0, 0x15, 0x38]);
        packet
    }

    #[test]
    fn reads_a_report_and_says_how_to_allow_it() {
        let reports = parse(&[datagram(&packet()), datagram(&packet())].concat());
        assert_eq!(reports.len(), 2);
        assert_eq!(reports[0].protocol, TransportProtocol::Udp);
        let text = reports[0].to_string();
        assert!(
            text.starts_with("outgoing UDP connection to 192.0.2.2:5432 refused"),
            "{text}"
        );
        assert!(
            text.contains("--allow-egress host:5432") && text.contains("host.utsuwa.internal:5432"),
            "{text}"
        );
    }

    #[test]
    fn a_cut_report_is_skipped() {
        let whole = packet();
        for length in 0..whole.len() {
            assert!(
                parse(&datagram(&whole[..length])).is_empty(),
                "cut at {length}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0_usize..100) {
            parse(&bytes);
            let mut message = datagram(&packet());
            let end = message.len().min(at + bytes.len());
            if at < end {
                message[at..end].copy_from_slice(&bytes[..end - at]);
            }
            parse(&message);
        }
    }
}
