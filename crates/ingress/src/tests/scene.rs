//! What every test here needs: an ingress on a loopback port, apps behind it, and eyes on what it tells the outside.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use utsuwa_model::demand::{Reach, RevisionDemand};
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{
    Access, HostRoute, InstanceRoute, Protocol, RevisionRoute, RouteChange, RouteTable,
    StartupProbe, Target,
};
use utsuwa_model::scaling::Ceiling;
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};

use super::app::App;
use crate::seam::{Clock, Connect, Connecting, InstanceNote, RequestLog, RequestRecord, Wake};
use crate::{Ingress, IngressSettings, Scheme};

/// No state in these tests takes longer to come about, however busy the machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Where instances are reached; one that is not in the map refuses.
#[derive(Debug, Default)]
pub(super) struct Addresses(
    Mutex<HashMap<InstanceId, SocketAddr>>,
    Mutex<Sockets>,
    /// Where those listen that refuse; nowhere said: for themselves alone.
    Mutex<Option<Vec<SocketAddr>>>,
);

/// Whether sockets can be had.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Sockets {
    #[default]
    AtOnce,
    After(Duration),
    None,
}

impl Connect for Addresses {
    fn socket(&self, id: &InstanceId, _port: u16) -> BoxFuture<'static, io::Result<Connecting>> {
        let (address, sockets) = (self.0.lock().get(id).copied(), *self.1.lock());
        async move {
            match sockets {
                Sockets::AtOnce => {}
                Sockets::After(time) => tokio::time::sleep(time).await,
                Sockets::None => {
                    return Err(io::Error::from_raw_os_error(
                        rustix::io::Errno::MFILE.raw_os_error(),
                    ));
                }
            }
            let connecting = async move {
                match address {
                    Some(address) => TcpStream::connect(address).await,
                    None => Err(io::ErrorKind::ConnectionRefused.into()),
                }
            };
            Ok(connecting.boxed())
        }
        .boxed()
    }

    fn listens_on(&self, id: &InstanceId) -> Vec<SocketAddr> {
        if let Some(address) = self.0.lock().get(id) {
            return vec![*address];
        }
        let elsewhere = self.2.lock().clone();
        elsewhere.unwrap_or_else(|| vec![SocketAddr::from(([127, 0, 0, 1], 8080))])
    }
}

#[derive(Debug, Default)]
pub(super) struct Loops {
    pub(super) wakes: AtomicU32,
    pub(super) changes: AtomicU32,
    pub(super) thaws: Mutex<Vec<InstanceId>>,
    told: Notify,
}

impl Wake for Loops {
    fn wake(&self, _: &RevisionKey) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.told.notify_waiters();
    }
    fn thaw(&self, _: &RevisionKey, id: &InstanceId) {
        self.thaws.lock().push(id.clone());
        self.told.notify_waiters();
    }
    fn changed(&self, _: &RevisionKey) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.told.notify_waiters();
    }
}

#[derive(Debug, Default)]
pub(super) struct Records(
    Mutex<Vec<RequestRecord>>,
    pub(super) Mutex<Vec<InstanceNote>>,
    /// Whom the loops ask to rest just when the next note is written.
    pub(super) Mutex<Option<(Ingress, InstanceId)>>,
);

impl RequestLog for Records {
    fn record(&self, record: Box<RequestRecord>) {
        self.0.lock().push(*record);
    }
    fn noticed(&self, note: InstanceNote) {
        self.1.lock().push(note);
        if let Some((ingress, id)) = self.2.lock().take() {
            assert!(ingress.rest(&id), "it may rest");
        }
    }
}

#[derive(Debug)]
struct WallClock(tokio::time::Instant);

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000_000).plus(self.0.elapsed())
    }
}

/// An ingress and its surroundings.
pub(super) struct Scene {
    pub(super) ingress: Ingress,
    pub(super) loops: Arc<Loops>,
    pub(super) records: Arc<Records>,
    pub(super) address: SocketAddr,
    pub(super) shutdown: CancellationToken,
    addresses: Arc<Addresses>,
    pub(super) serving: JoinSet<()>,
    next: AtomicUsize,
}

pub(super) const HOST: &str = "hello.localhost";

pub(super) fn key() -> RevisionKey {
    "demo/here/hello/hello-00001-abc".parse().unwrap()
}

pub(super) fn route() -> RevisionRoute {
    RevisionRoute {
        key: key(),
        concurrency: 80,
        max_instances: Ceiling::Unlimited,
        timeout: Duration::from_secs(300),
        port: 8080,
        protocol: Protocol::Http1,
        session_affinity: false,
        refuse_scanners: false,
        waiting_page: false,
        usual_start: None,
        startup: StartupProbe::tcp(8080),
        liveness: None,
        readiness: None,
    }
}

pub(super) fn table(route: RevisionRoute, access: Access) -> Arc<RouteTable> {
    let route = Arc::new(route);
    let host = HostRoute {
        service: route.key.service.clone(),
        tag: None,
        access,
        inside_only: false,
        target: Target::Split(vec![(route.key.clone(), 100)]),
    };
    let mut table = RouteTable::default();
    table.hosts.insert(HOST.to_owned(), Arc::new(host));
    table.revisions.insert(route.key.clone(), route);
    Arc::new(table)
}

fn change(routes: Arc<RouteTable>) -> RouteChange {
    RouteChange {
        service: key().service,
        routes,
    }
}

impl Scene {
    /// The routes of the scene's one service.
    pub(super) fn publish(&self, routes: Arc<RouteTable>) {
        self.ingress.publish(vec![change(routes)]);
    }

    pub(super) async fn new(route: RevisionRoute) -> Self {
        Self::with(route, IngressSettings::default()).await
    }

    pub(super) async fn with(route: RevisionRoute, settings: IngressSettings) -> Self {
        Self::prepared(route, settings, |_| {}).await
    }

    /// The same; `prepare` is told of the ingress before it serves.
    pub(super) async fn prepared(
        route: RevisionRoute,
        settings: IngressSettings,
        prepare: impl FnOnce(&Ingress),
    ) -> Self {
        let loops = Arc::new(Loops::default());
        let records = Arc::new(Records::default());
        let addresses = Arc::new(Addresses::default());
        let ingress = Ingress::new(
            Arc::clone(&addresses) as _,
            Arc::clone(&loops) as _,
            Arc::clone(&records) as _,
            Arc::new(WallClock(tokio::time::Instant::now())),
            settings,
        );
        prepare(&ingress);
        ingress.publish(vec![change(table(route, Access::Public))]);
        // The default backlog of 256 drops packets when hundreds connect at once; each costs its client a second.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(4096).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut serving = JoinSet::new();
        let (served, token) = (ingress.clone(), shutdown.clone());
        serving.spawn(async move { served.serve(listener, Scheme::Http, token).await });
        Self {
            ingress,
            loops,
            records,
            address,
            shutdown,
            addresses,
            serving,
            next: AtomicUsize::new(1),
        }
    }

    /// Another listener, which ends with this scene.
    pub(super) fn serve_also(&mut self, serving: impl Future<Output = ()> + Send + 'static) {
        self.serving.spawn(serving);
    }

    /// An instance that is there but does not listen yet.
    pub(super) fn admit(&self) -> InstanceId {
        self.admit_aged(Duration::ZERO)
    }

    /// The same, found running since `age`.
    pub(super) fn admit_aged(&self, age: Duration) -> InstanceId {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let id: InstanceId = format!("{number:032x}").parse().unwrap();
        let phases = StartPhases {
            sandbox: Duration::from_micros(100),
            rootfs: Duration::from_micros(200),
            exec: Duration::from_micros(300),
        };
        self.ingress.admit(
            InstanceRoute {
                id: id.clone(),
                revision: key(),
                port: 8080,
                age,
            },
            phases,
        );
        id
    }

    /// From now on `id` listens at `address`.
    pub(super) fn listen(&self, id: &InstanceId, address: SocketAddr) {
        self.addresses.0.lock().insert(id.clone(), address);
    }

    /// From now on programs that refuse listen at `places`.
    pub(super) fn listen_elsewhere(&self, places: &[&str]) {
        let places = places.iter().map(|at| at.parse().unwrap()).collect();
        *self.addresses.2.lock() = Some(places);
    }

    /// What becomes of connections that are made from now on.
    pub(super) fn sockets(&self, sockets: Sockets) {
        *self.addresses.1.lock() = sockets;
    }

    /// An instance that is ready.
    pub(super) async fn ready(&self, app: &App) -> InstanceId {
        self.ready_at(app.address).await
    }

    /// The same, of an app that listens at `address`.
    pub(super) async fn ready_at(&self, address: SocketAddr) -> InstanceId {
        let id = self.admit();
        self.listen(&id, address);
        self.until(|demand| {
            demand
                .instances
                .iter()
                .any(|load| load.id == id && load.reach == Reach::Ready)
        })
        .await;
        id
    }

    pub(super) fn demand(&self) -> RevisionDemand {
        self.ingress.demand(&key()).unwrap()
    }

    /// Waits for a state of the demand.
    pub(super) async fn until(&self, state: impl Fn(&RevisionDemand) -> bool) -> RevisionDemand {
        eventually(
            || Some(self.demand()).filter(|demand| state(demand)),
            || format!("{:?}", self.demand()),
        )
        .await
    }

    /// Waits for `count` records and answers all there are.
    pub(super) async fn records(&self, count: usize) -> Vec<RequestRecord> {
        let seen = || self.records.0.lock().clone();
        eventually(
            || Some(seen()).filter(|all| all.len() >= count),
            || format!("{:?}", seen()),
        )
        .await
    }

    pub(super) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path)).await
    }

    pub(super) async fn send(&self, request: http::request::Builder) -> Reply {
        self.send_body(request, Bytes::new()).await
    }

    pub(super) async fn send_body(&self, request: http::request::Builder, body: Bytes) -> Reply {
        let mut request = request.body(Full::new(body)).unwrap();
        request
            .headers_mut()
            .entry("host")
            .or_insert(HOST.parse().unwrap());
        call(self.address, request).await
    }

    /// A raw HTTP/1.1 exchange: what comes back until the connection is closed.
    pub(super) async fn raw(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// Ends serving; the drain is part of it.
    pub(super) async fn close(&mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.serving.join_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// A state that must come about.
pub(super) async fn eventually<T>(
    look: impl Fn() -> Option<T>,
    describe: impl Fn() -> String,
) -> T {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "still {}", describe());
        // A level, looked at again: nothing is timed by this.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

impl Reply {
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
    /// The reason when Utsuwa itself answered.
    pub(super) fn reason(&self) -> &str {
        self.header("x-utsuwa-answered-by")
            .strip_prefix("utsuwa; reason=")
            .unwrap_or("")
    }
    /// What the app saw, as `/headers` tells it.
    pub(super) fn seen(&self, name: &str) -> Option<String> {
        let value: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        value[name].as_str().map(str::to_owned)
    }
}

pub(super) async fn call<B>(address: SocketAddr, request: Request<B>) -> Reply
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    reply(response).await
}

pub(super) async fn reply(response: Response<Incoming>) -> Reply {
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect())
        .await
        .unwrap()
        .unwrap();
    let trailers = body.trailers().cloned();
    Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.to_bytes(),
        trailers,
    }
}
