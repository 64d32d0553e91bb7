//! An open-loop client: requests come at fixed times whether or not the ones before were answered, each is sent once, and its
//! latency counts from when it was due.
//!
//! A connection that the client's kernel knows to be closed is not used: clients look before they send, as curl does. What was
//! sent is never sent again.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::calls::Calls;

/// Nobody waits longer than this.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two messages of a stream.
pub(super) const BEAT: Duration = Duration::from_millis(300);

/// What one request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Http,
    GrpcUnary,
    /// A call of both directions that lasts some seconds.
    GrpcStream,
    /// Opened, used once, closed.
    Socket,
    /// Open until the end of the test.
    LongSocket,
}

impl Kind {
    pub(super) const fn service(self) -> &'static str {
        match self {
            Self::Http | Self::Socket | Self::LongSocket => "web",
            Self::GrpcUnary | Self::GrpcStream => "grpc",
        }
    }
}

/// By what one request is known on both sides.
#[derive(Debug)]
pub(super) struct Mark {
    /// The trace that the client begins, which the server's log names. Thirty-two hexadecimal digits.
    pub(super) trace: String,
    /// The client's port of the connection that it was sent over; 0: none.
    pub(super) port: AtomicU16,
}

impl Mark {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            trace: format!("c4a05{number:027x}"),
            port: AtomicU16::new(0),
        }
    }

    pub(super) fn over(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    pub(super) fn parent(&self) -> String {
        format!("00-{}-000000000000c4a0-01", self.trace)
    }
}

/// How one request fared.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) kind: Kind,
    pub(super) mark: Mark,
    pub(super) due: Instant,
    pub(super) ended: Instant,
    pub(super) result: Result<(), String>,
}

impl Outcome {
    /// Its connection was.
    pub(super) fn is_refused(&self) -> bool {
        let error = self.result.as_ref().err();
        error.is_some_and(|error| error.contains("ConnectionRefused"))
    }
}

/// A connection of HTTP/1.1 between two requests.
#[derive(Debug)]
struct Kept {
    sender: http1::SendRequest<Empty<Bytes>>,
    port: u16,
    /// The same socket, to look at.
    socket: std::net::TcpStream,
}

impl Kept {
    /// Nothing has come on it, not even its end.
    fn stands(&self) -> bool {
        let seen = self.socket.peek(&mut [0]);
        seen.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// The client and what it has seen.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    pub(super) stop: AtomicBool,
    answered: AtomicUsize,
    seen: Mutex<Vec<Outcome>>,
    idle: Mutex<Vec<Kept>>,
    calls: Calls,
    connections: Mutex<JoinSet<()>>,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            address,
            stop: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            seen: Mutex::default(),
            idle: Mutex::default(),
            calls: Calls::new(address),
            connections: Mutex::default(),
        })
    }

    pub(super) fn take(&self) -> Vec<Outcome> {
        std::mem::take(&mut *self.seen.lock())
    }

    pub(super) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// How often a connection of HTTP/2 was left for a new one because it took no more calls; those were sent over the new one
    /// only.
    pub(super) fn moved(&self) -> usize {
        self.calls.moved()
    }

    /// Sends `per_second` requests of a kind until told to stop, then waits for the last of them.
    pub(super) async fn arrivals(self: Arc<Self>, kind: Kind, per_second: f64) {
        let begun = Instant::now();
        let mut under_way = JoinSet::new();
        for number in 0_u32.. {
            let due = begun + Duration::from_secs_f64(f64::from(number) / per_second);
            tokio::time::sleep_until(due.into()).await;
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let client = Arc::clone(&self);
            under_way.spawn(async move {
                let mark = Mark::new();
                let once = tokio::time::timeout(PATIENCE, client.once(kind, &mark));
                let result = once
                    .await
                    .unwrap_or_else(|_| Err("no answer in time".into()));
                client.note(kind, mark, due, result);
            });
            while under_way.try_join_next().is_some() {}
        }
        while under_way.join_next().await.is_some() {}
    }

    /// One WebSocket that is opened again only when it broke.
    pub(super) async fn stay(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            let (due, mark) = (Instant::now(), Mark::new());
            let result = self.long_socket(&mark).await;
            self.note(Kind::LongSocket, mark, due, result);
        }
    }

    fn note(&self, kind: Kind, mark: Mark, due: Instant, result: Result<(), String>) {
        let ended = Instant::now();
        if result.is_ok() {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        self.seen.lock().push(Outcome {
            kind,
            mark,
            due,
            ended,
            result,
        });
    }

    async fn once(&self, kind: Kind, mark: &Mark) -> Result<(), String> {
        match kind {
            Kind::Http => self.http(mark).await,
            Kind::GrpcUnary => self.calls.unary(mark).await,
            Kind::GrpcStream => self.calls.both_ways(mark).await,
            Kind::Socket => {
                let mut socket = self.socket(mark).await?;
                echo(&mut socket, "once").await?;
                socket.close(None).await.map_err(told("close"))
            }
            Kind::LongSocket => self.long_socket(mark).await,
        }
    }

    fn drive<E>(&self, connection: impl Future<Output = Result<(), E>> + Send + 'static) {
        let mut connections = self.connections.lock();
        while connections.try_join_next().is_some() {}
        // Its failures are told by its requests.
        connections.spawn(async move { drop(connection.await) });
    }

    async fn http(&self, mark: &Mark) -> Result<(), String> {
        let mut request = Request::get("/")
            .header("host", "web.localhost")
            .header("traceparent", mark.parent())
            .body(Empty::new())
            .map_err(told("request"))?;
        loop {
            // What fails before it is sent was on no connection: nobody's death excuses it.
            mark.over(0);
            let mut kept = self.connection().await?;
            mark.over(kept.port);
            let mut failed = match kept.sender.try_send_request(request).await {
                Ok(response) => return self.answer(response, kept).await,
                Err(failed) => failed,
            };
            match failed.take_message() {
                // The connection was closed before a byte of it was written.
                Some(unsent) => request = unsent,
                None => return Err(format!("send: {:?}", failed.into_error())),
            }
        }
    }

    async fn answer(
        &self,
        response: http::Response<hyper::body::Incoming>,
        kept: Kept,
    ) -> Result<(), String> {
        let status = response.status();
        let whole = response.into_body().collect().await;
        let body = whole.map_err(told("read"))?.to_bytes();
        if status != 200 {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
        }
        self.idle.lock().push(kept);
        Ok(())
    }

    /// One that stands: kept, or new.
    async fn connection(&self) -> Result<Kept, String> {
        loop {
            let kept = self.idle.lock().pop();
            let Some(mut kept) = kept else {
                let (stream, port) = connect(self.address).await?;
                let socket = stream.as_fd().try_clone_to_owned().map_err(told("copy"))?;
                let shaken = http1::handshake(TokioIo::new(stream)).await;
                let (sender, connection) = shaken.map_err(told("handshake"))?;
                self.drive(connection);
                return Ok(Kept {
                    sender,
                    port,
                    socket: socket.into(),
                });
            };
            if kept.sender.ready().await.is_ok() && kept.stands() {
                return Ok(kept);
            }
        }
    }

    async fn socket(&self, mark: &Mark) -> Result<WebSocketStream<TcpStream>, String> {
        let (stream, port) = connect(self.address).await?;
        mark.over(port);
        let request = "ws://web.localhost/socket".into_client_request();
        let mut request = request.map_err(told("request"))?;
        let parent = HeaderValue::try_from(mark.parent()).map_err(told("trace"))?;
        request.headers_mut().insert("traceparent", parent);
        let opened = tokio_tungstenite::client_async(request, stream);
        Ok(opened.await.map_err(told("open"))?.0)
    }

    async fn long_socket(&self, mark: &Mark) -> Result<(), String> {
        let opened = tokio::time::timeout(PATIENCE, self.socket(mark));
        let mut socket = opened.await.map_err(told("open"))??;
        while !self.stop.load(Ordering::Relaxed) {
            let echoed = tokio::time::timeout(PATIENCE, echo(&mut socket, "still there"));
            echoed.await.map_err(told("echo"))??;
            tokio::time::sleep(BEAT).await;
        }
        socket.close(None).await.map_err(told("close"))
    }
}

/// A new connection, and the client's port of it.
pub(super) async fn connect(address: SocketAddr) -> Result<(TcpStream, u16), String> {
    let stream = TcpStream::connect(address).await.map_err(told("connect"))?;
    let port = stream.local_addr().map_err(told("address"))?.port();
    Ok((stream, port))
}

async fn echo(socket: &mut WebSocketStream<TcpStream>, text: &str) -> Result<(), String> {
    socket
        .send(Message::text(text))
        .await
        .map_err(told("say"))?;
    match socket.next().await {
        Some(Ok(Message::Text(answer))) if answer.as_str() == text => Ok(()),
        other => Err(format!("instead of an echo: {other:?}")),
    }
}

pub(super) fn told<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}
