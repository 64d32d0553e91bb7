//! How messages are written to a socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// Messages up to this are written in one piece.
const SMALL: usize = 1 << 10;

/// Writes the parts of a message to a socket. Most messages are small, and the kernel takes one piece in less time than it
/// looks at a list of two; what is larger isn't copied.
pub(crate) fn poll_write_parts(
    stream: &mut TcpStream,
    context: &mut Context<'_>,
    parts: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    match parts {
        [part] => stream.poll_write(context, part),
        _ if parts.iter().map(|part| part.len()).sum::<usize>() <= SMALL => {
            let mut whole = [0; SMALL];
            let mut length = 0;
            for part in parts {
                whole[length..length + part.len()].copy_from_slice(part);
                length += part.len();
            }
            stream.poll_write(context, &whole[..length])
        }
        _ => stream.poll_write_vectored(context, parts),
    }
}
