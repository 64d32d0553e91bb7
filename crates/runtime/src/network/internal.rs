//! The server's half of one sandbox's internal addresses: name answers and the way to the host's services.
//!
//! Owns: the tasks behind one sandbox's sockets. Doesn't: serve the ingress; its listeners go back to the caller, who knows
//! by them which instance calls.
//!
//! Invariants: 1. All tasks of a sandbox end when its [`Internal`] is dropped. 2. What is under way when it is closed goes on.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::SocketRole;
use super::dns::{Resolver, Transport};
use super::forward::{Forwards, Share, next, serve};

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
    tasks: JoinSet<()>,
    closing: CancellationToken,
}

impl Internal {
    /// Takes nothing new, and lets go of its sockets: another server serves them. Returns when answers under way are sent and
    /// every connection to the host has ended; dropping it before that cuts them.
    pub async fn close(mut self) {
        self.ingress.clear();
        self.closing.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
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
    let closing = CancellationToken::new();
    let share = Share::of(forwards);
    for (role, socket) in sockets {
        if role == SocketRole::DnsUdp {
            let socket = std::net::UdpSocket::from(socket);
            socket.set_nonblocking(true)?;
            tasks.spawn(answer_datagrams(
                UdpSocket::from_std(socket)?,
                Arc::clone(resolver),
                closing.clone(),
            ));
            continue;
        }
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        match role {
            SocketRole::DnsUdp | SocketRole::DnsTcp => {
                tasks.spawn(answer_streams(
                    listener,
                    Arc::clone(resolver),
                    closing.clone(),
                ));
            }
            SocketRole::Ingress { port } => ingress.push((port, listener)),
            SocketRole::HostForward { port } => {
                tasks.spawn(serve(listener, port, share.clone(), closing.clone()));
            }
        }
    }
    Ok(Internal {
        ingress,
        tasks,
        closing,
    })
}

async fn answer_datagrams(socket: UdpSocket, resolver: Arc<Resolver>, closing: CancellationToken) {
    let socket = Arc::new(socket);
    let slots = Arc::new(Semaphore::new(QUERIES));
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = closing.cancelled() => break,
        };
        match received {
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
    while answers.join_next().await.is_some() {}
}

async fn answer_streams(
    listener: TcpListener,
    resolver: Arc<Resolver>,
    closing: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Some((slot, accepted)) = next(&listener, &slots, &closing).await else {
            break;
        };
        match accepted {
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
    drop(listener);
    while connections.join_next().await.is_some() {}
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
