//! Idle connections that go on with the next server, so that none of them has to be closed.
//!
//! A server that closes a kept connection of HTTP/1.1 can't know whether its client has just sent the next request: HTTP/1.1 has
//! no word for it. So the socket is not closed, but sent to the next server through a queue that outlives both, as the listening
//! sockets do. What the client sends meanwhile waits in the socket.
//!
//! Owns: the queue, and which sockets are in it. Deliberately not here: when a connection may go (`ending`), serving it
//! (`connection`), who keeps the queue between two servers (`daemon`).
//!
//! Not for TLS, whose state can't be handed over, and not for HTTP/2, which can say that it ends.
//!
//! Invariants:
//! 1. No byte of a request was read from a socket that goes.
//! 2. A socket is accepted only if this server listens where it was accepted.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::sync::Notify;

/// Sockets in one message. The kernel takes 253; what is said of so many fits one of its blocks of 2 KiB, so that a queue of the usual
/// size holds some 8,800. Whoever leaves waits for room for more.
const BATCH: usize = 95;
/// After there were no open files left for what came.
const PAUSE: Duration = Duration::from_millis(50);
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
    /// Of packets, not datagrams, of which the kernel queues ten; it is watched alike.
    queue: OnceLock<UnixDatagram>,
    collected: Mutex<VecDeque<Handed<OwnedFd>>>,
    more: Notify,
}

impl Giving {
    /// Connections are handed over from now on. Said once, inside a runtime.
    pub(crate) fn set(&self, queue: OwnedFd) {
        let set = UnixDatagram::from_std(queue.into()).map(|queue| self.queue.set(queue));
        match set {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tracing::error!("the queue of connections was set twice; a bug"),
            Err(error) => tracing::warn!(
                %error,
                "watch the queue of connections; idle ones end with this server"
            ),
        }
    }

    /// Whether there is a next server to hand anything to.
    pub(crate) fn is_set(&self) -> bool {
        self.queue.get().is_some()
    }

    /// Has a connection handed over by whoever is in [`Self::until`].
    pub(crate) fn give(&self, one: Handed<TcpStream>) {
        match one.socket.into_std() {
            Ok(socket) => {
                self.collected.lock().push_back(Handed {
                    socket: socket.into(),
                    remote: one.remote,
                    new: one.new,
                });
                self.more.notify_one();
            }
            Err(error) => tracing::debug!(%error, "hand a connection over"),
        }
    }

    /// Hands over what is given, until `done` and all of that is on its way. While the queue is full it waits: the next server
    /// makes room. Nothing is lost if it is dropped, or several do this.
    pub(crate) async fn until(&self, done: impl Future<Output = ()>) {
        let mut done = pin!(done.fuse());
        let mut over = false;
        let Some(queue) = self.queue.get() else {
            return done.await;
        };
        loop {
            let all = self.send_some(|sockets| {
                queue.try_io(Interest::WRITABLE, || send(queue.as_fd(), sockets))
            });
            if all {
                if over {
                    return;
                }
                tokio::select! {
                    () = &mut done => over = true,
                    () = self.more.notified() => {}
                }
            } else if let Err(error) = queue.writable().await {
                tracing::debug!(%error, "wait for room in the queue of connections");
                return done.await;
            }
        }
    }

    /// All that goes at once goes; the rest is closed.
    pub(crate) fn end(&self) {
        // The kernel is asked, whatever is known of the queue: nobody waits for room in it any more.
        let queue = self.queue.get();
        let sent = queue.is_none_or(|queue| self.send_some(|sockets| send(queue.as_fd(), sockets)));
        let left = std::mem::take(&mut *self.collected.lock()).len();
        if !sent && left > 0 {
            tracing::warn!(
                left,
                "idle connections are closed: their queue is full, and no other server takes them"
            );
        }
    }

    /// Sends what has room; whether that is all.
    fn send_some(&self, send: impl Fn(Sockets<'_>) -> io::Result<()>) -> bool {
        let mut collected = self.collected.lock();
        while !collected.is_empty() {
            let batch = collected.len().min(BATCH);
            let sent = send(collected.range(..batch));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Ok(()) => {}
                Err(error) => tracing::warn!(
                    %error,
                    count = batch,
                    "idle connections could not be handed to the next server and are closed"
                ),
            }
            collected.drain(..batch);
        }
        true
    }
}

type Sockets<'a> = std::collections::vec_deque::Iter<'a, Handed<OwnedFd>>;

fn send(queue: BorrowedFd<'_>, sockets: Sockets<'_>) -> io::Result<()> {
    let mut message = vec![VERSION];
    let mut descriptors: Vec<BorrowedFd<'_>> = Vec::with_capacity(BATCH);
    for one in sockets {
        let remote = match one.remote {
            IpAddr::V4(remote) => remote.to_ipv6_mapped(),
            IpAddr::V6(remote) => remote,
        };
        message.push(u8::from(one.new));
        message.extend(remote.octets());
        descriptors.push(one.socket.as_fd());
    }
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
            let receive = || receive(self.queue.as_fd());
            let (taken, whole) = self.queue.async_io(Interest::READABLE, receive).await?;
            if !whole {
                tracing::warn!(
                    taken = taken.len(),
                    "closed idle connections of the server before: no open files are left for them; raise their limit (ulimit -n, LimitNOFILE=)"
                );
            }
            let ours = taken.into_iter().filter_map(|one| self.ours(one));
            let ours: Vec<_> = ours.collect();
            if !ours.is_empty() {
                return Ok(ours);
            }
            if !whole {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Made ready to be served, unless it was accepted where nobody listens any more: the operator may have had reasons.
    fn ours(&self, one: Handed<OwnedFd>) -> Option<Handed<TcpStream>> {
        let socket = std::net::TcpStream::from(one.socket);
        let local = socket.local_addr().ok()?;
        // A listening socket of IPv6 takes nothing of IPv4.
        let listens = |address: &SocketAddr| {
            let (own, there) = (address.ip(), local.ip());
            let all = own.is_unspecified() && own.is_ipv4() == there.is_ipv4();
            address.port() == local.port() && (own == there || all)
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

/// What one message brings, and whether it brings all that was sent with it.
fn receive(queue: BorrowedFd<'_>) -> io::Result<(Vec<Handed<OwnedFd>>, bool)> {
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
        return Ok((Vec::new(), true));
    };
    let whole = !read.flags.contains(ReturnFlags::CTRUNC);
    let taken = sockets
        .flatten()
        .zip(records.as_chunks::<RECORD>().0)
        .map(|(socket, [new, remote @ ..])| Handed {
            socket,
            remote: IpAddr::from(Ipv6Addr::from(*remote)).to_canonical(),
            new: *new != 0,
        })
        .collect();
    Ok((taken, whole))
}
