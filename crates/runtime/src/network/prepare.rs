//! What a namespace needs before and after its links exist: switches, and the sockets of a cable.
//!
//! Owns: the values of the switches and why. Doesn't: remember them (`sysctl` does, for the host's).

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::sysctl::{self, Record};
use super::{EgressRule, HOST_ADDRESS, INTERNAL_ADDRESS, NetConfig, NetError, SocketRole};
use crate::rootless::Ids;

/// Waiting connections per listener; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// Switches of the gateway namespace. Defaults first: new links take them over.
pub(super) fn prepare_namespace() -> Result<(), NetError> {
    quiet_ipv6()?;
    for which in ["all", "default"] {
        sysctl::write(&format!("net/ipv4/conf/{which}/send_redirects"), "0")?;
        sysctl::write(&format!("net/ipv4/conf/{which}/accept_redirects"), "0")?;
        sysctl::write(&format!("net/ipv4/conf/{which}/arp_ignore"), "8")?;
    }
    sysctl::write("net/ipv4/ip_forward", "1")?;
    sysctl::write("net/ipv6/conf/all/forwarding", "1")
}

/// Switches of a sandbox: low ports and ping for everybody in it, as on Cloud Run.
pub(super) fn prepare_sandbox() -> Result<(), NetError> {
    quiet_ipv6()?;
    sysctl::write("net/ipv4/ip_unprivileged_port_start", "0")?;
    sysctl::write("net/ipv4/ping_group_range", &groups_of_instances())
}

/// Their groups as this process sees them; all there are, where it sees all.
fn groups_of_instances() -> String {
    match Ids::here() {
        Ids::OfEachService => "0 2147483647".to_owned(),
        Ids::Shared { base, count } => format!("{base} {}", base + count - 1),
    }
}

/// No addresses of the kernel's own making, no waiting for duplicates, no routers found by themselves.
fn quiet_ipv6() -> Result<(), NetError> {
    for (switch, value) in [
        ("addr_gen_mode", "1"),
        ("accept_dad", "0"),
        ("accept_ra", "0"),
        ("router_solicitations", "0"),
    ] {
        sysctl::write(&format!("net/ipv6/conf/default/{switch}"), value)?;
    }
    Ok(())
}

/// Lets the host forward. An interface that learned its IPv6 routes from announcements would stop to do so when
/// forwarding starts, hence the 2.
pub(super) fn forward(record: &mut Record, id: &str, v6: bool) -> Result<(), NetError> {
    record.change(id, "net/ipv4/ip_forward", "1")?;
    if v6 && sysctl::read("net/ipv6/conf/all/forwarding").as_deref() == Some("0") {
        let names = std::fs::read_dir("/proc/sys/net/ipv6/conf").map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        });
        for name in names
            .unwrap_or_default()
            .iter()
            .filter(|name| *name != "all")
        {
            let path = format!("net/ipv6/conf/{name}/accept_ra");
            if sysctl::read(&path).as_deref() == Some("1") {
                record.change(id, &path, "2")?;
            }
        }
        record.change(id, "net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// The sockets of one cable, in the thread's namespace. Many cables have sockets with the same address and port; bound to
/// their device they don't collide, and each hears only its own cable.
pub(super) fn sandbox_sockets(
    config: &NetConfig,
    name: &str,
) -> Result<(Vec<SocketRole>, Vec<OwnedFd>), NetError> {
    let mut roles = vec![SocketRole::DnsUdp, SocketRole::DnsTcp];
    roles.extend(
        config
            .ingress_ports
            .iter()
            .map(|port| SocketRole::Ingress { port: *port }),
    );
    roles.extend(config.allow.iter().filter_map(|rule| match rule {
        EgressRule::Host { port } => Some(SocketRole::HostForward { port: *port }),
        EgressRule::Network { .. } => None,
    }));
    let mut unique = Vec::new();
    roles.retain(|role| {
        !unique.contains(role) && {
            unique.push(*role);
            true
        }
    });
    let sockets: Result<Vec<_>, _> = roles.iter().map(|role| bound_socket(*role, name)).collect();
    Ok((roles, sockets?))
}

/// One of them.
pub(super) fn bound_socket(role: SocketRole, device: &str) -> Result<OwnedFd, NetError> {
    let (address, port, kind) = match role {
        SocketRole::DnsUdp => (INTERNAL_ADDRESS, 53, Type::DGRAM),
        SocketRole::DnsTcp => (INTERNAL_ADDRESS, 53, Type::STREAM),
        SocketRole::Ingress { port } => (INTERNAL_ADDRESS, port, Type::STREAM),
        SocketRole::HostForward { port } => (HOST_ADDRESS, port, Type::STREAM),
    };
    let open = || -> std::io::Result<OwnedFd> {
        let protocol = if kind == Type::DGRAM {
            Protocol::UDP
        } else {
            Protocol::TCP
        };
        let socket = Socket::new(Domain::IPV4, kind.cloexec().nonblocking(), Some(protocol))?;
        // The device first: without it the second cable's bind would collide with the first's.
        socket.bind_device(Some(device.as_bytes()))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((address, port)).into())?;
        if kind == Type::STREAM {
            socket.listen(BACKLOG)?;
        }
        Ok(socket.into())
    };
    open().map_err(|error| NetError::sys(format!("listen at {address}:{port} on {device}"), error))
}
