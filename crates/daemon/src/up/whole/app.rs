//! The scripted app of every instance. What it is like is said where users say it, in its environment: `SAYS` is its answer.
//! An app with `DEAF` never listens.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use utsuwa_model::instance::InstanceSpec;
use utsuwa_runtime::fake::{Begin, Program};

/// What a test says to all apps, and what they saw.
#[derive(Debug)]
pub(super) struct Stage {
    /// Apps that begin listen only while this is so.
    pub(super) listens: watch::Sender<bool>,
    /// Requests to `/slow…` take one permit each and don't give it back.
    pub(super) gate: Semaphore,
    /// Requests, in the order in which they came.
    pub(super) seen: Mutex<Vec<String>>,
    /// Connections that were accepted.
    pub(super) reached: AtomicU32,
    /// The last address that was given to an instance.
    last: AtomicU8,
}

impl Stage {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            listens: watch::Sender::new(true),
            gate: Semaphore::new(0),
            seen: Mutex::default(),
            reached: AtomicU32::new(0),
            last: AtomicU8::new(1),
        })
    }

    /// Every instance has a loopback address of its own: who confuses two of them is not answered.
    pub(super) fn begin(self: &Arc<Self>) -> Begin {
        let stage = Arc::clone(self);
        Arc::new(move |spec| {
            let number = stage.last.fetch_add(1, Ordering::SeqCst) + 1;
            let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, number));
            let mut life = JoinSet::new();
            if said(spec, "DEAF").is_none() {
                let says = said(spec, "SAYS").unwrap_or_default();
                let at = SocketAddr::new(address, spec.port);
                life.spawn(live(Arc::clone(&stage), at, says));
            }
            Program {
                address,
                life: Box::new(life),
            }
        })
    }
}

fn said(spec: &InstanceSpec, name: &str) -> Option<String> {
    let env = spec.process.env.iter().rev();
    let mut pairs = env.filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value.to_owned())
}

async fn live(stage: Arc<Stage>, at: SocketAddr, says: String) {
    let mut listens = stage.listens.subscribe();
    // The sender is the stage's own.
    drop(listens.wait_for(|listens| *listens).await);
    let listener = TcpListener::bind(at).await.unwrap();
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stage.reached.fetch_add(1, Ordering::SeqCst);
        let (stage, says) = (Arc::clone(&stage), says.clone());
        connections.spawn(async move {
            let service =
                service_fn(move |request| answer(Arc::clone(&stage), says.clone(), request));
            // A client that hangs up is no failure of the script.
            drop(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

async fn answer(
    stage: Arc<Stage>,
    says: String,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    stage.seen.lock().push(path.clone());
    if path.starts_with("/slow") {
        stage.gate.acquire().await.unwrap().forget();
    }
    Ok(Response::new(Full::new(says.into())))
}
