use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    // An EDNS record, as every stub resolver sends.
    bytes.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn resolver(port: u16, nameservers: &str) -> (Resolver, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), nameservers).unwrap();
    let zone = Arc::new(ServerZone::new("localhost", false));
    (
        Resolver::with_configuration(zone, file.path().to_owned(), port),
        file,
    )
}

#[test]
fn own_names_lead_to_own_addresses() {
    let zone = ServerZone::new("run.example.com.", true);
    let internal = Answer::Local(vec![INTERNAL_ADDRESS.into()]);
    for name in [
        "hello.run.example.com",
        "tag---hello.run.example.com",
        "run.example.com",
        "metadata.google.internal",
    ] {
        assert_eq!(zone.lookup(name), internal, "{name}");
    }
    assert_eq!(
        zone.lookup("host.utsuwa.internal"),
        Answer::Local(vec![HOST_ADDRESS.into()])
    );
    assert_eq!(
        ServerZone::new("localhost", false).lookup("host.utsuwa.internal"),
        Answer::NotFound
    );
    assert_eq!(
        ServerZone::new("localhost", false).lookup("hello.localhost"),
        internal
    );
    assert_ne!(
        ServerZone::new("localhost", false).lookup("localhost"),
        internal
    );
    assert_ne!(zone.lookup("hello.localhost"), internal);
    assert_eq!(zone.lookup("notrun.example.com"), Answer::Forward);
    assert_eq!(zone.lookup("example.com"), Answer::Forward);
    assert_eq!(
        zone.lookup("254.169.254.169.in-addr.arpa"),
        Answer::NotFound
    );
}

#[tokio::test]
async fn local_answers_are_well_formed() {
    let (resolver, _file) = resolver(1, "nameserver 127.0.0.1");
    let asked = query("Hello.LOCALHOST", 1);
    let answer = resolver.answer(&asked, Transport::Udp).await.unwrap();
    assert_eq!(answer[..2], asked[..2], "id");
    assert_eq!(
        (answer[2] & 0x80, answer[3] & 15),
        (0x80, 0),
        "a response without error"
    );
    assert_eq!(
        answer[4..12],
        [0, 1, 0, 1, 0, 0, 0, 0],
        "one question, one answer"
    );
    assert_eq!(answer[answer.len() - 4..], INTERNAL_ADDRESS.octets());
    // No IPv6 address: an empty answer, not "no such name", else resolvers give up on the IPv4 address too.
    let answer = resolver
        .answer(&query("hello.localhost", 28), Transport::Udp)
        .await
        .unwrap();
    assert_eq!((answer[3] & 15, &answer[6..8]), (0, &[0, 0][..]));
    let answer = resolver
        .answer(&query("host.utsuwa.internal", 1), Transport::Udp)
        .await
        .unwrap();
    assert_eq!(answer[3] & 15, 3, "NXDOMAIN");
}

#[tokio::test]
async fn malformed_messages_get_no_answer() {
    let (resolver, _file) = resolver(1, "nameserver 127.0.0.1");
    let good = query("hello.localhost", 1);
    for length in 0..good.len() - 11 {
        assert_eq!(
            resolver.answer(&good[..length], Transport::Udp).await,
            None,
            "cut at {length}"
        );
    }
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(
        resolver.answer(&response, Transport::Udp).await,
        None,
        "answers are no queries"
    );
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(
        resolver.answer(&two, Transport::Udp).await,
        None,
        "two questions"
    );
    let mut pointer = good;
    pointer[12] = 0xc0;
    assert_eq!(
        resolver.answer(&pointer, Transport::Udp).await,
        None,
        "a pointer in the question"
    );
}

/// A resolver that first sends forged answers, then the right one with a private address and its own flags.
#[tokio::test]
async fn forwards_by_udp_and_takes_only_its_own_answer() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = server.local_addr().unwrap() else {
        panic!("IPv4")
    };
    let (resolver, _file) = resolver(
        address.port(),
        "# comment\nnameserver 169.254.169.254\nnameserver 127.0.0.1\n",
    );
    let asked = query("example.com", 1);
    let serve = async {
        let mut buffer = [0; 512];
        let (length, client) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[2..length], asked[2..], "passed on byte for byte");
        let mut answer = buffer[..length].to_vec();
        answer[2] |= 0x80;
        let mut forged = answer.clone();
        forged[0] ^= 1;
        server.send_to(&forged, client).await.unwrap();
        let mut other = answer.clone();
        other[13] = b'f';
        server.send_to(&other, client).await.unwrap();
        answer.extend_from_slice(b"rest");
        server.send_to(&answer, client).await.unwrap();
    };
    let (answer, ()) = tokio::join!(resolver.answer(&asked, Transport::Udp), serve);
    let answer = answer.unwrap();
    assert_eq!(answer[..2], asked[..2], "the client's id");
    assert!(answer.ends_with(b"rest"));
}

#[tokio::test]
async fn forwards_tcp_by_tcp() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (resolver, _file) = resolver(server.local_addr().unwrap().port(), "nameserver 127.0.0.1");
    let asked = query("example.com", 16);
    let serve = async {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut buffer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut buffer).await.unwrap();
        buffer[2] |= 0x80;
        buffer.resize(40_000, 7);
        stream.write_u16(40_000).await.unwrap();
        stream.write_all(&buffer).await.unwrap();
    };
    let (answer, ()) = tokio::join!(resolver.answer(&asked, Transport::Tcp), serve);
    assert_eq!(answer.unwrap().len(), 40_000);
}

#[tokio::test]
async fn no_resolver_means_servfail() {
    // A port on which nobody listens: connection refused, at once.
    let closed = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (resolver, _file) = resolver(closed, "nameserver 127.0.0.1");
    let answer = resolver
        .answer(&query("example.com", 1), Transport::Udp)
        .await
        .unwrap();
    assert_eq!(answer[3] & 15, 2);
}

#[test]
fn reads_resolv_conf() {
    let parse = |text: &str| upstream::parse(text, 53);
    assert_eq!(
        parse("nameserver 127.0.0.53\noptions edns0\n"),
        ["127.0.0.53:53".parse().unwrap()]
    );
    assert_eq!(
        parse("search a b\nnameserver\t::1 # x\n"),
        ["[::1]:53".parse().unwrap()]
    );
    assert_eq!(
        parse("nameserver fe80::1%7\n"),
        [SocketAddr::V6(std::net::SocketAddrV6::new(
            "fe80::1".parse().unwrap(),
            53,
            0,
            7
        ))]
    );
    assert_eq!(
        parse("nameserver nonsense\n"),
        [SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]
    );
    assert_eq!(parse(&"nameserver 9.9.9.9\n".repeat(9)).len(), 3);
}

proptest::proptest! {
    /// Whatever arrives: no panic, and an answer of our own repeats id and question.
    #[test]
    fn any_bytes_are_survived(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..80), cut in 0_usize..60) {
        let mut head = query("hello.localhost", 1);
        head.truncate(cut);
        head.extend_from_slice(&tail);
        for bytes in [&tail, &head] {
            if let Some(parsed) = Query::parse(bytes) {
                let reply = parsed.reply(bytes, ResponseCode::NoError, &[INTERNAL_ADDRESS.into()]);
                proptest::prop_assert_eq!(&reply[..2], &bytes[..2]);
                let id = u16::from_be_bytes([bytes[0], bytes[1]]);
                proptest::prop_assert!(parsed.is_answered_by(bytes, id, &reply));
                proptest::prop_assert!(!parsed.is_answered_by(bytes, id ^ 1, &reply));
            }
        }
    }
}
