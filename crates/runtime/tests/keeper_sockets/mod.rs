//! Sockets in the networks of instances.

use utsuwa_runtime::Driver;
use utsuwa_runtime::client::InternalEvent;

use super::busybox::possible;
use super::keeper_survives::kill_everything;
use super::keeper_world::{self, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_knows_callers_by_their_sockets() {
    if !possible("a_server_knows_callers_by_their_sockets") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = world.spec("while :; do echo hello | nc -w 1 169.254.169.254 80; sleep 0.05; done");
    server.driver.start(spec.clone()).await.unwrap();
    // The gateway's namespace outlives all of ours only where it can be held in the mount namespace of PID 1.
    let rounds = if std::fs::read_link("/proc/1/ns/mnt").is_ok() {
        4
    } else {
        3
    };
    println!("{rounds} rounds of 4");
    for round in 0..rounds {
        let mut sockets = std::collections::BTreeMap::new();
        let mut assigned = None;
        while assigned.is_none_or(|sandbox| !sockets.contains_key(&sandbox)) {
            match tokio::time::timeout(keeper_world::PATIENCE, server.internal.recv())
                .await
                .unwrap()
                .unwrap()
            {
                InternalEvent::Attached {
                    sandbox,
                    net,
                    sockets: found,
                } => {
                    assert_eq!(net.sockets.len(), found.len());
                    sockets.insert(sandbox, found);
                }
                InternalEvent::Assigned {
                    sandbox, instance, ..
                } => {
                    assert_eq!(instance, spec.id);
                    assigned = Some(sandbox);
                }
                InternalEvent::Gone { .. }
                | InternalEvent::Refusals { .. }
                | InternalEvent::Exited(_) => {}
            }
        }
        let own = sockets.remove(&assigned.unwrap()).unwrap();
        let (_, ingress) = own
            .into_iter()
            .find(|(role, _)| {
                matches!(
                    role,
                    utsuwa_runtime::network::SocketRole::Ingress { port: 80 }
                )
            })
            .expect("an ingress socket");
        let listener = std::net::TcpListener::from(ingress);
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::time::timeout(keeper_world::PATIENCE, listener.accept())
            .await
            .expect("a call in time")
            .unwrap();
        // A new server gets them from the same keeper, from one that took over, and from one that found nobody.
        drop(listener);
        drop(sockets);
        if round + 1 == rounds {
            break;
        }
        let status = server.driver.status().await.unwrap();
        drop(server);
        match round {
            0 => {}
            1 => keeper_world::kill(status.pid),
            _ => {
                kill_everything(&world, &status).await;
                utsuwa_runtime::keeper::ensure_keeper(&world.config).unwrap();
            }
        }
        server = world.server().await;
    }
    drop(server);
    world.down();
}

/// A probe that comes before the program listens costs no other socket.
#[tokio::test]
async fn a_socket_whose_connection_was_refused_serves_again() {
    use std::os::fd::AsFd;
    if !possible("a_socket_whose_connection_was_refused_serves_again") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let spec = world.spec_of(&["httpd", "-f", "-p", "8080", "-h", "/www"]);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    server.get(&id).await;
    let inode = |socket: &std::os::fd::OwnedFd| rustix::fs::fstat(socket.as_fd()).unwrap().st_ino;
    // Sockets that were asked for earlier may arrive in between and lie above it, once.
    let mut again = None;
    for _ in 0..3 {
        let (socket, mut address) = server.driver.socket(&id).await.unwrap();
        let first = inode(&socket);
        let port = address.port();
        address.set_port(9);
        let socket = std::net::TcpStream::from(socket);
        let same = socket.try_clone().unwrap();
        let refused = tokio::net::TcpSocket::from_std_stream(socket)
            .connect(address)
            .await;
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused,
            "nobody listens on port 9"
        );
        server.driver.give_back(&id, same.into());
        let (socket, address) = server.driver.socket(&id).await.unwrap();
        if inode(&socket) == first {
            again = Some((socket, address, port));
            break;
        }
    }
    let (socket, mut address, port) = again.expect("the same one");
    address.set_port(port);
    tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket))
        .connect(address)
        .await
        .expect("it connects like a new one");
    world.down();
}
