//! From an instance to a TCP service on the host's loopback.
//!
//! Owns: accepting on a [`super::SocketRole::HostForward`] listener and copying both ways; each direction ends on its own
//! (half-close). Doesn't: decide who may: the listener exists only where a rule opened the port.
//! Failure: when nobody listens on the host, the client gets a reset, as if it had dialled a closed port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections of one instance to one port; the next ones wait in the listener's queue.
const CONNECTIONS: usize = 256;
/// After accept fails for want of descriptors, before the next try.
const BREATH: Duration = Duration::from_millis(50);

/// Serves until dropped; `all` are the places of all instances together: without one, a client gets a reset.
pub(super) async fn serve(listener: TcpListener, port: u16, all: Arc<Semaphore>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let Ok(place) = Arc::clone(&all).try_acquire_owned() else {
                    tracing::debug!(
                        port,
                        "all instances together have too many connections to the host"
                    );
                    reset(&client);
                    continue;
                };
                connections.spawn(async move {
                    if let Err(error) = join(client, port).await {
                        tracing::debug!(port, %error, "forward to the host's loopback");
                    }
                    drop((slot, place));
                });
            }
            Err(error) => {
                tracing::debug!(port, %error, "accept for the host's loopback");
                tokio::time::sleep(BREATH).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn join(mut client: TcpStream, port: u16) -> io::Result<()> {
    let first = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    let connected = match first {
        Ok(service) => Ok(service),
        Err(error) => TcpStream::connect((Ipv6Addr::LOCALHOST, port))
            .await
            .map_err(|_| error),
    };
    let mut service = match connected {
        Ok(service) => service,
        Err(error) => {
            reset(&client);
            return Err(error);
        }
    };
    client.set_nodelay(true)?;
    service.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut service).await?;
    Ok(())
}

/// Closing with zero linger sends a reset.
fn reset(client: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "reset a connection");
    }
}
