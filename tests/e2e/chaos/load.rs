//! An open-loop client: requests come at fixed times whether or not the ones before were answered, each is sent once, and its
//! latency counts from when it was due.
//!
//! A connection that the client sees closed before it sends is not used: every client does that. What was sent is never sent
//! again.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Nobody waits longer than this.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two messages of a stream.
const BEAT: Duration = Duration::from_millis(300);

/// How the client's own library says that a connection took a call no more.
const NOT_TAKEN: &str = "GoAway(b\"\", NO_ERROR, Remote)";

type Body = BoxBody<Bytes, Infallible>;

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

/// How one request fared.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) kind: Kind,
    pub(super) due: Instant,
    pub(super) ended: Instant,
    pub(super) result: Result<(), String>,
}

/// The client and what it has seen.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    pub(super) stop: AtomicBool,
    seen: Mutex<Vec<Outcome>>,
    idle: Mutex<Vec<http1::SendRequest<Empty<Bytes>>>>,
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Body>>>,
    connections: Mutex<JoinSet<()>>,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            address,
            stop: AtomicBool::new(false),
            seen: Mutex::default(),
            idle: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
            connections: Mutex::default(),
        })
    }

    pub(super) fn take(&self) -> Vec<Outcome> {
        std::mem::take(&mut *self.seen.lock())
    }

    pub(super) fn answered(&self) -> usize {
        let seen = self.seen.lock();
        seen.iter().filter(|outcome| outcome.result.is_ok()).count()
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
                let once = tokio::time::timeout(PATIENCE, client.once(kind));
                let result = once
                    .await
                    .unwrap_or_else(|_| Err("no answer in time".into()));
                client.note(kind, due, result);
            });
            while under_way.try_join_next().is_some() {}
        }
        while under_way.join_next().await.is_some() {}
    }

    /// One WebSocket that is opened again only when it broke.
    pub(super) async fn stay(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            let due = Instant::now();
            let result = self.long_socket().await;
            self.note(Kind::LongSocket, due, result);
        }
    }

    fn note(&self, kind: Kind, due: Instant, result: Result<(), String>) {
        let ended = Instant::now();
        self.seen.lock().push(Outcome {
            kind,
            due,
            ended,
            result,
        });
    }

    async fn once(&self, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::Http => self.http().await,
            Kind::GrpcUnary => self.grpc_unary().await,
            Kind::GrpcStream => self.grpc_stream().await,
            Kind::Socket => {
                let mut socket = self.socket().await?;
                echo(&mut socket, "once").await?;
                socket.close(None).await.map_err(told("close"))
            }
            Kind::LongSocket => self.long_socket().await,
        }
    }

    fn drive<E>(&self, connection: impl Future<Output = Result<(), E>> + Send + 'static) {
        let mut connections = self.connections.lock();
        while connections.try_join_next().is_some() {}
        // Its failures are told by its requests.
        connections.spawn(async move { drop(connection.await) });
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        TcpStream::connect(self.address)
            .await
            .map_err(told("connect"))
    }

    async fn http(&self) -> Result<(), String> {
        let mut sender = loop {
            let kept = self.idle.lock().pop();
            let Some(mut kept) = kept else {
                let stream = TokioIo::new(self.connect().await?);
                let (sender, connection) =
                    http1::handshake(stream).await.map_err(told("handshake"))?;
                self.drive(connection);
                break sender;
            };
            if kept.ready().await.is_ok() {
                break kept;
            }
        };
        let request = Request::get("/").header("host", "web.localhost");
        let request = request.body(Empty::new()).map_err(told("request"))?;
        let response = sender.send_request(request).await.map_err(told("send"))?;
        let status = response.status();
        let whole = response.into_body().collect().await;
        let body = whole.map_err(told("read"))?.to_bytes();
        if status != 200 {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
        }
        self.idle.lock().push(sender);
        Ok(())
    }

    /// Sends over the one connection of HTTP/2, or over a new one once it takes nothing more.
    async fn call(&self, method: &str, body: Body) -> Result<http::Response<Incoming>, String> {
        let mut request = Request::post(format!("http://grpc.localhost/test.Echo/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .map_err(told("request"))?;
        loop {
            let mut sender = self.sender().await?;
            // What comes back was never sent: its connection had ended before.
            let mut failed = match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            match failed.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(format!("call: {:?}", failed.into_error())),
            }
        }
    }

    async fn sender(&self) -> Result<http2::SendRequest<Body>, String> {
        let mut shared = self.shared.lock().await;
        let standing = match shared.as_mut() {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !standing {
            let stream = TokioIo::new(self.connect().await?);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream)
                .await
                .map_err(told("handshake"))?;
            self.drive(connection);
            *shared = Some(sender);
        }
        shared.clone().ok_or_else(|| "no connection".to_owned())
    }

    async fn grpc_unary(&self) -> Result<(), String> {
        let body = || Full::new(frame(b"unary")).boxed();
        let response = match self.call("Unary", body()).await {
            // The connection said that it takes nothing more before this went out: it was not seen by anybody (RFC 9113 §6.8).
            Err(why) if why.contains(NOT_TAKEN) => self.call("Unary", body()).await?,
            answered => answered?,
        };
        let head = response.headers().clone();
        let body = response.into_body().collect().await.map_err(told("read"))?;
        ended_well(body.trailers().unwrap_or(&head))?;
        match body.to_bytes() == frame(b"unary") {
            true => Ok(()),
            false => Err("another answer".into()),
        }
    }

    async fn grpc_stream(&self) -> Result<(), String> {
        let (said, hears) = tokio::sync::mpsc::channel::<Bytes>(1);
        let frames = futures_util::stream::unfold(hears, |mut hears| async move {
            let bytes = hears.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), hears))
        });
        let asked = self.call("Bidi", BodyExt::boxed(StreamBody::new(frames)));
        let first = said.send(frame(b"beat"));
        let (response, sent) = tokio::join!(asked, first);
        sent.map_err(told("say"))?;
        let response = response?;
        let head = response.headers().clone();
        let mut body = response.into_body();
        let mut beats = 1;
        while let Some(next) = body.frame().await {
            let next = next.map_err(told("stream"))?;
            if let Some(trailers) = next.trailers_ref() {
                ended_well(trailers)?;
                return Err("ended early".into());
            }
            if beats == 15 {
                drop(said);
                return finish(body, head).await;
            }
            beats += 1;
            tokio::time::sleep(BEAT).await;
            said.send(frame(b"beat")).await.map_err(told("say"))?;
        }
        ended_well(&head)
    }

    async fn socket(&self) -> Result<WebSocketStream<TcpStream>, String> {
        let stream = self.connect().await?;
        let request = "ws://web.localhost/socket".into_client_request();
        let request = request.map_err(told("request"))?;
        let opened = tokio_tungstenite::client_async(request, stream);
        Ok(opened.await.map_err(told("open"))?.0)
    }

    async fn long_socket(&self) -> Result<(), String> {
        let mut socket = self.socket().await?;
        while !self.stop.load(Ordering::Relaxed) {
            let echoed = tokio::time::timeout(PATIENCE, echo(&mut socket, "still there"));
            echoed.await.map_err(told("echo"))??;
            tokio::time::sleep(BEAT).await;
        }
        socket.close(None).await.map_err(told("close"))
    }
}

async fn finish(mut body: Incoming, head: HeaderMap) -> Result<(), String> {
    while let Some(next) = body.frame().await {
        let next = next.map_err(told("end"))?;
        if let Some(trailers) = next.trailers_ref() {
            return ended_well(trailers);
        }
    }
    ended_well(&head)
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

fn told<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}

fn ended_well(trailers: &HeaderMap) -> Result<(), String> {
    match trailers.get("grpc-status").map(|status| status.as_bytes()) {
        Some(b"0") => Ok(()),
        _ => Err(format!("grpc: {trailers:?}")),
    }
}

fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut frame = vec![0];
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    frame.into()
}
