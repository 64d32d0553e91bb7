//! Reaching instances: the driver gives a socket that lives inside the instance's network, and it is connected here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use utsuwa_ingress::seam::{Connect, Connecting};
use utsuwa_model::InstanceId;
use utsuwa_runtime::{Driver, DriverError, network};

use super::listeners;

#[derive(Debug, Clone)]
pub(super) struct Dialer(pub(super) Arc<dyn Driver>);

impl Connect for Dialer {
    fn socket(&self, id: &InstanceId, port: u16) -> BoxFuture<'static, io::Result<Connecting>> {
        let (driver, id) = (Arc::clone(&self.0), id.clone());
        Box::pin(async move {
            let (socket, mut address) = driver.socket(&id).await.map_err(told)?;
            address.set_port(port);
            let connecting: Connecting = Box::pin(async move {
                let (error, socket) = match connect(socket, address).await {
                    Ok(stream) => return Ok(stream),
                    Err(failed) => failed,
                };
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && let Some(socket) = socket
                {
                    // Nothing listens yet: the next attempt comes soon, and shall not have to ask the keeper.
                    driver.give_back(&id, socket);
                }
                Err(error)
            });
            Ok(connecting)
        })
    }

    fn listens_on(&self, id: &InstanceId) -> Vec<SocketAddr> {
        // Ours listen in there, too: for names, and for what may be called from inside.
        let ours = [network::INTERNAL_ADDRESS, network::HOST_ADDRESS].map(IpAddr::V4);
        let mut all = self.0.pid(id).map_or_else(Vec::new, listeners::of);
        all.retain(|at| !ours.contains(&at.ip()));
        all
    }
}

/// Connects `socket` without a second descriptor for it: the shares of open files count one for each request. What failed comes
/// back where it can be used again.
async fn connect(
    socket: OwnedFd,
    address: SocketAddr,
) -> Result<TcpStream, (io::Error, Option<OwnedFd>)> {
    let gone = |error: io::Error| (error, None);
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true).map_err(gone)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err((error.into(), Some(socket.into()))),
    }
    // Watched only from here on: a socket that doesn't connect yet counts as one that was hung up.
    let stream = TcpStream::from_std(socket).map_err(gone)?;
    stream.writable().await.map_err(gone)?;
    match stream.take_error().map_err(gone)? {
        None => {
            stream.set_nodelay(true).map_err(gone)?;
            Ok(stream)
        }
        Some(error) => Err((error, stream.into_std().ok().map(OwnedFd::from))),
    }
}

fn told(error: DriverError) -> io::Error {
    let kind = match error {
        DriverError::NotFound(_) => io::ErrorKind::NotFound,
        DriverError::Unavailable(_) => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn socket() -> OwnedFd {
        rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()
    }

    fn open_files() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[tokio::test]
    async fn a_connection_under_way_is_one_open_file() {
        // Who connects to a listener whose queue is full waits.
        let full = socket();
        rustix::net::bind(&full, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let full = std::net::TcpListener::from(full);
        let address = full.local_addr().unwrap();
        let _first = connect(socket(), address).await.unwrap();
        let socket = socket();
        let before = open_files();
        let mut waiting = std::pin::pin!(connect(socket, address));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(open_files(), before);
    }

    #[tokio::test]
    async fn a_refused_socket_comes_back_and_connects_later() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (error, socket) = connect(socket(), address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let socket = socket.unwrap();
        rustix::net::connect_unspec(&socket).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let mut stream = connect(socket, address).await.unwrap();
        stream.write_all(b"here").await.unwrap();
        let mut seen = [0; 4];
        let (mut accepted, _) = listener.accept().await.unwrap();
        accepted.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"here");
    }
}
