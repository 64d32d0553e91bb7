//! Scripted apps: one that speaks HTTP, one that speaks bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What an app does and what was done to it.
#[derive(Debug, Default)]
pub(super) struct Life {
    pub(super) inside: AtomicU32,
    pub(super) most: AtomicU32,
    pub(super) served: AtomicU32,
    pub(super) connections: AtomicU32,
    /// `/health` answers 503 and not 200.
    pub(super) sick: AtomicBool,
    /// How often `/health` was asked for.
    pub(super) checks: AtomicU32,
    /// `/gate` takes one permit and gives it not back.
    pub(super) gate: Option<Arc<Semaphore>>,
}

/// A scripted app.
#[derive(Debug)]
pub(super) struct App {
    pub(super) address: SocketAddr,
    pub(super) life: Arc<Life>,
    pub(super) gate: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

pub(super) type AppBody = UnsyncBoxBody<Bytes, Infallible>;

pub(super) fn full(text: impl Into<Bytes>) -> AppBody {
    Full::new(text.into()).boxed_unsync()
}

struct Inside(Arc<Life>);

impl Inside {
    fn enter(life: &Arc<Life>) -> Self {
        let inside = life.inside.fetch_add(1, Ordering::SeqCst) + 1;
        life.most.fetch_max(inside, Ordering::SeqCst);
        Self(Arc::clone(life))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        self.0.served.fetch_add(1, Ordering::SeqCst);
    }
}

impl App {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::new(Semaphore::new(0));
        let life = Arc::new(Life {
            gate: Some(Arc::clone(&gate)),
            ..Life::default()
        });
        let mut tasks = JoinSet::new();
        let seen = Arc::clone(&life);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let life = Arc::clone(&seen);
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let life = Arc::clone(&life);
                        async move { Ok::<_, Infallible>(script(life, request).await) }
                    });
                    // An aborted client is no failure of the script.
                    drop(
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                            .serve_connection_with_upgrades(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self {
            address,
            life,
            gate,
            tasks,
        }
    }

    /// Dies at once, as a killed container does: every socket is closed.
    pub(super) fn die(&mut self) {
        self.tasks.abort_all();
    }
}

/// An app that speaks bytes: `talk` gets each accepted connection and its number from 0.
pub(super) async fn raw_app<F, T>(talk: F) -> (SocketAddr, JoinSet<()>)
where
    F: Fn(usize, TcpStream) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(talk(number, stream));
        }
    });
    (address, tasks)
}

async fn script(life: Arc<Life>, request: Request<Incoming>) -> Response<AppBody> {
    let inside = Inside::enter(&life);
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        "/gate" => {
            let gate = life.gate.clone().unwrap();
            gate.acquire().await.unwrap().forget();
            Response::new(full("through"))
        }
        "/health" => {
            life.checks.fetch_add(1, Ordering::SeqCst);
            let sick = life.sick.load(Ordering::SeqCst);
            let status = if sick { 503 } else { 200 };
            Response::builder().status(status).body(full("")).unwrap()
        }
        "/headers" => {
            let mut seen = serde_json::Map::new();
            seen.insert(":uri".to_owned(), request.uri().to_string().into());
            seen.insert(":method".to_owned(), request.method().as_str().into());
            for (name, value) in request.headers() {
                seen.insert(name.as_str().to_owned(), value.to_str().unwrap().into());
            }
            Response::new(full(serde_json::to_vec(&seen).unwrap()))
        }
        "/echo" => {
            let trailers = request.headers().get("trailer").cloned();
            let mut response = Response::new(echo(request.into_body()));
            if let Some(trailers) = trailers {
                response.headers_mut().insert("trailer", trailers);
            }
            response
        }
        "/count" => {
            let body = request.into_body().collect().await;
            let Ok(body) = body else {
                return Response::builder().status(400).body(full("")).unwrap();
            };
            Response::new(full(body.to_bytes().len().to_string()))
        }
        "/cookie" => Response::builder()
            .header("set-cookie", "a=b")
            .header("cache-control", "public, max-age=3600")
            .header("server", "scripted")
            .body(full("crumbs"))
            .unwrap(),
        "/teapot" => Response::builder()
            .status(418)
            .body(full("short and stout"))
            .unwrap(),
        "/big" => Response::new(full(vec![b'x'; (32 << 20) + 1])),
        "/big-stream" => {
            let frames = (0..33).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 1 << 20]))));
            Response::new(BodyExt::boxed_unsync(StreamBody::new(
                futures_util::stream::iter(frames),
            )))
        }
        "/flood" => {
            let frame = || Ok(Frame::data(Bytes::from_static(&[b'x'; 64 << 10])));
            Response::new(StreamBody::new(futures_util::stream::repeat_with(frame)).boxed_unsync())
        }
        "/ticks" => ticks(&life),
        _ => Response::new(full("hello")),
    };
    drop(inside);
    response
}

/// Sends back what comes, trailers too.
fn echo(body: Incoming) -> AppBody {
    let frames = futures_util::stream::unfold(body, |mut body| async move {
        match body.frame().await {
            Some(Ok(frame)) => Some((Ok(frame), body)),
            _ => None,
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// One byte at once, one more for each permit of the gate; endless.
fn ticks(life: &Arc<Life>) -> Response<AppBody> {
    let gate = life.gate.clone().unwrap();
    let inside = Inside::enter(life);
    let frames =
        futures_util::stream::unfold((gate, inside, true), |(gate, inside, first)| async move {
            if !first {
                gate.acquire().await.unwrap().forget();
            }
            Some((
                Ok(Frame::data(Bytes::from_static(b"."))),
                (gate, inside, false),
            ))
        });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(StreamBody::new(frames).boxed_unsync())
        .unwrap()
}
