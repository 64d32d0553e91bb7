//! gRPC by the frames' own library: it alone tells a call that was never sent from one that was sent and not taken.
//!
//! All calls share one connection, as those of a gRPC channel do, until it takes no more.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Version};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::load::{BEAT, Mark, connect, told};

/// Messages each way of a call of both directions.
const BEATS: usize = 15;

/// The connection that calls go over.
#[derive(Debug, Clone)]
struct Line {
    sender: SendRequest<Bytes>,
    port: u16,
}

#[derive(Debug)]
pub(super) struct Calls {
    address: SocketAddr,
    line: tokio::sync::Mutex<Option<Line>>,
    moved: AtomicUsize,
    connections: Mutex<JoinSet<()>>,
}

impl Calls {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            line: tokio::sync::Mutex::default(),
            moved: AtomicUsize::new(0),
            connections: Mutex::default(),
        }
    }

    pub(super) fn moved(&self) -> usize {
        self.moved.load(Ordering::Relaxed)
    }

    pub(super) async fn unary(&self, mark: &Mark) -> Result<(), String> {
        let (answer, mut say) = self.open("Unary", mark).await?;
        say.send_data(frame(b"unary"), true).map_err(told("say"))?;
        let (head, mut body) = answer.await.map_err(told("call"))?.into_parts();
        let mut said = Vec::new();
        while let Some(bytes) = next(&mut body).await? {
            said.extend(bytes);
        }
        ended_well(&head.headers, &mut body).await?;
        match said == frame(b"unary") {
            true => Ok(()),
            false => Err(format!("another answer: {said:?}")),
        }
    }

    /// A message each way and again, for some seconds.
    pub(super) async fn both_ways(&self, mark: &Mark) -> Result<(), String> {
        let (answer, mut say) = self.open("Bidi", mark).await?;
        say.send_data(frame(b"beat"), false).map_err(told("say"))?;
        let (head, mut body) = answer.await.map_err(told("call"))?.into_parts();
        for _ in 1..BEATS {
            if next(&mut body).await?.is_none() {
                ended_well(&head.headers, &mut body).await?;
                return Err("ended early".into());
            }
            tokio::time::sleep(BEAT).await;
            say.send_data(frame(b"beat"), false).map_err(told("say"))?;
        }
        say.send_data(Bytes::new(), true).map_err(told("say"))?;
        while next(&mut body).await?.is_some() {}
        ended_well(&head.headers, &mut body).await
    }

    /// Begins a call on the connection there is, or on a new one once that takes no more. What fails here was never sent: the
    /// library gives a call a stream, or says that it can't. What fails later is not tried again.
    async fn open(
        &self,
        method: &str,
        mark: &Mark,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), String> {
        loop {
            // What fails before it is sent was on no connection: nobody's death excuses it.
            mark.over(0);
            let line = self.line().await?;
            mark.over(line.port);
            let request = Request::post(format!("http://grpc.localhost/test.Echo/{method}"))
                .version(Version::HTTP_2)
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("traceparent", mark.parent())
                .body(())
                .map_err(told("request"))?;
            if let Ok(mut sender) = line.sender.ready().await
                && let Ok(opened) = sender.send_request(request, false)
            {
                return Ok(opened);
            }
            let mut shared = self.line.lock().await;
            if shared.as_ref().is_some_and(|now| now.port == line.port) {
                *shared = None;
                self.moved.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn line(&self) -> Result<Line, String> {
        let mut shared = self.line.lock().await;
        if let Some(line) = &*shared {
            return Ok(line.clone());
        }
        let (stream, port) = connect(self.address).await?;
        let shaken = h2::client::handshake(stream).await;
        let (sender, connection) = shaken.map_err(told("handshake"))?;
        let mut connections = self.connections.lock();
        while connections.try_join_next().is_some() {}
        // Its failures are told by its calls.
        connections.spawn(async move { drop(connection.await) });
        let line = Line { sender, port };
        *shared = Some(line.clone());
        Ok(line)
    }
}

/// What comes next of an answer, given room for more.
async fn next(body: &mut RecvStream) -> Result<Option<Bytes>, String> {
    let Some(bytes) = body.data().await else {
        return Ok(None);
    };
    let bytes = bytes.map_err(told("stream"))?;
    let taken = body.flow_control().release_capacity(bytes.len());
    taken.map_err(told("release"))?;
    Ok(Some(bytes))
}

/// gRPC says so in the trailers, or in the head of an answer that has nothing else.
async fn ended_well(head: &HeaderMap, body: &mut RecvStream) -> Result<(), String> {
    let trailers = body.trailers().await.map_err(told("trailers"))?;
    let trailers = trailers.as_ref().unwrap_or(head);
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
