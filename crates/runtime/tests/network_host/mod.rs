//! Others on the same host: its firewall, another server.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec};

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

/// Looks as the housekeeper does until something was missing, and answers what.
fn mended(world: &World, gateway: &mut Gateway) -> Vec<String> {
    let begin = Instant::now();
    loop {
        let seconds = i64::try_from(gateway.next_look().as_secs()).unwrap() + 1;
        let patience = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let news = gateway.news();
        let mut polled = [PollFd::from_borrowed_fd(news.as_fd(), PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&patience)).unwrap();
        let missing = world.on_host(|| gateway.look());
        if !missing.is_empty() {
            return missing;
        }
        assert!(begin.elapsed() < 4 * PATIENCE, "nothing is missing");
    }
}

#[test]
fn rules_that_somebody_flushed_stand_again() {
    let Some(world) = World::new(skip::here!(), "k") else {
        return;
    };
    let mut gateway = world.set_up(&[]);
    let one = Sandbox::new();
    let (_info, _sockets) = world.on_host(|| gateway.attach(1, one.netns()).unwrap());
    let host: SocketAddr = "192.0.2.2:7000".parse().unwrap();
    let service = world.on_host(|| TcpListener::bind(host).unwrap());
    let closed_and_out = || {
        one.inside(|| {
            refused_fast(host);
            assert_eq!(dial((INTERNET, 80)).unwrap(), "you are 192.0.2.2");
            assert_eq!(dial((INTERNET6, 80)).unwrap(), "you are 2001:db8:1::2");
        });
    };
    closed_and_out();
    assert!(world.on_host(|| gateway.look()).is_empty());
    // Terse: without the elements that packets leave in sets.
    let rules = || {
        let list = format!("nft -s -t list table inet utsuwa-{} || true", world.id);
        world.run_on_host(&list)
    };
    let before = rules();

    world.run_on_host("nft flush ruleset");
    // Nobody has looked yet.
    let mut stream = one.inside(|| TcpStream::connect_timeout(&host, PATIENCE).unwrap());
    let (_held, _) = service.accept().unwrap();
    let missing = mended(&world, &mut gateway);
    assert!(
        missing.len() == 1 && missing[0].contains(&format!("table utsuwa-{}", world.id)),
        "{missing:?}"
    );
    closed_and_out();
    // What was begun meanwhile doesn't outlast it.
    stream.write_all(b"hello").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let table = format!("inet utsuwa-{}", world.id);
    for damage in [
        format!("flush chain {table} host"),
        format!("insert rule {table} host accept"),
        format!("chain {table} through {{ policy drop; }}"),
        format!("table {table} {{ flags dormant; }}"),
        format!("delete table {table}; add table {table}"),
    ] {
        world.run_on_host(&format!("nft '{damage}'"));
        assert_eq!(mended(&world, &mut gateway).len(), 1, "{damage}");
        assert_eq!(rules(), before, "{damage}");
    }
    closed_and_out();
    // What is others' is theirs.
    world.run_on_host("nft 'add table inet other; add chain inet other own'");
    assert!(world.on_host(|| gateway.look()).is_empty());
    // A server that was torn down has nothing to set again.
    world.on_host(|| Gateway::tear_down(&world.id).unwrap());
    assert!(world.on_host(|| gateway.look()).is_empty());
    assert_eq!(rules(), "");
}

#[test]
fn a_firewall_that_begins_to_drop_later_is_opened() {
    let Some(world) = World::new(skip::here!(), "l") else {
        return;
    };
    let host: SocketAddr = "192.0.2.2:7000".parse().unwrap();
    let mut gateway = world.set_up(&["192.0.2.2:7000".parse().unwrap()]);
    let one = Sandbox::new();
    let (_info, _sockets) = world.on_host(|| gateway.attach(1, one.netns()).unwrap());
    let service = world.on_host(|| TcpListener::bind(host).unwrap());
    let answering = std::thread::spawn(move || answer_once(&service));
    assert!(world.on_host(|| gateway.look()).is_empty());
    world.run_on_host("iptables-nft -P FORWARD DROP && iptables-nft -P INPUT DROP");
    world.run_on_host("ip6tables-nft -P FORWARD DROP");
    one.inside(|| {
        TcpStream::connect_timeout(&(INTERNET, 80).into(), Duration::from_millis(300)).unwrap_err()
    });
    let missing = mended(&world, &mut gateway);
    assert_eq!(
        missing,
        ["accept rules for instances in iptables and ip6tables"]
    );
    one.inside(|| {
        assert_eq!(dial((INTERNET, 80)).unwrap(), "you are 192.0.2.2");
        assert_eq!(dial((INTERNET6, 80)).unwrap(), "you are 2001:db8:1::2");
        assert_eq!(dial(host).unwrap(), "the host");
    });
    answering.join().unwrap();
    // Flushed, as a reload does it; and each rule by itself.
    for damage in ["-F", "-F INPUT", "-D FORWARD 1"] {
        world.run_on_host(&format!("iptables-nft {damage}"));
        let missing = mended(&world, &mut gateway);
        assert_eq!(missing, ["accept rules for instances in iptables"]);
    }
    one.inside(|| assert_eq!(dial((INTERNET, 80)).unwrap(), "you are 192.0.2.2"));
    let rules = world.run_on_host("iptables-nft -S");
    assert_eq!(
        rules
            .matches(&format!("--comment utsuwa-{}", world.id))
            .count(),
        3,
        "{rules}"
    );
}

/// Legacy tables send no news.
#[test]
fn a_legacy_firewall_that_begins_to_drop_later_is_opened() {
    let Some(world) = World::new(skip::here!(), "m") else {
        return;
    };
    let drops = "iptables-legacy -P FORWARD DROP";
    if world.run_on_host(&format!("{drops} && echo yes || true")) != "yes\n" {
        skip::skip(skip::here!(), "this kernel has no legacy tables");
        return;
    }
    world.run_on_host("iptables-legacy -P FORWARD ACCEPT");
    let mut gateway = world.set_up(&[]);
    let one = Sandbox::new();
    let (_info, _sockets) = world.on_host(|| gateway.attach(1, one.netns()).unwrap());
    world.run_on_host(&format!("iptables-legacy -F && {drops}"));
    assert_eq!(
        mended(&world, &mut gateway),
        ["accept rules for instances in iptables-legacy"]
    );
    one.inside(|| assert_eq!(dial((INTERNET, 80)).unwrap(), "you are 192.0.2.2"));
}
