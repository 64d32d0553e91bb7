//! The server's half of one sandbox's internal addresses: name answers and the way to the host's services.
//!
//! Owns: the tasks behind one sandbox's sockets. Doesn't: serve the ingress; its listeners go back to the caller, who knows
//! by them which instance calls.
//!
//! Invariant: all tasks of a sandbox end when its [`Internal`] is dropped.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::SocketRole;
use super::dns::{Resolver, Transport};
use super::forward::{Forwards, Share, serve};

/// Queries of one sandbox that are being answered; a datagram beyond is dropped, as a full socket buffer would.
const QUERIES: usize = 64;
const TCP_CONNECTIONS: usize = 16;
/// A TCP client that sends nothing is let go (RFC 7766 wants a few seconds at least).
const IDLE: Duration = Duration::from_secs(10);
const BREATH: Duration = Duration::from_millis(50);

/// What runs for one sandbox. Dropping it stops it and closes its sockets.
#[derive(Debug)]
pub struct Internal {
    /// The ingress ports and their listeners at the internal address: whoever connects is this sandbox.
    pub ingress: Vec<(u16, TcpListener)>,
    _tasks: JoinSet<()>,
}

/// Serves the sockets of one sandbox, as made by [`super::Gateway::attach`]. `forwards` are the connections to the host that all
/// sandboxes together may have, this one its share of them. Call within a tokio runtime.
///
/// # Errors
/// When a descriptor can't be watched; nothing runs then.
pub fn serve_internal(
    sockets: Vec<(SocketRole, OwnedFd)>,
    resolver: &Arc<Resolver>,
    forwards: &Arc<Forwards>,
) -> io::Result<Internal> {
    let mut tasks = JoinSet::new();
    let mut ingress = Vec::new();
    let share = Share::of(forwards);
    for (role, socket) in sockets {
        if role == SocketRole::DnsUdp {
            let socket = std::net::UdpSocket::from(socket);
            socket.set_nonblocking(true)?;
            tasks.spawn(answer_datagrams(
                UdpSocket::from_std(socket)?,
                Arc::clone(resolver),
            ));
            continue;
        }
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        match role {
            SocketRole::DnsUdp | SocketRole::DnsTcp => {
                tasks.spawn(answer_streams(listener, Arc::clone(resolver)));
            }
            SocketRole::Ingress { port } => ingress.push((port, listener)),
            SocketRole::HostForward { port } => {
                tasks.spawn(serve(listener, port, share.clone()));
            }
        }
    }
    Ok(Internal {
        ingress,
        _tasks: tasks,
    })
}

async fn answer_datagrams(socket: UdpSocket, resolver: Arc<Resolver>) {
    let socket = Arc::new(socket);
    let slots = Arc::new(Semaphore::new(QUERIES));
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                    continue;
                };
                let query = buffer[..length].to_vec();
                let (socket, resolver) = (Arc::clone(&socket), Arc::clone(&resolver));
                answers.spawn(async move {
                    if let Some(answer) = resolver.answer(&query, Transport::Udp).await {
                        // A client that is gone needs no answer.
                        let _ = socket.send_to(&answer, client).await;
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "receive a name query");
                tokio::time::sleep(BREATH).await;
            }
        }
        while answers.try_join_next().is_some() {}
    }
}

async fn answer_streams(listener: TcpListener, resolver: Arc<Resolver>) {
    let slots = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let resolver = Arc::clone(&resolver);
                connections.spawn(async move {
                    // However it ends, the client sees the connection close.
                    let _ = answer_stream(stream, &resolver).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept a name client");
                tokio::time::sleep(BREATH).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn answer_stream(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    loop {
        let query = tokio::time::timeout(IDLE, async {
            let mut query = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut query).await?;
            io::Result::Ok(query)
        })
        .await??;
        let Some(answer) = resolver.answer(&query, Transport::Tcp).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        tokio::time::timeout(
            IDLE,
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()),
        )
        .await??;
    }
}
