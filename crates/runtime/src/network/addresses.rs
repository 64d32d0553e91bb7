//! Names and numbers of one server's network, made from its id.
//!
//! Owns: the tag that all kernel objects carry, the choice of the address range, hardware addresses. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::NetError;
use super::netlink::Route;

pub(super) const RANGE_PREFIX: u8 = 16;
pub(super) const RANGE6_PREFIX: u8 = 64;

/// The name of the uplink, the tables and the tag of rules: at most 15 characters.
pub(super) fn tag(id: &str) -> Result<String, NetError> {
    let fits = (1..=8).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if fits {
        Ok(format!("utsuwa-{id}"))
    } else {
        Err(NetError::BadId(id.to_owned()))
    }
}

/// A locally administered unicast hardware address.
pub(super) fn hardware(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [0x02, 0x75, a, b, c, d]
}

/// FNV-1a: spreads ids over ranges, nothing more.
fn spread(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

pub(super) fn range6(id: &str) -> Ipv6Addr {
    let [.., a, b, c, d, e] = spread(id).to_be_bytes();
    Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// The range of an earlier run, or else the first free one, starting at a place that differs by id.
pub(super) fn choose_range(
    id: &str,
    earlier: Option<Ipv4Addr>,
    routes: &[Route],
) -> Result<Ipv4Addr, NetError> {
    let candidates: Vec<Ipv4Addr> = [198_u8, 198]
        .iter()
        .zip([18_u8, 19])
        .map(|(a, b)| (*a, b))
        .chain((64..128).map(|b| (100, b)))
        .map(|(a, b)| Ipv4Addr::new(a, b, 0, 0))
        .collect();
    let overlaps = |range: Ipv4Addr| {
        routes.iter().any(|route| {
            let IpAddr::V4(destination) = route.destination else {
                return false;
            };
            // Wider than /8 is a default route in disguise (a VPN's 0.0.0.0/1).
            let common = u32::from(route.prefix.min(RANGE_PREFIX));
            route.prefix >= 8 && (u32::from(destination) ^ u32::from(range)) >> (32 - common) == 0
        })
    };
    let start = usize::try_from(spread(id) % candidates.len() as u64).unwrap_or(0);
    earlier
        .into_iter()
        .chain(
            candidates[start..]
                .iter()
                .chain(&candidates[..start])
                .copied(),
        )
        .find(|range| !overlaps(*range))
        .ok_or_else(|| NetError::NoFreeRange {
            tried: "198.18.0.0/15 and 100.64.0.0/10 (in steps of /16)".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, prefix: u8) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            prefix,
            unicast: true,
            link: None,
            mtu: None,
        }
    }

    #[test]
    fn the_range_avoids_routes_of_the_host() {
        let free = choose_range("abc", None, &[]).unwrap();
        assert_eq!(
            choose_range("abc", None, &[route("0.0.0.0", 0), route("0.0.0.0", 1)]).unwrap(),
            free
        );
        let taken = route(&free.to_string(), 24);
        let other = choose_range("abc", None, std::slice::from_ref(&taken)).unwrap();
        assert_ne!(other, free);
        assert_eq!(
            choose_range("abc", Some(other), &[]).unwrap(),
            other,
            "an earlier choice stays"
        );
        assert_eq!(
            choose_range("abc", Some(free), &[taken]).unwrap(),
            other,
            "unless it collides now"
        );
        let inside = choose_range("abc", None, &[route("100.64.0.0", 10)]).unwrap();
        assert_eq!(inside.octets()[0], 198);
        let error = choose_range(
            "abc",
            None,
            &[route("100.64.0.0", 10), route("198.18.0.0", 15)],
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("no free address range"),
            "{error}"
        );
    }

    #[test]
    fn names_fit_into_a_device() {
        assert_eq!(tag("0123abcd").unwrap().len(), 15);
        for bad in ["", "123456789", "A", "a-b", "a\"b"] {
            assert!(tag(bad).is_err(), "{bad}");
        }
    }
}
