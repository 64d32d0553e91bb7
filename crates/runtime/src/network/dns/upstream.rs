//! The host's resolvers.
//!
//! Owns: reading `resolv.conf` (again when it changes), asking one resolver after the other. Doesn't: remember which was slow.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::super::{HOST_ADDRESS, INTERNAL_ADDRESS};
use super::Transport;
use super::wire::{self, Query};

/// Per resolver and try.
const TRY: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// As glibc: more than three are not asked.
const MOST_RESOLVERS: usize = 3;

#[derive(Debug)]
pub(super) struct Upstreams {
    file: PathBuf,
    port: u16,
    known: Mutex<(Option<SystemTime>, Vec<SocketAddr>)>,
}

impl Upstreams {
    pub(super) fn new(file: PathBuf, port: u16) -> Self {
        Self {
            file,
            port,
            known: Mutex::new((None, Vec::new())),
        }
    }

    /// Reads the file if it changed. A file that can't be read means the resolver at 127.0.0.1, as for glibc.
    fn resolvers(&self) -> Vec<SocketAddr> {
        let changed = std::fs::metadata(&self.file)
            .and_then(|found| found.modified())
            .ok();
        let mut known = self.known.lock();
        if known.1.is_empty() || changed != known.0 {
            let text = std::fs::read_to_string(&self.file).unwrap_or_default();
            *known = (changed, parse(&text, self.port));
        }
        known.1.clone()
    }

    /// The first usable answer, with the id of `query`; else the last one that says "could not".
    pub(super) async fn ask(
        &self,
        query: &[u8],
        parsed: &Query,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let resolvers = self.resolvers();
        let mut last = None;
        for _ in 0..ROUNDS {
            for resolver in &resolvers {
                let answer = match ask_one(*resolver, query, parsed, transport).await {
                    Ok(answer) => answer,
                    Err(error) => {
                        tracing::debug!(%resolver, name = parsed.name, %error, "a resolver did not answer");
                        continue;
                    }
                };
                if !wire::gave_up(&answer) {
                    return Some(answer);
                }
                last = Some(answer);
            }
            if last.is_some() {
                break;
            }
        }
        last
    }
}

/// Nameservers of `text` that aren't ourselves.
pub(super) fn parse(text: &str, port: u16) -> Vec<SocketAddr> {
    let mut resolvers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            if words.next()? != "nameserver" {
                return None;
            }
            let word = words.next()?;
            if let Some((address, zone)) = word.split_once('%') {
                let index = zone.parse().ok().or_else(|| link_index(zone))?;
                return Some(
                    SocketAddrV6::new(address.parse::<Ipv6Addr>().ok()?, port, 0, index).into(),
                );
            }
            Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, port))
        })
        .filter(|address| {
            address.ip() != IpAddr::V4(INTERNAL_ADDRESS) && address.ip() != IpAddr::V4(HOST_ADDRESS)
        })
        .take(MOST_RESOLVERS)
        .collect();
    if resolvers.is_empty() {
        resolvers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    resolvers
}

/// The number of a network device of this machine.
fn link_index(name: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

pub(super) async fn ask_one(
    resolver: SocketAddr,
    query: &[u8],
    parsed: &Query,
    transport: Transport,
) -> io::Result<Vec<u8>> {
    // An id that an outsider can't guess; together with the kernel's random source port it stands against forged answers.
    let id = (RandomState::new().build_hasher().finish() & 0xffff) as u16;
    let mut sent = query.to_vec();
    sent[0..2].copy_from_slice(&id.to_be_bytes());
    let mut answer = match transport {
        Transport::Tcp => timeout(TRY, over_tcp(resolver, &sent, parsed, id)).await??,
        Transport::Udp => timeout(TRY, over_udp(resolver, &sent, parsed, id)).await??,
    };
    answer[0..2].copy_from_slice(&query[0..2]);
    Ok(answer)
}

async fn over_udp(
    resolver: SocketAddr,
    sent: &[u8],
    parsed: &Query,
    id: u16,
) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(sent).await?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if parsed.is_answered_by(sent, id, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(
    resolver: SocketAddr,
    sent: &[u8],
    parsed: &Query,
    id: u16,
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(sent.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], sent].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if parsed.is_answered_by(sent, id, &answer) {
        return Ok(answer);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the answer is for another question",
    ))
}
