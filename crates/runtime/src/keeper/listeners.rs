//! Listening sockets that outlive the server.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::core::Keeper;
use super::protocol::KeeperError;
use super::spawners::STARTER;
use crate::spawner::protocol::Op;

/// Below this, binding takes a privilege that the server hasn't.
const UNPRIVILEGED_FROM: u16 = 1024;
/// Connections that wait while no server accepts; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Binds and listens on `address` (`IP:PORT`).
pub(crate) fn bind(address: &str, privileged: &[u16]) -> Result<OwnedFd, KeeperError> {
    let parsed: SocketAddr = address.parse().map_err(|_| {
        KeeperError::Refused(format!(
            "listen on {address:?}: it is no address; use IP:PORT"
        ))
    })?;
    let port = parsed.port();
    if port != 0 && port < UNPRIVILEGED_FROM && !privileged.contains(&port) {
        let text = format!(
            "listen on {address}: port {port} is below 1024 and was not named when the keeper started"
        );
        return Err(KeeperError::Refused(text));
    }
    let socket = || -> std::io::Result<Socket> {
        let domain = if parsed.is_ipv6() {
            Domain::IPV6
        } else {
            Domain::IPV4
        };
        let socket = Socket::new(
            domain,
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        if parsed.is_ipv6() {
            // 127.0.0.1 and ::1 are bound one by one.
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&parsed.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    socket().map(OwnedFd::from).map_err(|error| {
        let advice = match error.raw_os_error() {
            Some(libc::EADDRINUSE) => format!("; `ss -ltnp 'sport = :{port}'` shows by whom"),
            Some(libc::EADDRNOTAVAIL) => "; this host has no such address".to_owned(),
            _ => String::new(),
        };
        KeeperError::Refused(format!("listen on {address}: {error}{advice}"))
    })
}

/// The same in this process, which has no privilege either way: the kernel knows which ports take one.
pub(crate) fn bind_here(address: &str) -> Result<OwnedFd, KeeperError> {
    let port = address
        .parse()
        .map_or(0, |parsed: SocketAddr| parsed.port());
    bind(address, &[port])
}

impl Keeper {
    /// A copy for the starter, so that it outlives this process too.
    pub(crate) fn deposit_listener(&mut self, key: &(String, String)) {
        if let Some(Ok(copy)) = self.listeners.get(key).map(OwnedFd::try_clone) {
            self.tell(
                STARTER,
                Op::Hold {
                    name: held_name(key),
                },
                vec![copy],
            );
        }
    }

    pub(crate) fn retain_listeners(&mut self, keep: &[(String, String)]) {
        let gone: Vec<_> = self
            .listeners
            .keys()
            .filter(|key| !keep.contains(key))
            .cloned()
            .collect();
        for key in gone {
            self.listeners.remove(&key);
            self.tell(
                STARTER,
                Op::Release {
                    name: held_name(&key),
                },
                Vec::new(),
            );
        }
    }
}

/// The name under which the starter holds a listening socket.
pub(crate) fn held_name((name, address): &(String, String)) -> String {
    format!("listener:{name}={address}")
}

/// The other way round.
pub(crate) fn from_held_name(name: &str) -> Option<(String, String)> {
    let (name, address) = name.strip_prefix("listener:")?.split_once('=')?;
    Some((name.to_owned(), address.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use super::*;

    #[test]
    fn names_survive_and_refusals_say_why() {
        let key = ("http".to_owned(), "[::1]:8080".to_owned());
        assert_eq!(from_held_name(&held_name(&key)), Some(key));
        assert!(bind("127.0.0.1:0", &[]).is_ok());
        assert!(
            bind("127.0.0.1:80", &[])
                .unwrap_err()
                .to_string()
                .contains("below 1024")
        );
        assert!(
            bind("localhost", &[])
                .unwrap_err()
                .to_string()
                .contains("IP:PORT")
        );
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        assert!(
            bind(&address, &[])
                .unwrap_err()
                .to_string()
                .contains("ss -ltnp")
        );
    }
}
