//! What an operator may open for instances: `CIDR[:PORT]` or `host:PORT`.
//!
//! Owns: the rule's text form, both ways. Doesn't: enforce it (the tables in `rules` do).
//! Forms: `10.1.2.3`, `10.0.0.0/8`, `10.0.0.0/8:5432`, `fd00::/8`, `[fd00::1]:443`, `[fd00::/8]:443`, `host:5432`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One thing besides the internet that instances may reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EgressRule {
    /// Addresses, and a TCP or UDP port if only that one is meant. Host bits of `network` are zero.
    Network {
        network: IpAddr,
        prefix: u8,
        port: Option<u16>,
    },
    /// A TCP port of the host's loopback, reached as `host.utsuwa.internal`.
    Host { port: u16 },
}

/// Why a text is no egress rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "egress rule {text:?}: {reason}; write CIDR, CIDR:PORT or host:PORT, for example 10.0.0.0/8:5432, [fd00::/8]:443 or host:5432"
)]
pub struct EgressRuleError {
    text: String,
    reason: String,
}

impl FromStr for EgressRule {
    type Err = EgressRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| EgressRuleError {
            text: text.to_owned(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<EgressRule, String> {
    if let Some(port) = text.strip_prefix("host:") {
        return Ok(EgressRule::Host {
            port: parse_port(port)?,
        });
    }
    if text == "host" {
        return Err("the port is missing".to_owned());
    }
    let (cidr, port) = if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest
            .split_once(']')
            .ok_or("the closing bracket is missing")?;
        match after.strip_prefix(':') {
            Some(port) => (inside, Some(parse_port(port)?)),
            None if after.is_empty() => (inside, None),
            None => return Err(format!("{after:?} follows the bracket")),
        }
    } else if text.matches(':').count() == 1 {
        // One colon can't be IPv6 (its shortest form is "::"), so it starts a port.
        let (cidr, port) = text.split_once(':').ok_or("no colon")?;
        (cidr, Some(parse_port(port)?))
    } else {
        (text, None)
    };
    let (address, prefix) = match cidr.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (cidr, None),
    };
    let network: IpAddr = address
        .parse()
        .map_err(|_| format!("{address:?} is no IP address"))?;
    let widest = if network.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => widest,
        Some(digits) => digits
            .parse::<u8>()
            .ok()
            .filter(|prefix| *prefix <= widest)
            .ok_or_else(|| format!("prefix length {digits:?} is not in 0..={widest}"))?,
    };
    let masked = mask(network, prefix);
    if masked != network {
        return Err(format!(
            "{network} has bits beyond its prefix length; {masked}/{prefix} is the network"
        ));
    }
    Ok(EgressRule::Network {
        network,
        prefix,
        port,
    })
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("port {text:?} is not in 1..=65535")),
    }
}

/// `address` with all bits after the first `prefix` cleared.
fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { port } => write!(f, "host:{port}"),
            Self::Network {
                network,
                prefix,
                port: None,
            } => write!(f, "{network}/{prefix}"),
            Self::Network {
                network: network @ IpAddr::V4(_),
                prefix,
                port: Some(port),
            } => {
                write!(f, "{network}/{prefix}:{port}")
            }
            Self::Network {
                network,
                prefix,
                port: Some(port),
            } => write!(f, "[{network}/{prefix}]:{port}"),
        }
    }
}

impl TryFrom<String> for EgressRule {
    type Error = EgressRuleError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_and_writes_it_back() {
        for (text, canonical) in [
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("fd00::/8", "fd00::/8"),
            ("fd00::1", "fd00::1/128"),
            ("[fd00::1]:443", "[fd00::1/128]:443"),
            ("[fd00::/8]:443", "[fd00::/8]:443"),
            ("[fd00::/8]", "fd00::/8"),
            ("host:5432", "host:5432"),
        ] {
            let rule: EgressRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), canonical);
            assert_eq!(canonical.parse::<EgressRule>().unwrap(), rule);
            assert_eq!(
                serde_json::from_str::<EgressRule>(&serde_json::to_string(&rule).unwrap()).unwrap(),
                rule
            );
        }
    }

    #[test]
    fn refuses_the_rest_with_a_reason() {
        for (text, reason) in [
            ("", "no IP address"),
            ("host", "port is missing"),
            ("host:0", "not in 1..=65535"),
            ("host:70000", "not in 1..=65535"),
            ("example.com:80", "no IP address"),
            ("10.0.0.0/33", "not in 0..=32"),
            ("10.0.0.1/8", "10.0.0.0/8 is the network"),
            ("fd00::/129", "not in 0..=128"),
            ("[fd00::1", "closing bracket"),
            ("[fd00::1]443", "follows the bracket"),
        ] {
            let error = text.parse::<EgressRule>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
