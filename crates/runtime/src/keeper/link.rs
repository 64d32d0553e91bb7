//! A non-blocking end of a [`Channel`] with a queue for what the socket can't take now.
//!
//! Invariant: packets leave in the order they were given; descriptors are closed once their packet left.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::spawner::protocol::Channel;

/// Packets that may wait for a peer that doesn't read. Beyond it the peer counts as gone.
const QUEUE_LIMIT: usize = 20_000;

#[derive(Debug)]
pub(crate) struct Link<T> {
    channel: Channel,
    queue: VecDeque<(T, Vec<OwnedFd>)>,
}

/// The peer is gone, or speaks something else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the other side is gone")]
    Closed,
    #[error("the other side doesn't read")]
    Stuck,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<T: Serialize> Link<T> {
    pub(crate) fn new(channel: Channel) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&channel, true)?;
        Ok(Self {
            channel,
            queue: VecDeque::new(),
        })
    }

    /// Sends now or when the socket takes it ([`Self::flush`]).
    pub(crate) fn send(&mut self, message: T, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        if self.queue.len() >= QUEUE_LIMIT {
            return Err(LinkError::Stuck);
        }
        self.queue.push_back((message, descriptors));
        self.flush()
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> Result<(), LinkError> {
        while let Some((message, descriptors)) = self.queue.front() {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match self.channel.send(message, &borrowed) {
                Ok(()) => {
                    self.queue.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(LinkError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next packet, or `None` if there is none now.
    pub(crate) fn receive<R: DeserializeOwned>(
        &self,
    ) -> Result<Option<(R, Vec<OwnedFd>)>, LinkError> {
        match self.channel.receive() {
            Ok(Some(packet)) => Ok(Some(packet)),
            Ok(None) => Err(LinkError::Closed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl<T> AsFd for Link<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
