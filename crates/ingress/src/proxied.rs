//! The PROXY protocol, versions 1 and 2: a proxy before us says in front of each connection whose it is.
//!
//! Anybody could say so. Only connections from addresses that the operator names are believed, and those must say it: one
//! that doesn't is closed. Of all others the bytes are what they seem, a malformed request.
//!
//! Fails with what is wrong with the header, for the log.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const LINE: usize = 107;
/// Addresses of version 2 and what may follow them; proxies send some hundred bytes.
const MOST: usize = 2048;

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// No network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address or CIDR range, as 10.0.0.2, 10.0.0.0/8 or fd00::/8")]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        if bits > most {
            return Err(wrong());
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Network {
    fn has(&self, other: IpAddr) -> bool {
        let same = |own: u128, other: u128, width: u32| {
            let rest = width - u32::from(self.bits);
            own.checked_shr(rest) == other.checked_shr(rest)
        };
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same(u32::from(own).into(), u32::from(other).into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.into(), other.into(), 128),
            _ => false,
        }
    }
}

/// Whether `peer` is one of these proxies.
pub(crate) fn is_one(proxies: &[Network], peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    proxies.iter().any(|network| network.has(peer))
}

/// Reads the header, and not a byte more. `None`: the proxy speaks for itself, or of no address.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    match stream.read_u8().await? {
        b'P' => line(stream).await,
        b'\r' => binary(stream).await,
        _ => Err(wrong("the connection does not begin with one")),
    }
}

fn wrong(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

async fn line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut line = vec![b'P'];
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE {
            return Err(wrong("its line has no end"));
        }
        line.push(stream.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    let line = String::from_utf8(line).map_err(|_| wrong("its line is not text"))?;
    let words: Vec<&str> = line.split(' ').collect();
    let client: IpAddr = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        [
            "PROXY",
            family @ ("TCP4" | "TCP6"),
            from,
            to,
            from_port,
            to_port,
        ] => {
            let address = |text: &str| {
                let address: IpAddr = text.parse().ok()?;
                (address.is_ipv4() == (family == "TCP4")).then_some(address)
            };
            let ports = from_port.parse::<u16>().is_ok() && to_port.parse::<u16>().is_ok();
            match (address(from), address(to)) {
                (Some(from), Some(_)) if ports => from,
                _ => return Err(wrong("its addresses can't be read")),
            }
        }
        _ => return Err(wrong("its line is no PROXY line")),
    };
    Ok(Some(client.to_canonical()))
}

async fn binary(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut head = [0; 16];
    head[0] = b'\r';
    stream.read_exact(&mut head[1..]).await?;
    if head[..12] != SIGNATURE {
        return Err(wrong("its signature is another"));
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > MOST {
        return Err(wrong("it is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let client: IpAddr = match (head[12], head[13], &body[..]) {
        // LOCAL: the proxy asks for itself, to see whether we live.
        (0x20, _, _) => return Ok(None),
        (0x21, 0x11, [a, b, c, d, rest @ ..]) if rest.len() >= 8 => {
            Ipv4Addr::new(*a, *b, *c, *d).into()
        }
        (0x21, 0x21, from) if from.len() >= 36 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&from[..16]);
            Ipv6Addr::from(octets).into()
        }
        // Of no family, or of one without addresses of the internet.
        (0x21, 0x00 | 0x31 | 0x32, _) => return Ok(None),
        (0x21, ..) => return Err(wrong("its addresses can't be read")),
        _ => return Err(wrong("its version or command is unknown")),
    };
    Ok(Some(client.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(bytes: &[u8]) -> Result<(Option<String>, usize), String> {
        let mut left = bytes;
        let read = read(&mut left).await.map_err(|error| error.to_string())?;
        Ok((read.map(|address| address.to_string()), left.len()))
    }

    fn second(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    #[tokio::test]
    async fn both_versions_are_read_and_not_a_byte_more() {
        let v4 = [1, 2, 3, 4, 5, 6, 7, 8, 0, 80, 0, 81];
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
        let mapped = "PROXY TCP6 ::ffff:1.2.3.4 ::1 1 2\r\nGET";
        for (bytes, want) in [
            (
                b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET".to_vec(),
                Some("1.2.3.4"),
            ),
            (
                b"PROXY TCP6 fd00::1 ::1 65535 2\r\nGET".to_vec(),
                Some("fd00::1"),
            ),
            (mapped.as_bytes().to_vec(), Some("1.2.3.4")),
            (b"PROXY UNKNOWN\r\nGET".to_vec(), None),
            (b"PROXY UNKNOWN whatever it says\r\nGET".to_vec(), None),
            (
                [second(0x21, 0x11, &v4), b"GET".to_vec()].concat(),
                Some("1.2.3.4"),
            ),
            (
                [
                    second(0x21, 0x11, &[&v4[..], &[4, 0, 1, 0]].concat()),
                    b"GET".to_vec(),
                ]
                .concat(),
                Some("1.2.3.4"),
            ),
            (
                [second(0x21, 0x21, &v6), b"GET".to_vec()].concat(),
                Some("::1"),
            ),
            ([second(0x20, 0, &[]), b"GET".to_vec()].concat(), None),
            ([second(0x21, 0, &[1, 2]), b"GET".to_vec()].concat(), None),
        ] {
            let want = (want.map(str::to_owned), 3);
            assert_eq!(said(&bytes).await, Ok(want), "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn what_is_none_is_refused() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"POST / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
            b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n".to_vec(),
            b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
            long,
            b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\0".to_vec(),
            second(0x21, 0x11, &[1, 2, 3]),
            second(0x21, 0x21, &[0; 35]),
            second(0x11, 0x11, &[0; 12]),
            second(0x22, 0x11, &[0; 12]),
            second(0x21, 0x11, &[0; 3000]),
            second(0x21, 0x11, &[0; 12])[..20].to_vec(),
            Vec::new(),
        ] {
            assert!(said(&bytes).await.is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn networks() {
        let has = |network: &str, address: &str| {
            is_one(&[network.parse().unwrap()], address.parse().unwrap())
        };
        assert!(has("10.0.0.0/8", "10.255.1.1") && !has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("10.0.0.2", "10.0.0.2") && !has("10.0.0.2", "10.0.0.3"));
        assert!(
            has("10.0.0.2", "::ffff:10.0.0.2")
                && has("0.0.0.0/0", "1.2.3.4")
                && !has("0.0.0.0/0", "::1")
        );
        assert!(has("fd00::/8", "fdff::1") && !has("fd00::/8", "fe00::1") && has("::/0", "::1"));
        for wrong in [
            "",
            "10.0.0.0/33",
            "fd00::/129",
            "localhost",
            "10.0.0.0/",
            "10.0.0/8",
            "10.0.0.0/-1",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
