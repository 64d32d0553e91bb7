//! Others on the same host: its firewall, another server.

use super::*;

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
