//! What may pass: the text of our nftables table on both sides of the uplink.
//!
//! Owns: both tables, each replaced as a whole in one transaction, so that no packet meets half of them.
//! Doesn't: touch any other table (see [`super::firewall`] for the one exception, tagged rules beside a firewall that
//! drops by default).
//!
//! Where things are decided: the gateway's table knows cables and destinations; the host's table knows what is "the host
//! itself" (any address it has now or gets later), before somebody's port forwarding rewrites the destination. The host is
//! opened only by a rule that names an address of it and nothing else: a network that it happens to stand in does not.
//! A refusal is a TCP reset or an ICMP answer, never silence, and is reported once per minute and destination.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{EgressRule, HOST_ADDRESS, INTERNAL_ADDRESS, NetError};
use crate::sandbox::walls::Wall;

/// Names of cables in the gateway namespace start so.
pub(super) const CABLE_PREFIX: &str = "sb";
/// Name of the uplink in the gateway namespace.
pub(super) const UPLINK_INSIDE: &str = "uplink";

/// Closed IPv4 destinations: everything that isn't the internet's. `198.18.0.0/15` and `100.64.0.0/10` hold our own ranges.
/// `168.63.129.16` is a public address by which machines in Azure reach their host: it hands out the machine's settings.
const CLOSED: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 172.16.0.0/12, \
                      192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";
/// The only open IPv6 destinations: global unicast. ULA, link-local and multicast are outside of it.
const OPEN6: &str = "2000::/3";
/// Inside of it, but made of an IPv4 address that may be a closed one: Teredo and 6to4, where the host has such a tunnel.
const TUNNELLED6: &str = "2001::/32, 2002::/16";
/// New connections that one instance may have open at once through the gateway: a quarter of what the kernel tracks by
/// default on a small host, so that one instance can't take all.
const CONNECTIONS_EACH: u32 = 16_384;

/// Why a packet was refused, as the log prefix says it.
pub(super) const PREFIX_PRIVATE: &str = "utsuwa private";
pub(super) const PREFIX_PEER: &str = "utsuwa peer";
pub(super) const PREFIX_HOST: &str = "utsuwa host";

/// What both tables are made from.
#[derive(Debug)]
pub(super) struct Policy<'a> {
    pub(super) table: &'a str,
    pub(super) uplink: &'a str,
    pub(super) range: (Ipv4Addr, u8),
    pub(super) range6: (Ipv6Addr, u8),
    pub(super) allow: &'a [EgressRule],
    /// NFLOG group in that namespace.
    pub(super) group: u16,
}

impl Policy<'_> {
    /// The table in the gateway namespace.
    pub(super) fn gateway(&self) -> String {
        let mut text = self.open_table();
        if !Wall::Egress.stands() {
            text.push_str("}\n");
            return text;
        }
        let _ = write!(
            text,
            "set counted4 {{ type ipv4_addr; flags dynamic; size 65535; }}
set counted6 {{ type ipv6_addr; flags dynamic; size 65535; }}
chain source {{ type filter hook prerouting priority raw; policy accept;
  iifname \"{CABLE_PREFIX}*\" fib saddr . iif oif missing drop
}}
chain own {{ type filter hook input priority filter; policy drop;
  iifname lo accept
  ct state established,related accept
  iifname \"{CABLE_PREFIX}*\" ip daddr {{ {INTERNAL_ADDRESS}, {HOST_ADDRESS} }} accept
  iifname \"{CABLE_PREFIX}*\" goto refuse_host
}}
chain through {{ type filter hook forward priority filter; policy drop;
  ct state established,related accept
  iifname {UPLINK_INSIDE} drop
  oifname \"{CABLE_PREFIX}*\" goto refuse_peer
  ct state new add @counted4 {{ ip saddr ct count over {CONNECTIONS_EACH} }} reject with icmpx admin-prohibited
  ct state new add @counted6 {{ ip6 saddr ct count over {CONNECTIONS_EACH} }} reject with icmpx admin-prohibited
{allowed}  ip daddr {{ {CLOSED} }} goto refuse_private
  ip6 daddr != {OPEN6} goto refuse_private
  ip6 daddr {{ {TUNNELLED6} }} goto refuse_private
  accept
}}
",
            allowed = self.allowed(|_exact| true),
        );
        self.refuse(&mut text, "refuse_private", PREFIX_PRIVATE);
        self.refuse(&mut text, "refuse_peer", PREFIX_PEER);
        self.refuse(&mut text, "refuse_host", PREFIX_HOST);
        text.push_str("}\n");
        text
    }

    /// The table in the host's namespace.
    pub(super) fn host(&self) -> String {
        let (uplink, (range, prefix), (range6, prefix6)) = (self.uplink, self.range, self.range6);
        let mut text = self.open_table();
        if !Wall::Egress.stands() {
            let _ = write!(
                text,
                "chain out {{ type nat hook postrouting priority srcnat; policy accept; oifname != \"{uplink}\" masquerade\n}}\n}}\n"
            );
            return text;
        }
        // The destination is judged before any port forwarding (-100) and after connection tracking (-200). Each packet is, not
        // the first alone: a connection begun while somebody had taken the table away doesn't outlast that.
        let _ = write!(
            text,
            "chain host {{ type filter hook prerouting priority mangle; policy accept;
  iifname != \"{uplink}\" accept
  ct state related accept
{named}  fib daddr type {{ local, broadcast, anycast, multicast }} goto refuse_host
}}
chain through {{ type filter hook forward priority filter - 5; policy accept;
  oifname \"{uplink}\" ct state established,related accept
  oifname \"{uplink}\" drop
  iifname \"{uplink}\" tcp flags syn tcp option maxseg size set rt mtu
}}
chain out {{ type nat hook postrouting priority srcnat; policy accept;
  ip saddr {range}/{prefix} oifname != \"{uplink}\" masquerade
  ip6 saddr {range6}/{prefix6} oifname != \"{uplink}\" masquerade
}}
",
            named = self.allowed(|exact| exact),
        );
        self.refuse(&mut text, "refuse_host", PREFIX_HOST);
        text.push_str("}\n");
        text
    }

    /// Declares, deletes and opens the table: replaces it whether it existed or not.
    fn open_table(&self) -> String {
        let table = self.table;
        format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{
set reported4 {{ type ipv4_addr . ipv4_addr . inet_service; flags dynamic, timeout; size 65535; }}
set reported6 {{ type ipv6_addr . ipv6_addr . inet_service; flags dynamic, timeout; size 65535; }}
"
        )
    }

    /// The rules that `wanted` takes: it is told whether a rule names one address exactly.
    fn allowed(&self, wanted: impl Fn(bool) -> bool) -> String {
        let mut text = String::new();
        for rule in self.allow {
            let EgressRule::Network {
                network,
                prefix,
                port,
            } = rule
            else {
                continue;
            };
            let exact = *prefix == if network.is_ipv4() { 32 } else { 128 };
            if !wanted(exact) {
                continue;
            }
            let family = if matches!(network, IpAddr::V4(_)) {
                "ip"
            } else {
                "ip6"
            };
            let _ = match port {
                Some(port) => {
                    writeln!(
                        text,
                        "  {family} daddr {network}/{prefix} meta l4proto {{ tcp, udp }} th dport {port} accept"
                    )
                }
                None => writeln!(text, "  {family} daddr {network}/{prefix} accept"),
            };
        }
        text
    }

    fn refuse(&self, text: &mut String, chain: &str, prefix: &str) {
        let group = self.group;
        let _ = writeln!(text, "chain {chain} {{");
        for (set, family) in [("reported4", "ip"), ("reported6", "ip6")] {
            let _ = writeln!(
                text,
                "  meta l4proto {{ tcp, udp }} update @{set} {{ {family} saddr . {family} daddr . th dport timeout 2m \
                 limit rate 1/minute burst 1 packets }} limit rate 50/second log prefix \"{prefix}\" group {group} snaplen 96",
            );
        }
        text.push_str(
            "  meta l4proto tcp reject with tcp reset\n  reject with icmpx admin-prohibited\n}\n",
        );
    }
}

const INSTALL: &str = "install it: apt-get install nftables";

/// `name` where administration programs are, else wherever the caller's PATH leads: many users have no sbin in it.
pub(super) fn program(name: &str) -> Command {
    let place = ["/usr/sbin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists());
    match place {
        Some(path) => Command::new(path),
        None => Command::new(name),
    }
}

/// That `nft` can be run.
pub(super) fn check() -> Result<(), NetError> {
    let failed = |reason: String| NetError::Program {
        program: "nft".to_owned(),
        reason: format!("{reason}; {INSTALL}"),
    };
    let output = program("nft")
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

/// Loads a table in the thread's network namespace.
pub(super) fn load(text: &str) -> Result<(), NetError> {
    let failed = |reason: String| NetError::Program {
        program: "nft".to_owned(),
        reason,
    };
    let mut child = program("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; {INSTALL}")))?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(text.as_bytes())
            .map_err(|error| failed(format!("write the rules: {error}")))?;
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

/// Removes a table from the thread's network namespace, if it is there.
pub(super) fn unload(table: &str) -> Result<(), NetError> {
    load(&format!("table inet {table}\ndelete table inet {table}\n"))
}
