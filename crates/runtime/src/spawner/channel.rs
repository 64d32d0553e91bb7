//! The framing of messages with descriptors over `SOCK_SEQPACKET`.
//!
//! Owns: one end of a connection between two of our processes. Doesn't: know what is said.
//!
//! Invariants
//! 1. One message is one packet. A body above [`INLINE_LIMIT`] travels in a sealed memfd, the last descriptor of its packet,
//!    so that socket buffers never decide what an environment may hold.
//! 2. Every received descriptor is close-on-exec and owned by the receiver.
//!
//! Failure: a peer that is gone reads as `Ok(None)` from [`Channel::receive`] and as `EPIPE` from [`Channel::send`].

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bodies up to this many bytes are sent in the packet itself: well below the default socket buffer of 212,992.
pub const INLINE_LIMIT: usize = 64 * 1024;

/// No message is larger: four times what `execve` takes as arguments and environment.
pub const MESSAGE_LIMIT: u64 = 8 * 1024 * 1024;

/// The kernel's limit of descriptors in one packet is 253.
pub const DESCRIPTOR_LIMIT: usize = 250;

/// One end of a `SOCK_SEQPACKET` pair that carries messages of this protocol.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// First byte of a packet: the JSON follows.
const INLINE: u8 = b'I';
/// First byte of a packet: the JSON is in the memfd that is the last descriptor.
const IN_MEMFD: u8 = b'M';

thread_local! {
    /// For one packet. Kept: a start is a dozen of them, and an allocation of this size is given back to the kernel each time.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Channel {
    /// A connected pair, both ends close-on-exec and blocking.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE` or `ENOMEM` of `socketpair`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// Sends one message with `descriptors` (at most [`DESCRIPTOR_LIMIT`]), which stay the caller's. Blocks while the peer's
    /// queue is full unless the socket is non-blocking (then `WouldBlock`, nothing sent).
    ///
    /// # Errors
    /// `EPIPE` when the peer is gone; `InvalidInput` when the message or the number of descriptors is above its limit.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        if descriptors.len() > DESCRIPTOR_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "send message: too many descriptors for one packet",
            ));
        }
        let mut packet = vec![INLINE];
        serde_json::to_writer(&mut packet, message)?;
        if packet.len() <= INLINE_LIMIT {
            return self.send_packet(&packet, descriptors);
        }
        if packet.len() as u64 > MESSAGE_LIMIT {
            let text = format!(
                "send message: {} bytes are more than the limit of {MESSAGE_LIMIT}",
                packet.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let memfd = rustix::fs::memfd_create(
            c"utsuwa-message",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        let mut file = File::from(memfd);
        file.write_all(&packet[1..])?;
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        let mut all = descriptors.to_vec();
        all.push(file.as_fd());
        self.send_packet(&[IN_MEMFD], &all)
    }

    fn send_packet(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        loop {
            match rustix::net::sendmsg(
                &self.socket,
                &[IoSlice::new(packet)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next message and its descriptors; `None` when the peer is gone. Blocks unless the socket is non-blocking (then
    /// `WouldBlock`).
    ///
    /// # Errors
    /// `InvalidData` for what is not a message of this protocol: the connection is then useless.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(INLINE_LIMIT + 1, 0);
            self.receive_into(buffer)
        })
    }

    fn receive_into<T: DeserializeOwned>(
        &self,
        buffer: &mut [u8],
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut slices = [IoSliceMut::new(buffer)];
            match rustix::net::recvmsg(
                &self.socket,
                &mut slices,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                // A peer that died with unread packets: as gone as one that closed.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received
            .flags
            .intersects(rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC)
        {
            return Err(invalid(
                "receive message: it was cut off (too large, or no free descriptors here)",
            ));
        }
        let message = match buffer[0] {
            INLINE => serde_json::from_slice(&buffer[1..received.bytes])
                .map_err(|e| invalid(&format!("receive message: {e}")))?,
            IN_MEMFD => {
                let memfd = descriptors.pop().ok_or_else(|| {
                    invalid("receive message: the memfd with its body is missing")
                })?;
                from_memfd(memfd)?
            }
            other => {
                return Err(invalid(&format!(
                    "receive message: unknown kind of packet {other}"
                )));
            }
        };
        Ok(Some((message, descriptors)))
    }
}

fn from_memfd<T: DeserializeOwned>(memfd: OwnedFd) -> io::Result<T> {
    // Unsealed memory could change or shrink under our eyes.
    let seals = rustix::fs::fcntl_get_seals(&memfd)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(invalid("receive message: its body is not sealed"));
    }
    let mut file = File::from(memfd);
    file.seek(SeekFrom::Start(0))?;
    let mut body = Vec::new();
    file.take(MESSAGE_LIMIT).read_to_end(&mut body)?;
    serde_json::from_slice(&body).map_err(|e| invalid(&format!("receive message: {e}")))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawner::protocol::{Op, Request};

    #[test]
    fn a_message_and_its_descriptors_arrive() {
        let (a, b) = Channel::pair().unwrap();
        let request = Request {
            id: 7,
            op: Op::MakeSandbox { sandbox: 3 },
        };
        a.send(&request, &[a.as_fd(), b.as_fd()]).unwrap();
        let (got, descriptors) = b.receive::<Request>().unwrap().unwrap();
        assert_eq!(got, request);
        assert_eq!(descriptors.len(), 2);
        for descriptor in &descriptors {
            assert!(
                rustix::io::fcntl_getfd(descriptor)
                    .unwrap()
                    .contains(rustix::io::FdFlags::CLOEXEC)
            );
        }
    }

    #[test]
    fn a_message_above_the_socket_buffer_arrives() {
        let (a, b) = Channel::pair().unwrap();
        let request = Request {
            id: 1,
            op: Op::RemoveLayer {
                diff_id: "x".repeat(2 << 20),
            },
        };
        a.send(&request, &[a.as_fd()]).unwrap();
        let (got, descriptors) = b.receive::<Request>().unwrap().unwrap();
        assert_eq!(got, request);
        assert_eq!(descriptors.len(), 1);
    }

    #[test]
    fn a_gone_peer_is_none_and_broken_pipe() {
        let (a, b) = Channel::pair().unwrap();
        drop(b);
        assert!(a.receive::<Request>().unwrap().is_none());
        let error = a.send(&1, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_unsealed_body_is_refused() {
        let (a, b) = Channel::pair().unwrap();
        let memfd = rustix::fs::memfd_create(c"x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .unwrap();
        a.send_packet(&[IN_MEMFD], &[memfd.as_fd()]).unwrap();
        assert_eq!(
            b.receive::<Request>().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
