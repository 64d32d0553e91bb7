//! Where the programs of an instance listen, as the kernel shows it to everybody in `/proc/PID/net`.
//!
//! Fails by knowing nothing: a process that is gone, or a `/proc` that hides it, listens nowhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state of a listening socket in those tables.
const LISTENING: &str = "0A";

/// All TCP sockets that listen in the network of process `pid`.
pub(super) fn of(pid: u32) -> Vec<SocketAddr> {
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
        .flat_map(|table| listening(&table))
        .collect()
}

fn listening(table: &str) -> Vec<SocketAddr> {
    let rows = table.lines().skip(1);
    rows.filter_map(|row| {
        let mut fields = row.split_whitespace().skip(1);
        let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        (state == LISTENING).then(|| address(local)).flatten()
    })
    .collect()
}

/// `0100007F:1F90`: words as this machine stores them, each with the network's first byte first in memory.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..host.len()).step_by(8) {
        let word = u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_this_process_listens_on_is_found() {
        for place in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            // No IPv6 here is no fault of this code.
            let Ok(listener) = TcpListener::bind(place) else {
                continue;
            };
            let address = listener.local_addr().unwrap();
            let found = of(std::process::id());
            assert!(found.contains(&address), "{address} in {found:?}");
        }
        assert_eq!(
            listening("head\n  0: zz:1F90 00000000:0000 0A\n  1: 0100007F:1F90"),
            []
        );
    }
}
