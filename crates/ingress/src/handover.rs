//! Idle connections that go on with the next server, so that none of them has to be closed.
//!
//! A server that closes a kept connection of HTTP/1.1 can't know whether its client has just sent the next request: HTTP/1.1 has
//! no word for it. So the socket is not closed, but sent to the next server through a queue that outlives both, as the listening
//! sockets do. What the client sends meanwhile waits in the socket.
//!
//! Owns: the queue, and which sockets are in it. Deliberately not here: when a connection may go (`ending`), serving it (`serve`),
//! who keeps the queue between two servers (`daemon`).
//!
//! Not for TLS, whose state can't be handed over, and not for HTTP/2, which can say that it ends.
//!
//! Invariants:
//! 1. No byte of a request was read from a socket that goes.
//! 2. A socket is accepted only if this server listens where it was accepted.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixDatagram};

/// Sockets in one message. The kernel takes 253; so few are read at once that a server has files left for them, and a queue of
/// the usual size holds some 15,000.
const BATCH: usize = 64;
/// Begins each message. Another server may be of another build: it drops what it doesn't know.
const VERSION: u8 = 1;
/// What is said of each socket: whether it had a request yet, and its client's address as IPv6.
const RECORD: usize = 17;

/// One connection on its way from server to server.
#[derive(Debug)]
pub(crate) struct Handed<S> {
    pub(crate) socket: S,
    /// Its client, as a proxy may have said.
    pub(crate) remote: IpAddr,
    /// It had none yet: what it speaks isn't known.
    pub(crate) new: bool,
}

/// A queue, both ends: who leaves writes into the first one, who comes reads from the second.
///
/// # Errors
/// No descriptors are left.
pub fn queue() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    Ok(pair?)
}

/// The end that a server writes into when it leaves.
#[derive(Debug, Default)]
pub(crate) struct Giving {
    queue: OnceLock<OwnedFd>,
    collected: Mutex<Collected>,
}

#[derive(Debug, Default)]
struct Collected {
    sockets: Vec<Handed<OwnedFd>>,
    /// Each goes at once: nobody collects any more.
    at_once: bool,
}

impl Giving {
    /// Connections are handed over from now on. Said once.
    pub(crate) fn set(&self, queue: OwnedFd) {
        if self.queue.set(queue).is_err() {
            tracing::error!("the queue of connections was set twice; this is a bug");
        }
    }

    /// Whether there is a next server to hand anything to.
    pub(crate) fn is_set(&self) -> bool {
        self.queue.get().is_some()
    }

    /// Hands a connection over, now or with others.
    pub(crate) fn give(&self, one: Handed<TcpStream>) {
        let socket = match one.socket.into_std() {
            Ok(socket) => socket.into(),
            Err(error) => return tracing::debug!(%error, "hand a connection over"),
        };
        let mut collected = self.collected.lock();
        collected.sockets.push(Handed {
            socket,
            remote: one.remote,
            new: one.new,
        });
        if collected.at_once || collected.sockets.len() >= BATCH {
            self.send(&mut collected.sockets);
        }
    }

    /// What was collected goes, and all later ones at once.
    pub(crate) fn flush(&self) {
        let mut collected = self.collected.lock();
        collected.at_once = true;
        self.send(&mut collected.sockets);
    }

    fn send(&self, sockets: &mut Vec<Handed<OwnedFd>>) {
        let sockets = std::mem::take(sockets);
        let Some(queue) = self.queue.get().filter(|_| !sockets.is_empty()) else {
            return;
        };
        if let Err(error) = send(queue.as_fd(), &sockets) {
            tracing::warn!(
                %error,
                count = sockets.len(),
                "idle connections could not be handed to the next server and are closed"
            );
        }
    }
}

fn send(queue: BorrowedFd<'_>, sockets: &[Handed<OwnedFd>]) -> io::Result<()> {
    let mut message = vec![VERSION];
    for one in sockets {
        let remote = match one.remote {
            IpAddr::V4(remote) => remote.to_ipv6_mapped(),
            IpAddr::V6(remote) => remote,
        };
        message.push(u8::from(one.new));
        message.extend(remote.octets());
    }
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(|one| one.socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(queue, &[IoSlice::new(&message)], &mut control, flags)
    })?;
    Ok(())
}

/// The end that a server reads as long as it accepts.
#[derive(Debug)]
pub(crate) struct Taking {
    /// Of packets, not datagrams, of which the kernel queues ten; it is watched alike.
    queue: UnixDatagram,
    /// Where this server listens.
    listens: Vec<SocketAddr>,
}

impl Taking {
    /// # Errors
    /// The queue can't be watched.
    pub(crate) fn new(queue: OwnedFd, listens: Vec<SocketAddr>) -> io::Result<Self> {
        let queue = UnixDatagram::from_std(queue.into())?;
        Ok(Self { queue, listens })
    }

    /// The next connections, some at once. Nothing is lost if it is dropped while it waits.
    ///
    /// # Errors
    /// The queue is broken.
    pub(crate) async fn next(&self) -> io::Result<Vec<Handed<TcpStream>>> {
        loop {
            let taken = self
                .queue
                .async_io(Interest::READABLE, || receive(self.queue.as_fd()))
                .await?;
            let ours = taken.into_iter().filter_map(|one| self.ours(one));
            let ours: Vec<_> = ours.collect();
            if !ours.is_empty() {
                return Ok(ours);
            }
        }
    }

    /// Made ready to be served, unless it was accepted where nobody listens any more: the operator may have had reasons.
    fn ours(&self, one: Handed<OwnedFd>) -> Option<Handed<TcpStream>> {
        let socket = std::net::TcpStream::from(one.socket);
        let local = socket.local_addr().ok()?;
        let listens = |address: &SocketAddr| {
            let (own, there) = (address.ip(), local.ip());
            address.port() == local.port()
                && (own.to_canonical() == there.to_canonical()
                    || own.is_unspecified() && (own.is_ipv6() || there.to_canonical().is_ipv4()))
        };
        if !self.listens.iter().any(listens) {
            tracing::debug!(%local, "closed a connection of the server before: this one doesn't listen there");
            return None;
        }
        Some(Handed {
            socket: TcpStream::from_std(socket).ok()?,
            remote: one.remote,
            new: one.new,
        })
    }
}

fn receive(queue: BorrowedFd<'_>) -> io::Result<Vec<Handed<OwnedFd>>> {
    let mut message = [0; 1 + BATCH * RECORD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let read = rustix::io::retry_on_intr(|| {
        let into = &mut [IoSliceMut::new(&mut message)];
        rustix::net::recvmsg(queue, into, &mut control, flags)
    })?;
    if read.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let Some((&VERSION, records)) = message[..read.bytes].split_first() else {
        tracing::warn!("closed idle connections of a server of another build");
        return Ok(Vec::new());
    };
    Ok(sockets
        .flatten()
        .zip(records.as_chunks::<RECORD>().0)
        .map(|(socket, [new, remote @ ..])| Handed {
            socket,
            remote: IpAddr::from(Ipv6Addr::from(*remote)).to_canonical(),
            new: *new != 0,
        })
        .collect())
}
