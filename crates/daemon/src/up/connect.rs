//! Reaching instances: the driver gives a socket that lives inside the instance's network, and it is connected here.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::{TcpSocket, TcpStream};
use utsuwa_ingress::seam::Connect;
use utsuwa_model::InstanceId;
use utsuwa_runtime::{Driver, DriverError};

#[derive(Debug, Clone)]
pub(super) struct Dialer(pub(super) Arc<dyn Driver>);

impl Connect for Dialer {
    fn connect(&self, id: &InstanceId, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let (driver, id) = (Arc::clone(&self.0), id.clone());
        Box::pin(async move {
            let (socket, mut address) = driver.socket(&id).await.map_err(told)?;
            address.set_port(port);
            let socket = std::net::TcpStream::from(socket);
            socket.set_nonblocking(true)?;
            let same = socket.try_clone()?;
            match TcpSocket::from_std_stream(socket).connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    Ok(stream)
                }
                Err(error) => {
                    if error.kind() == io::ErrorKind::ConnectionRefused {
                        // Nothing listens yet: the next attempt comes soon, and shall not have to ask the keeper.
                        driver.give_back(&id, same.into());
                    }
                    Err(error)
                }
            }
        })
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
