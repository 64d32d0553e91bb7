//! The network against the real kernel: hosts, an internet and sandboxes are network namespaces made here and removed after.
//!
//! Needs root; without it every test says so and passes. No packet leaves the machine.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests: threads and tasks end with them"
)]

mod network_world;
#[path = "../../../tests/skip.rs"]
mod skip;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use network_world::{INTERNET, INTERNET6, PRIVATE, PRIVATE6, Sandbox, World};
use utsuwa_runtime::network::dns::{Resolver, ServerZone};
use utsuwa_runtime::network::refusal::{RefusalReader, RefusedAs};
use utsuwa_runtime::network::{
    EgressRule, Gateway, HOST_ADDRESS, INTERNAL_ADDRESS, SocketRole, serve_internal,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// A one-shot exchange: what the other side says after we said "hello".
fn dial(address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Hears the caller out, else closing would reset the connection.
fn answer_once(service: &TcpListener) {
    let (mut stream, _) = service.accept().unwrap();
    stream.read_to_string(&mut String::new()).unwrap();
    stream.write_all(b"the host").unwrap();
}

/// Sends an echo request as programs without rights do, and returns who answered.
fn ping(address: std::net::Ipv4Addr) -> IpAddr {
    let (domain, kind) = (socket2::Domain::IPV4, socket2::Type::DGRAM);
    let socket = socket2::Socket::new(domain, kind, Some(socket2::Protocol::ICMPV4)).unwrap();
    let socket = UdpSocket::from(std::os::fd::OwnedFd::from(socket));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
        .send_to(&[8, 0, 0, 0, 0, 0, 0, 1], (address, 0))
        .unwrap();
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((length, buffer[0]), (8, 0), "an echo reply");
    from.ip()
}

fn refused_fast(address: impl Into<SocketAddr>) {
    let address = address.into();
    let begin = Instant::now();
    let error = dial(address).unwrap_err();
    assert_eq!(
        error.kind(),
        std::io::ErrorKind::ConnectionRefused,
        "{address}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{address} took {:?}",
        begin.elapsed()
    );
}

#[test]
fn instances_reach_the_internet_and_nothing_else() {
    let Some(world) = World::new(skip::here!(), "a") else {
        return;
    };
    let mut gateway = world.set_up(&[]);
    let (one, two) = (Sandbox::new(), Sandbox::new());
    let (first, _sockets1) = world.on_host(|| gateway.attach(1, one.netns()).unwrap());
    let (second, _sockets2) = world.on_host(|| gateway.attach(2, two.netns()).unwrap());
    assert_eq!(
        (first.host_veth.as_str(), second.host_veth.as_str()),
        ("sb1", "sb2")
    );
    assert_ne!(first.address, second.address);
    let readers = world.on_host(|| gateway.refusal_sockets().unwrap());

    // The internet sees the host's address.
    assert_eq!(
        one.inside(|| dial((INTERNET, 80))).unwrap(),
        "you are 192.0.2.2"
    );
    assert_eq!(
        one.inside(|| dial((INTERNET6, 80))).unwrap(),
        "you are 2001:db8:1::2"
    );

    one.inside(|| {
        assert_eq!(ping(INTERNET), IpAddr::V4(INTERNET));
        refused_fast((PRIVATE, 80));
        refused_fast((PRIVATE6, 80));
        refused_fast((second.address, 8080));
        refused_fast((second.address6.unwrap(), 8080));
        for host in ["192.0.2.2", "2001:db8:1::2"] {
            refused_fast((host.parse::<IpAddr>().unwrap(), 22));
        }
        refused_fast(("169.254.1.1".parse::<IpAddr>().unwrap(), 80));
        // The second attempt on one target is refused too, but not reported again.
        refused_fast((PRIVATE, 80));
        // A service of its own, below 1024, on both loopbacks.
        for address in ["127.0.0.1:81", "[::1]:81"] {
            let own = TcpListener::bind(address).unwrap();
            TcpStream::connect(own.local_addr().unwrap()).unwrap();
        }
    });

    let seen = network_world::block_on(async {
        let mut seen = Vec::new();
        let mut readers: Vec<_> = readers
            .into_iter()
            .map(|socket| RefusalReader::new(socket).unwrap())
            .collect();
        let (mut inner, mut outer) = (readers.remove(0), readers.remove(0));
        while seen.len() < 7 {
            let refusal = tokio::time::timeout(PATIENCE, async {
                tokio::select! { refusal = inner.next() => refusal, refusal = outer.next() => refusal }
            });
            seen.push(
                refusal
                    .await
                    .unwrap_or_else(|_| panic!("only {seen:?}"))
                    .unwrap(),
            );
        }
        let more = tokio::time::timeout(Duration::from_millis(200), async {
            tokio::select! { refusal = inner.next() => refusal, refusal = outer.next() => refusal }
        });
        assert!(more.await.is_err(), "one report per target");
        seen
    });
    let of = |destination: IpAddr| {
        seen.iter()
            .find(|refusal| refusal.destination == destination)
            .unwrap()
    };
    assert_eq!(of(PRIVATE.into()).refused_as, RefusedAs::Private);
    assert_eq!(of(PRIVATE.into()).source, IpAddr::V4(first.address));
    assert_eq!(
        of(PRIVATE6.into()).source,
        IpAddr::V6(first.address6.unwrap())
    );
    assert!(
        of(PRIVATE.into())
            .to_string()
            .ends_with("--allow-egress 10.9.9.9/32:80"),
        "{}",
        of(PRIVATE.into())
    );
    assert_eq!(of(second.address.into()).refused_as, RefusedAs::Peer);
    assert_eq!(of("192.0.2.2".parse().unwrap()).refused_as, RefusedAs::Host);
    assert_eq!(of("2001:db8:1::2".parse().unwrap()).port, 22);
}

#[test]
fn rules_open_what_they_name_and_no_more() {
    let Some(world) = World::new(skip::here!(), "b") else {
        return;
    };
    let allow: Vec<EgressRule> = ["10.9.9.9/32:80", "fd99::/16", "192.0.2.2:7000"]
        .iter()
        .map(|rule| rule.parse().unwrap())
        .collect();
    let mut gateway = world.set_up(&allow);
    let one = Sandbox::new();
    world.on_host(|| gateway.attach(1, one.netns()).unwrap());
    let service = world.on_host(|| TcpListener::bind("192.0.2.2:7000").unwrap());
    let answering = std::thread::spawn(move || answer_once(&service));
    one.inside(|| {
        assert_eq!(dial((PRIVATE, 80)).unwrap(), "you are 192.0.2.2");
        assert_eq!(dial((PRIVATE6, 80)).unwrap(), "you are 2001:db8:1::2");
        refused_fast((PRIVATE, 81));
        assert_eq!(
            dial("192.0.2.2:7000".parse::<SocketAddr>().unwrap()).unwrap(),
            "the host"
        );
        refused_fast("192.0.2.2:7001".parse::<SocketAddr>().unwrap());
    });
    answering.join().unwrap();

    // A new set-up over the old one takes effect for what is attached already. It finds the gateway from any mount
    // namespace, although the first housekeeper's is gone.
    drop(gateway);
    let mut gateway = world.on_host(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        world.set_up(&[])
    });
    one.inside(|| {
        refused_fast((PRIVATE, 80));
        assert_eq!(dial((INTERNET, 80)).unwrap(), "you are 192.0.2.2");
    });
    // It knows the sandboxes of the earlier one, so it doesn't give their addresses away.
    let (info, _sockets) = world.on_host(|| {
        gateway
            .attach(2 + 65_518 - 1, Sandbox::new().netns())
            .unwrap()
    });
    assert_eq!(info.index, 16 + 2, "number 17 is taken");
}

/// A range that the host stands in opens the others in it; the host itself is opened by its own address only.
#[test]
fn a_range_around_the_host_does_not_open_the_host() {
    let Some(world) = World::new(skip::here!(), "j") else {
        return;
    };
    let rules = |texts: &[&str]| -> Vec<EgressRule> {
        texts.iter().map(|rule| rule.parse().unwrap()).collect()
    };
    world.on_internet("ip addr add 192.0.2.9/32 dev lo");
    let host: SocketAddr = "192.0.2.2:7000".parse().unwrap();
    let host6: SocketAddr = "[2001:db8:1::2]:7000".parse().unwrap();
    let neighbour: SocketAddr = "192.0.2.9:80".parse().unwrap();
    world.run_on_host("ip route add 192.0.2.9 via 192.0.2.1");
    let mut gateway = world.set_up(&rules(&["192.0.2.0/24", "2001:db8::/32", "0.0.0.0/0:7000"]));
    let one = Sandbox::new();
    world.on_host(|| gateway.attach(1, one.netns()).unwrap());
    let service = world.on_host(|| TcpListener::bind(host).unwrap());
    let _service6 = world.on_host(|| TcpListener::bind(host6).unwrap());
    one.inside(|| {
        assert_eq!(dial(neighbour).unwrap(), "you are 192.0.2.2");
        refused_fast(host);
        refused_fast(host6);
    });
    drop(gateway);
    let gateway = world.set_up(&rules(&["192.0.2.0/24", "192.0.2.2"]));
    let answering = std::thread::spawn(move || answer_once(&service));
    assert_eq!(one.inside(|| dial(host)).unwrap(), "the host");
    answering.join().unwrap();
    drop(gateway);
}

/// The keeper and its spawners have a mount namespace of their own, and may all be killed.
#[test]
fn the_gateway_outlives_the_mounts_of_its_maker() {
    let Some(world) = World::new(skip::here!(), "i") else {
        return;
    };
    let in_own_mounts = |work: &(dyn Fn() + Sync)| {
        world.on_host(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            nix::mount::mount(None::<&str>, "/", None::<&str>, private(), None::<&str>).unwrap();
            work();
        });
    };
    let one = Sandbox::new();
    let config = world.config("i", &[]);
    in_own_mounts(&|| {
        let mut gateway = Gateway::set_up(&config).unwrap();
        gateway.attach(1, one.netns()).unwrap();
    });
    // That thread's mount namespace is gone.
    assert_eq!(
        one.inside(|| dial((INTERNET, 80))).unwrap(),
        "you are 192.0.2.2"
    );
    in_own_mounts(&|| drop(Gateway::set_up(&config).unwrap()));
    assert_eq!(
        one.inside(|| dial((INTERNET, 80))).unwrap(),
        "you are 192.0.2.2"
    );
    in_own_mounts(&|| Gateway::tear_down(&config.id).unwrap());
    assert!(
        !std::path::Path::new("/run/utsuwa")
            .join(&config.id)
            .exists()
    );
    assert!(!one.run("ip -o link").contains("eth0"));
}

fn private() -> nix::mount::MsFlags {
    nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE
}

#[test]
fn each_sandbox_has_its_own_sockets_at_the_same_addresses() {
    let Some(world) = World::new(skip::here!(), "c") else {
        return;
    };
    // A service on the host's loopback, found by its port.
    let service = world.on_host(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = service.local_addr().unwrap().port();
    let mut gateway = world.set_up(&[EgressRule::Host { port }, EgressRule::Host { port: 9 }]);
    let sandboxes = [Sandbox::new(), Sandbox::new(), Sandbox::new()];
    let mut internals = Vec::new();
    for (number, sandbox) in (10..).zip(&sandboxes) {
        let (info, sockets) = world.on_host(|| gateway.attach(number, sandbox.netns()).unwrap());
        assert_eq!(info.sockets[2], SocketRole::Ingress { port: 8080 });
        assert_eq!((info.sockets.len(), sockets.len()), (5, 5));
        internals.push((
            info.address,
            info.sockets.into_iter().zip(sockets).collect::<Vec<_>>(),
        ));
    }
    std::thread::spawn(move || {
        for stream in service.incoming() {
            let mut stream = stream.unwrap();
            let mut text = String::new();
            // The client's end of sending reaches us before we answer: half-close.
            stream.read_to_string(&mut text).unwrap();
            stream
                .write_all(format!("host heard {text}").as_bytes())
                .unwrap();
        }
    });

    // The server: name answers and forwards for all three; the ingress says who calls.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = world.spawn_on_host(move || {
        network_world::block_on(async move {
            let upstream = tokio::net::UdpSocket::bind("127.0.0.1:53").await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 512];
                loop {
                    let (length, client) = upstream.recv_from(&mut buffer).await.unwrap();
                    buffer[2] |= 0x80;
                    buffer[3] |= 3;
                    upstream.send_to(&buffer[..length], client).await.unwrap();
                }
            });
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), "nameserver 127.0.0.1\n").unwrap();
            let zone = Arc::new(ServerZone::new("localhost", true));
            let resolver = Arc::new(Resolver::with_configuration(
                zone,
                file.path().to_owned(),
                53,
            ));
            let mut running = Vec::new();
            for (address, sockets) in internals {
                let forwards = std::sync::Arc::new(tokio::sync::Semaphore::new(64));
                let mut internal = serve_internal(sockets, &resolver, &forwards).unwrap();
                let (port, ingress) = internal.ingress.remove(0);
                assert_eq!(port, 8080);
                running.push(internal);
                tokio::spawn(async move {
                    while let Ok((mut stream, _)) = ingress.accept().await {
                        use tokio::io::{AsyncReadExt, AsyncWriteExt};
                        let mut said = String::new();
                        stream.read_to_string(&mut said).await.unwrap();
                        stream
                            .write_all(format!("caller {address}").as_bytes())
                            .await
                            .unwrap();
                    }
                });
            }
            let _ = stopped.await;
        });
    });

    for (number, sandbox) in (16 + 10..).zip(&sandboxes) {
        sandbox.inside(|| {
            let caller = dial((INTERNAL_ADDRESS, 8080)).unwrap();
            assert!(
                caller.ends_with(&format!(".{number}")),
                "{caller} by {number}"
            );
            assert_eq!(
                ask("hello.localhost"),
                (0, Some(INTERNAL_ADDRESS.octets().to_vec()))
            );
            assert_eq!(
                ask("host.utsuwa.internal"),
                (0, Some(HOST_ADDRESS.octets().to_vec()))
            );
            assert_eq!(
                ask("metadata.google.internal"),
                (0, Some(INTERNAL_ADDRESS.octets().to_vec()))
            );
            assert_eq!(ask("nothing.example").0, 3, "as the upstream says");
            assert_eq!(
                ask_tcp("tag---hello.localhost"),
                Some(INTERNAL_ADDRESS.octets().to_vec())
            );
            assert_eq!(dial((HOST_ADDRESS, port)).unwrap(), "host heard hello");
            // Nobody listens at port 9 of the host.
            assert_eq!(
                dial((HOST_ADDRESS, 9)).unwrap_err().kind(),
                std::io::ErrorKind::ConnectionReset
            );
            refused_fast((HOST_ADDRESS, 10));
        });
    }
    stop.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn an_address_that_was_not_given_gets_nowhere() {
    let Some(world) = World::new(skip::here!(), "d") else {
        return;
    };
    let mut gateway = world.set_up(&[]);
    let (one, two) = (Sandbox::new(), Sandbox::new());
    world.on_host(|| gateway.attach(1, one.netns()).unwrap());
    let (second, sockets) = world.on_host(|| gateway.attach(2, two.netns()).unwrap());
    let forged = second.address;
    // Sandbox 1 takes sandbox 2's address and asks for a name.
    one.run(&format!("ip addr add {forged}/32 dev eth0"));
    one.inside(|| {
        let socket = UdpSocket::bind((forged, 0)).unwrap();
        socket.send_to(b"forged", (INTERNAL_ADDRESS, 53)).unwrap();
    });
    two.inside(|| {
        let socket = UdpSocket::bind((forged, 0)).unwrap();
        socket.send_to(b"genuine", (INTERNAL_ADDRESS, 53)).unwrap();
    });
    let listener = UdpSocket::from(sockets.into_iter().next().unwrap());
    listener.set_nonblocking(false).unwrap();
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 64];
    let length = listener.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"genuine");
}

#[test]
fn works_beside_a_firewall_that_drops_and_leaves_it_as_it_was() {
    let Some(world) = World::new(skip::here!(), "e") else {
        return;
    };
    world.run_on_host(
        "iptables-nft -P FORWARD DROP && iptables-nft -A FORWARD -i docker0 -j ACCEPT",
    );
    world.run_on_host("ip6tables-nft -P FORWARD DROP && iptables-nft -P INPUT DROP");
    let rules = || {
        world.run_on_host("iptables-nft -S; ip6tables-nft -S; nft list tables; sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv6.conf.h0.accept_ra; ip -o link | cut -d' ' -f2; ip route; ip -6 route; ip -o addr | sed 's/ tentative//'")
    };
    let before = rules();
    let service = world.on_host(|| TcpListener::bind("192.0.2.2:7000").unwrap());
    let answering = std::thread::spawn(move || answer_once(&service));
    let mut gateway = world.set_up(&["192.0.2.2:7000".parse().unwrap()]);
    // Twice: the rules must not pile up.
    let once = rules();
    assert_ne!(once, before);
    drop(gateway);
    gateway = world.set_up(&["192.0.2.2:7000".parse().unwrap()]);
    assert_eq!(rules(), once);
    let one = Sandbox::new();
    let (info, sockets) = world.on_host(|| gateway.attach(1, one.netns()).unwrap());
    one.inside(|| {
        assert_eq!(dial((INTERNET, 80)).unwrap(), "you are 192.0.2.2");
        assert_eq!(dial((INTERNET6, 80)).unwrap(), "you are 2001:db8:1::2");
        assert_eq!(
            dial("192.0.2.2:7000".parse::<SocketAddr>().unwrap()).unwrap(),
            "the host"
        );
    });
    answering.join().unwrap();
    // From outside, nobody gets in: neither from the internet through the host, nor from the host.
    one.inside(|| {
        let listener = TcpListener::bind((info.address, 5000)).unwrap();
        listener.set_nonblocking(true).unwrap();
        world.on_host(|| {
            TcpStream::connect_timeout(&(info.address, 5000).into(), Duration::from_millis(300))
                .unwrap_err()
        });
        world.on_internet(&format!("ip route add {}/32 via 192.0.2.2", info.address));
        let outside = world.at_internet(|| {
            TcpStream::connect_timeout(&(info.address, 5000).into(), Duration::from_millis(300))
        });
        outside.unwrap_err();
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    });
    // Torn down while sockets and the sandbox still live, by a process that knows only the id; twice.
    drop(gateway);
    world.on_host(|| Gateway::tear_down(&world.id).unwrap());
    assert_eq!(rules(), before);
    drop(sockets);
    world.on_host(|| Gateway::tear_down(&world.id).unwrap());
    assert!(!std::path::Path::new("/run/utsuwa").join(&world.id).exists());
    assert!(
        one.run("ip -o link").contains("lo"),
        "the sandbox itself lives on"
    );
    assert!(!one.run("ip -o link").contains("eth0"));
}

#[test]
fn two_servers_share_a_host() {
    let Some(world) = World::new(skip::here!(), "f") else {
        return;
    };
    let mut first = world.set_up(&[]);
    let other = world.config("g", &[]);
    let mut second = world.on_host(|| Gateway::set_up(&other).unwrap());
    let (one, two) = (Sandbox::new(), Sandbox::new());
    let (a, _s) = world.on_host(|| first.attach(1, one.netns()).unwrap());
    let (b, _t) = world.on_host(|| second.attach(1, two.netns()).unwrap());
    assert_ne!(a.address, b.address);
    // One goes; the other's way out stays, although the first had switched forwarding on.
    drop(first);
    world.on_host(|| Gateway::tear_down(&world.id).unwrap());
    assert_eq!(
        two.inside(|| dial((INTERNET, 80))).unwrap(),
        "you are 192.0.2.2"
    );
    drop(second);
    world.on_host(|| Gateway::tear_down(&other.id).unwrap());
    assert_eq!(
        world
            .run_on_host("cat /proc/sys/net/ipv4/ip_forward")
            .trim(),
        "0"
    );
}

#[test]
fn attaching_is_quick_and_detaching_complete() {
    let Some(world) = World::new(skip::here!(), "h") else {
        return;
    };
    let mut gateway = world.set_up(&[]);
    let sandboxes: Vec<Sandbox> = (0..20).map(|_| Sandbox::new()).collect();
    let mut took = Vec::new();
    for (number, sandbox) in (0..).zip(&sandboxes) {
        let begin = Instant::now();
        world.on_host(|| gateway.attach(number, sandbox.netns()).unwrap());
        took.push(begin.elapsed());
    }
    took.sort();
    eprintln!(
        "attach: median {:?}, slowest of {} {:?}",
        took[took.len() / 2],
        took.len(),
        took[took.len() - 1]
    );
    let begin = Instant::now();
    for number in 0..19 {
        world.on_host(|| gateway.detach(number).unwrap());
        gateway.detach(number).unwrap();
    }
    eprintln!("detach: mean {:?}", begin.elapsed() / 19);
    // The same number again: where its old cable is still there, and in another namespace.
    world.on_host(|| gateway.attach(3, sandboxes[3].netns()).unwrap());
    let last = Sandbox::new();
    world.on_host(|| gateway.attach(3, last.netns()).unwrap());
    assert_eq!(
        last.inside(|| dial((INTERNET, 80))).unwrap(),
        "you are 192.0.2.2"
    );
    // The namespaces' ends take the cables along.
    let links = || {
        world.run_on_host(&format!(
            "nsenter --net=/run/utsuwa/{}/gateway.netns ip -o link",
            world.id
        ))
    };
    assert_eq!(links().matches(": sb").count(), 20);
    drop(sandboxes);
    let begin = Instant::now();
    while links().matches(": sb").count() > 1 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{}", links());
        std::thread::yield_now();
    }
    assert_eq!(
        last.inside(|| dial((INTERNET, 80))).unwrap(),
        "you are 192.0.2.2"
    );
    let error = world.on_host(|| Gateway::set_up(&world.config("TOO-LONG-ID", &[])).unwrap_err());
    assert!(error.to_string().contains("1 to 8"), "{error}");
}

fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// Response code and the address at the end of the answer, if there is one.
fn ask(name: &str) -> (u8, Option<Vec<u8>>) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
        .send_to(&question(name), (INTERNAL_ADDRESS, 53))
        .unwrap();
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, SocketAddr::from((INTERNAL_ADDRESS, 53)));
    (
        buffer[3] & 15,
        (buffer[7] == 1).then(|| buffer[length - 4..length].to_vec()),
    )
}

fn ask_tcp(name: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect((INTERNAL_ADDRESS, 53)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = question(name);
    stream
        .write_all(&u16::try_from(asked.len()).unwrap().to_be_bytes())
        .unwrap();
    stream.write_all(&asked).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    (answer[7] == 1).then(|| answer[answer.len() - 4..].to_vec())
}
