//! The sockets that each sandbox has of its own, and the names that are asked for on them.

use super::*;

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
                let forwards = utsuwa_runtime::network::Forwards::new(64);
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
