//! Listening sockets that the keeper holds, so that no connection is refused while the server is replaced.

use std::os::fd::OwnedFd;

use super::driver::SandboxDriver;
use super::shared::unexpected;
use crate::driver::DriverError;
use crate::keeper::bind_here;
use crate::keeper::protocol::{Op, Reply};

impl SandboxDriver {
    /// The listening socket that the keeper holds under this name and address, if it does.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn take_listener(
        &self,
        name: &str,
        address: &str,
    ) -> Result<Option<OwnedFd>, DriverError> {
        self.listener(name, address, false).await
    }

    /// Like [`Self::take_listener`]; where there is none, the keeper binds `address` (`IP:PORT`). A user's keeper is not in the
    /// host's network: it is given a socket to hold.
    ///
    /// # Errors
    /// [`DriverError::Refused`] if the address is taken, isn't this host's, or isn't permitted.
    pub async fn listen(&self, name: &str, address: &str) -> Result<OwnedFd, DriverError> {
        if crate::rootless::is_rootless() {
            if let Some(held) = self.take_listener(name, address).await? {
                return Ok(held);
            }
            let socket = bind_here(address).map_err(|e| DriverError::Refused(e.to_string()))?;
            self.give_listener(name, address, &socket).await?;
            return Ok(socket);
        }
        let socket = self.listener(name, address, true).await?;
        socket.ok_or_else(|| {
            DriverError::Internal(format!("the keeper sent no socket for {name} {address}"))
        })
    }

    async fn listener(
        &self,
        name: &str,
        address: &str,
        bind: bool,
    ) -> Result<Option<OwnedFd>, DriverError> {
        let op = Op::TakeListener {
            name: name.to_owned(),
            address: address.to_owned(),
            bind,
        };
        match self.call(op, Vec::new()).await? {
            (Reply::Listener { found: true }, mut sockets) => {
                let Some(socket) = sockets.pop() else {
                    return Ok(None);
                };
                self.remember_listener(name, address, &socket)?;
                Ok(Some(socket))
            }
            (Reply::Listener { found: false }, _) => Ok(None),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Has the keeper hold a copy of a listening socket (for example a Unix socket) for the next server.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn give_listener(
        &self,
        name: &str,
        address: &str,
        socket: &OwnedFd,
    ) -> Result<(), DriverError> {
        let copy = socket
            .try_clone()
            .map_err(|error| DriverError::Exhausted(error.to_string()))?;
        self.remember_listener(name, address, socket)?;
        let op = Op::GiveListener {
            name: name.to_owned(),
            address: address.to_owned(),
        };
        self.call(op, vec![copy]).await.map(|_| ())
    }

    fn remember_listener(
        &self,
        name: &str,
        address: &str,
        socket: &OwnedFd,
    ) -> Result<(), DriverError> {
        let copy = socket
            .try_clone()
            .map_err(|error| DriverError::Exhausted(error.to_string()))?;
        self.shared
            .listeners
            .lock()
            .insert((name.to_owned(), address.to_owned()), copy);
        Ok(())
    }

    /// Closes all listening sockets but these (name, address): connections to them are refused from now on.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn retain_listeners(&self, keep: &[(String, String)]) -> Result<(), DriverError> {
        self.shared
            .listeners
            .lock()
            .retain(|key, _| keep.contains(key));
        self.call(
            Op::RetainListeners {
                keep: keep.to_vec(),
            },
            Vec::new(),
        )
        .await
        .map(|_| ())
    }
}
