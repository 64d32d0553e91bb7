//! One connection to the keeper, asynchronous: a socket in tokio's poll set.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use crate::keeper::connect_socket;
use crate::keeper::protocol::{ClientKind, FromKeeper, OLDEST, ToKeeper, VERSION};
use crate::spawner::protocol::Channel;

/// A keeper greets within milliseconds.
const GREETING: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the keeper refused the connection: {0}")]
    Refused(String),
}

/// What tokio's poll set asks of a descriptor.
#[derive(Debug)]
struct Registered(Channel);

impl AsFd for Registered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A greeted connection.
#[derive(Debug)]
pub(super) struct KeeperLink {
    channel: AsyncFd<Registered>,
    pub(super) keeper_pid: u32,
    /// Why no instance can be frozen; empty where they can.
    pub(super) never_freezes: String,
}

impl KeeperLink {
    pub(super) async fn connect(
        socket: &Path,
        data_id: &str,
        build: &str,
        holds: Vec<u32>,
    ) -> Result<Self, ConnectError> {
        // Connecting to a Unix socket doesn't wait unless its queue (64) is full.
        let fd = connect_socket(socket).map_err(io::Error::from)?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(io::Error::from)?;
        let mut link = Self {
            channel: register(Channel::from(fd))?,
            keeper_pid: 0,
            never_freezes: String::new(),
        };
        let hello: ToKeeper = ToKeeper::Hello {
            version: VERSION,
            oldest: OLDEST,
            build: build.to_owned(),
            data_id: data_id.to_owned(),
            kind: ClientKind::Server,
            holds,
        };
        link.send(&hello, &[]).await?;
        let answer = tokio::time::timeout(GREETING, link.receive()).await;
        match answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            (
                FromKeeper::Welcome {
                    pid, never_freezes, ..
                },
                _,
            ) => (link.keeper_pid, link.never_freezes) = (pid, never_freezes),
            (FromKeeper::Refused { reason }, _) => return Err(ConnectError::Refused(reason)),
            _ => {
                return Err(ConnectError::Refused(
                    "it answered with something else".to_owned(),
                ));
            }
        }
        Ok(link)
    }

    /// Sends one packet.
    pub(super) async fn send(
        &self,
        message: &ToKeeper,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        loop {
            let mut guard = self.channel.writable().await?;
            if let Ok(result) =
                guard.try_io(|channel| channel.get_ref().0.send(message, descriptors))
            {
                return result;
            }
        }
    }

    /// The next packet. The end of the connection is an error. May be dropped while waiting; nothing is lost then.
    pub(super) async fn receive(&self) -> io::Result<(FromKeeper, Vec<OwnedFd>)> {
        loop {
            let mut guard = self.channel.readable().await?;
            if let Ok(result) = guard.try_io(|channel| channel.get_ref().0.receive()) {
                return result?.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset));
            }
        }
    }
}

#[expect(
    unsafe_code,
    reason = "tokio wants it promised that the descriptor stays the same"
)]
fn register(channel: Channel) -> io::Result<AsyncFd<Registered>> {
    // SAFETY: `Registered` owns the channel, which never replaces or closes its descriptor before it is dropped, and the
    // `AsyncFd` drops it after leaving the poll set.
    unsafe { AsyncFd::register(Registered(channel)) }.map_err(io::Error::from)
}
