//! The network of instances: one gateway namespace per server, a cable from it to every sandbox, and what may pass.
//!
//! Owns: the gateway namespace and its uplink, the nftables tables on both sides, the veth pairs, the sockets that stand
//! for "this sandbox asked" ([`SocketRole`]), name answers ([`dns`]), the way to the host's own services (`forward`) and
//! the report of refused connections ([`refusal`]).
//! Doesn't: decide which names are ours ([`dns::Zone`] does), serve HTTP, or know services: it knows sandbox numbers.
//!
//! Two halves: [`Gateway`] and everything below it is blocking, privileged and single-threaded (it lives in the
//! housekeeper); [`serve_internal`] and [`RefusalReader`] are async and need no privilege (they live in the server
//! and work on sockets that the other half made).
//!
//! Invariants:
//! 1. Nothing in the host's network namespace is ours except the uplink, the table `utsuwa-ID`, tagged `FORWARD` rules
//!    where another firewall drops by default, and the sysctls listed in `network.json`; [`Gateway::tear_down`] undoes all.
//! 2. A packet from a cable is dropped unless its source is the address given to that cable.
//! 3. Who calls `169.254.169.254` is known by the socket that accepts, never by an address.
//! 4. A name or address that isn't the internet's is closed unless an [`EgressRule`] names it.
//! 5. Nothing waits for ARP or neighbour discovery: both ends hold permanent entries.
//!
//! Failure: every call names the object, the step and the kernel's error ([`NetError`]). [`Gateway::set_up`] may be
//! repeated over whatever an earlier process left behind.

mod addresses;
pub mod dns;
pub mod egress;
mod firewall;
mod forward;
mod gateway;
mod home;
mod internal;
mod namespace;
mod netlink;
mod prepare;
pub mod refusal;
mod rules;
mod sysctl;
mod uplink;
mod watch;

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

pub use egress::{EgressRule, EgressRuleError};
pub use forward::Forwards;
pub use gateway::Gateway;
pub(crate) use home::{host_addresses, own_addresses};
pub use internal::{Internal, serve_internal};
pub use refusal::{Refusal, RefusalReader};

/// Inside every instance: name answers, the metadata server and the server's own services.
pub const INTERNAL_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Inside every instance: the host's own services that an [`EgressRule::Host`] opened (`host.utsuwa.internal`).
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// The gateway namespace of the server with this id, while it is there.
pub(crate) fn gateway_namespace(id: &str) -> Option<std::os::fd::OwnedFd> {
    namespace::find(id)
}

/// That the programs which [`Gateway`] runs are there: better said before anything is made than in a log afterwards.
///
/// # Errors
/// [`NetError::Program`], saying what to install.
pub fn check_programs() -> Result<(), NetError> {
    rules::check()?;
    firewall::check()
}

/// What the network of one server needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The server's id, 1 to 8 lowercase letters or digits. All kernel objects carry it.
    pub id: String,
    /// Ports on [`INTERNAL_ADDRESS`] at which the server's ingress answers inside instances.
    pub ingress_ports: Vec<u16>,
    /// What instances may reach besides the internet.
    pub allow: Vec<EgressRule>,
    /// Bytes; `None` takes the MTU of the host's default route.
    pub mtu: Option<u32>,
}

/// How one sandbox is joined to the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetInfo {
    /// Number of the address within the server's range; unique among attached sandboxes.
    pub index: u32,
    /// Name of the cable's end in the gateway namespace.
    pub host_veth: String,
    /// Address of `eth0`.
    pub address: Ipv4Addr,
    /// IPv6 address of `eth0`; `None` where the host has no IPv6.
    pub address6: Option<Ipv6Addr>,
    /// What the sockets that came along are for, in their order.
    pub sockets: Vec<SocketRole>,
}

/// What a socket on the gateway's side of a cable is for. Only packets from that cable reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketRole {
    /// UDP, [`INTERNAL_ADDRESS`] port 53.
    DnsUdp,
    /// TCP listener, [`INTERNAL_ADDRESS`] port 53.
    DnsTcp,
    /// TCP listener, [`INTERNAL_ADDRESS`]: the server's ingress.
    Ingress { port: u16 },
    /// TCP listener, [`HOST_ADDRESS`]: leads to the host's loopback, same port.
    HostForward { port: u16 },
}

/// Why the network could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The id would not fit into the name of a network device.
    #[error("network id {0:?}: 1 to 8 lowercase letters or digits are possible")]
    BadId(String),
    /// Each candidate range overlaps with a route of the host.
    #[error(
        "no free address range: each of {tried} overlaps with a route of this host; remove one of its routes"
    )]
    NoFreeRange { tried: String },
    /// All addresses of the range are attached.
    #[error("all {0} addresses of this server's range are in use")]
    AddressesUsedUp(u32),
    /// A system call or netlink request was refused.
    #[error("{step}: {source}")]
    Sys {
        step: String,
        source: std::io::Error,
    },
    /// A program that we need is missing or refused its input.
    #[error("{program}: {reason}")]
    Program { program: String, reason: String },
    /// The thread could not return to its own network namespace; the process must be replaced.
    #[error("return to the host's network namespace: {0}")]
    Lost(std::io::Error),
}

/// What a caller can do about a [`NetError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetErrorClass {
    /// The configuration or the host must be changed.
    Caller,
    /// Something ran out; later may work.
    Exhausted,
    /// The kernel or a tool behaves differently than expected.
    Internal,
    /// This process can't go on.
    Fatal,
}

impl NetError {
    /// What a caller can do about it.
    #[must_use]
    pub fn class(&self) -> NetErrorClass {
        match self {
            Self::BadId(_) | Self::NoFreeRange { .. } | Self::Program { .. } => {
                NetErrorClass::Caller
            }
            Self::AddressesUsedUp(_) => NetErrorClass::Exhausted,
            Self::Sys { source, .. } => match source.raw_os_error() {
                Some(
                    libc::ENOMEM
                    | libc::ENOBUFS
                    | libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOSPC
                    | libc::EAGAIN,
                ) => NetErrorClass::Exhausted,
                _ => NetErrorClass::Internal,
            },
            Self::Lost(_) => NetErrorClass::Fatal,
        }
    }

    pub(crate) fn sys(step: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Sys {
            step: step.into(),
            source: source.into(),
        }
    }
}
