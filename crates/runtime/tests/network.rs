//! The network against the real kernel: hosts, an internet and sandboxes are network namespaces made here and removed after.
//!
//! Needs root; without it every test says so and passes. No packet leaves the machine.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests: threads and tasks end with them"
)]

mod network_host;
mod network_sockets;
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
