//! A blocking connection to the keeper, for commands that ask one thing and leave.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt,
};

use super::config::BUILD;
use super::protocol::{ClientKind, FromKeeper, KeeperError, OLDEST, Op, Reply, ToKeeper};
use crate::spawner::protocol::Channel;

/// Why the keeper could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// Nobody listens there.
    #[error("no keeper answers at {path}: {source}")]
    NoKeeper { path: String, source: io::Error },
    /// It doesn't want to speak with us.
    #[error("the keeper refused the connection: {0}")]
    Refused(String),
    #[error("speak with the keeper: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

/// One connection.
#[derive(Debug)]
pub struct Visitor {
    channel: Channel,
    build: String,
    pid: u32,
    next: u64,
}

impl Visitor {
    /// Connects to the keeper of the data directory with `data_id`.
    ///
    /// # Errors
    /// [`VisitError`].
    pub fn connect(socket: &Path, data_id: &str) -> Result<Self, VisitError> {
        let no_keeper = |errno: rustix::io::Errno| VisitError::NoKeeper {
            path: socket.display().to_string(),
            source: errno.into(),
        };
        let fd = connect_socket(socket).map_err(no_keeper)?;
        // A keeper answers within milliseconds; one that hangs must not hang us.
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(Duration::from_secs(60)))
            .map_err(io::Error::from)?;
        let channel = Channel::from(fd);
        let hello: ToKeeper = ToKeeper::Hello {
            // Whatever a visitor asks for, every keeper knows; above all an older one that is to make place for ours.
            version: OLDEST,
            oldest: OLDEST,
            build: BUILD.to_owned(),
            data_id: data_id.to_owned(),
            kind: ClientKind::Visitor,
            holds: Vec::new(),
        };
        channel.send(&hello, &[])?;
        match channel.receive::<FromKeeper>()? {
            Some((FromKeeper::Welcome { build, pid, .. }, _)) => Ok(Self {
                channel,
                build,
                pid,
                next: 1,
            }),
            Some((FromKeeper::Refused { reason }, _)) => Err(VisitError::Refused(reason)),
            Some(_) => Err(VisitError::Refused(
                "it answered with something else".to_owned(),
            )),
            None => Err(VisitError::Io(io::Error::from(
                io::ErrorKind::ConnectionReset,
            ))),
        }
    }

    /// Build of the keeper.
    #[must_use]
    pub fn build(&self) -> &str {
        &self.build
    }

    /// Process id of the keeper.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`VisitError`].
    pub fn ask(
        &mut self,
        op: Op,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), VisitError> {
        let id = self.next;
        self.next += 1;
        self.channel
            .send(&ToKeeper::Request { id, op }, descriptors)?;
        loop {
            match self.channel.receive::<FromKeeper>()? {
                Some((
                    FromKeeper::Reply {
                        id: answered,
                        result,
                    },
                    descriptors,
                )) if answered == id => {
                    return Ok((result?, descriptors));
                }
                Some(_) => {}
                None => {
                    return Err(VisitError::Io(io::Error::from(
                        io::ErrorKind::ConnectionReset,
                    )));
                }
            }
        }
    }

    /// Waits until the keeper has closed the connection: it has ended then.
    pub(crate) fn until_closed(self) {
        while let Ok(Some(_)) = self.channel.receive::<FromKeeper>() {}
    }
}

/// A blocking SOCK_SEQPACKET connection to `path`.
pub(crate) fn connect_socket(path: &Path) -> rustix::io::Result<OwnedFd> {
    let fd = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    connect(fd.as_fd(), &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}
