//! The data path alone, in front of one fixed address: for measuring it beside other proxies with any load generator.
//!
//! `cargo run --release -p utsuwa-ingress --example proxy -- 127.0.0.1:8080 127.0.0.1:9000 [HOST] [CONCURRENCY]`
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use utsuwa_ingress::seam::{
    Clock, Connect, Connecting, InstanceNote, RequestLog, RequestRecord, Wake,
};
use utsuwa_ingress::{Ingress, IngressSettings, Scheme};
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{
    Access, HostRoute, InstanceRoute, Protocol, RevisionRoute, RouteChange, RouteTable,
    StartupProbe, Target,
};
use utsuwa_model::scaling::Ceiling;
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};

#[derive(Debug)]
struct Fixed(SocketAddr);

impl Connect for Fixed {
    fn socket(&self, _: &InstanceId, _: u16) -> BoxFuture<'static, io::Result<Connecting>> {
        let connecting = TcpStream::connect(self.0).boxed();
        std::future::ready(Ok(connecting)).boxed()
    }
}

#[derive(Debug)]
struct Nobody;

impl Wake for Nobody {
    fn wake(&self, _: &RevisionKey) {}
    fn thaw(&self, _: &RevisionKey, _: &InstanceId) {}
    fn changed(&self, _: &RevisionKey) {}
}

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl RequestLog for Count {
    fn record(&self, _: Box<RequestRecord>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn noticed(&self, _: InstanceNote) {}
}

#[derive(Debug)]
struct Wall;

impl Clock for Wall {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(0).plus(since)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let listen: SocketAddr = next("127.0.0.1:8080").parse()?;
    let target: SocketAddr = next("127.0.0.1:9000").parse()?;
    let host = next("127.0.0.1");
    let concurrency: u32 = next("0").parse()?;

    let key: RevisionKey = "demo/here/app/app-00001-aaa".parse()?;
    let mut table = RouteTable::default();
    let route = HostRoute {
        service: key.service.clone(),
        tag: None,
        access: Access::Public,
        inside_only: false,
        target: Target::Split(vec![(key.clone(), 100)]),
    };
    table.hosts.insert(host.clone(), Arc::new(route));
    let revision = RevisionRoute {
        key: key.clone(),
        concurrency,
        max_instances: Ceiling::Unlimited,
        timeout: Duration::from_secs(300),
        port: target.port(),
        protocol: Protocol::Http1,
        session_affinity: false,
        refuse_scanners: false,
        waiting_page: false,
        usual_start: None,
        startup: StartupProbe::tcp(target.port()),
        liveness: None,
        readiness: None,
    };
    table.revisions.insert(key.clone(), Arc::new(revision));

    let log = Arc::new(Count::default());
    let records = Arc::clone(&log) as Arc<dyn RequestLog>;
    let settings = IngressSettings::default();
    let ingress = Ingress::new(
        Arc::new(Fixed(target)),
        Arc::new(Nobody),
        records,
        Arc::new(Wall),
        settings,
    );
    ingress.publish(vec![RouteChange {
        service: key.service.clone(),
        routes: Arc::new(table),
    }]);
    let id: InstanceId = "00000000000000000000000000000001".parse()?;
    ingress.admit(
        InstanceRoute {
            id,
            revision: key,
            port: target.port(),
            age: Duration::ZERO,
        },
        StartPhases::default(),
    );

    let socket = if listen.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    let listener = socket.listen(4096)?;
    let shutdown = CancellationToken::new();
    println!("{host} at {listen} is forwarded to {target}; Ctrl-C ends it");
    let serving = ingress.serve(listener, Scheme::Http, shutdown.clone());
    let stop = async {
        let heard = tokio::signal::ctrl_c().await;
        shutdown.cancel();
        heard
    };
    let ((), heard) = tokio::join!(serving, stop);
    heard?;
    println!("{} requests", log.0.load(Ordering::Relaxed));
    Ok(())
}
