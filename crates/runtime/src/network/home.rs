//! Addresses of the network namespace a process is in: listing the host's, and giving them to a namespace that stands for it.

use std::net::IpAddr;

use super::NetError;
use super::netlink::{Message, Netlink};

/// Number of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// Every address of the thread's network namespace.
///
/// # Errors
/// [`NetError`] of netlink.
pub(crate) fn host_addresses() -> Result<Vec<IpAddr>, NetError> {
    Netlink::open()?.addresses()
}

/// Makes `addresses` this namespace's own, so that a packet to one of them ends here, and its rules see it as one to the host.
///
/// # Errors
/// [`NetError`] of netlink.
pub(crate) fn own_addresses(addresses: &[IpAddr]) -> Result<(), NetError> {
    let mut messages = vec![Message::up(LOOPBACK)];
    // Where IPv6 is switched off there is none to close either.
    let v6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
    messages.extend(
        addresses
            .iter()
            .filter(|address| address.is_ipv4() || v6)
            .map(|address| Message::address(LOOPBACK, *address)),
    );
    Netlink::open()?.run(messages)
}

#[cfg(test)]
mod tests {
    #[test]
    fn loopback_is_among_the_hosts_addresses() {
        let all = super::host_addresses().unwrap();
        assert!(
            all.contains(&std::net::Ipv4Addr::LOCALHOST.into()),
            "{all:?}"
        );
    }
}
