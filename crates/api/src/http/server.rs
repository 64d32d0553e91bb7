//! Listeners and connections. Both HTTP versions on one port; CONNECT turns a connection into a tunnel that is served again.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Edge;
use super::target::{Arrival, host_of};
use crate::error::Code;
use crate::proxy::{ProxyError, Verdict};
use crate::{ApiError, ApiState};

/// How long open requests may go on after shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a tunnel may take to open.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Everything that runs for one call of [`serve`]: nothing outlives it.
#[derive(Debug, Clone)]
struct Lifetime {
    tasks: TaskTracker,
    /// No new requests; those inside may end.
    closing: CancellationToken,
    /// Time is up.
    cut: CancellationToken,
}

/// Serves the API on all `listeners` until `shutdown` resolves, then lets open requests end (5 s at most).
///
/// # Errors
/// When the proxy's authority can't be read or made; the error names the file.
pub async fn serve(
    state: ApiState,
    listeners: Vec<TcpListener>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ProxyError> {
    let closing = state.closing.clone();
    let edge = Arc::new(Edge::new(state)?);
    let lifetime = Lifetime {
        tasks: TaskTracker::new(),
        closing,
        cut: CancellationToken::new(),
    };
    for listener in listeners {
        lifetime
            .tasks
            .spawn(accept(Arc::clone(&edge), listener, lifetime.clone()));
    }
    shutdown.await;
    lifetime.closing.cancel();
    lifetime.tasks.close();
    if tokio::time::timeout(DRAIN, lifetime.tasks.wait())
        .await
        .is_err()
    {
        tracing::info!(
            "API requests still open after {} s are cut off",
            DRAIN.as_secs()
        );
        lifetime.cut.cancel();
        lifetime.tasks.wait().await;
    }
    Ok(())
}

async fn accept(edge: Arc<Edge>, listener: TcpListener, lifetime: Lifetime) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = lifetime.closing.cancelled() => return,
        };
        let (stream, _) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "accept a connection on the API port; trying again in 100 ms");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "API connection was gone before it was served");
            continue;
        }
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let local = stream
            .local_addr()
            .map_or(loopback, |a| a.ip().to_canonical());
        let arrival = Arrival::Direct { local };
        lifetime.tasks.spawn(connection(
            Arc::clone(&edge),
            TokioIo::new(stream),
            arrival,
            lifetime.clone(),
        ));
    }
}

/// Serves one connection, a tunnel's inside included, until it ends or the server does.
async fn connection<I>(edge: Arc<Edge>, io: I, arrival: Arrival, lifetime: Lifetime)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let inner = lifetime.clone();
    let service = service_fn(move |request| {
        serve_one(Arc::clone(&edge), arrival.clone(), request, inner.clone())
    });
    let server = builder();
    let mut serving = pin!(server.serve_connection_with_upgrades(io, service));
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = lifetime.closing.cancelled() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                ended = serving.as_mut() => Some(ended),
                () = lifetime.cut.cancelled() => None,
            }
        }
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "API connection ended early");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .preserve_header_case(false);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(60))
        .max_concurrent_streams(256);
    server
}

async fn serve_one(
    edge: Arc<Edge>,
    arrival: Arrival,
    request: Request<Incoming>,
    lifetime: Lifetime,
) -> Result<Response, Infallible> {
    if request.method() == Method::CONNECT && matches!(arrival, Arrival::Direct { .. }) {
        return Ok(connect(edge, request, lifetime));
    }
    // A panic ends the request that met it, not the others of its connection.
    let answer = AssertUnwindSafe(edge.answer(&arrival, request.map(Body::new))).catch_unwind();
    Ok(answer.await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|t| (*t).to_owned());
        let text = text
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        ApiError::internal(format!("a handler panicked: {text}")).into_response()
    }))
}

/// Opens the tunnel: 200, then TLS with our leaf, then HTTP once more.
fn connect(edge: Arc<Edge>, request: Request<Incoming>, lifetime: Lifetime) -> Response {
    let Some(authority) = request.uri().authority() else {
        return ApiError::new(Code::InvalidArgument, "CONNECT needs host:port.").into_response();
    };
    let host = host_of(authority.as_str()).to_ascii_lowercase();
    let acceptor = match edge
        .proxy
        .verdict(&host, authority.port_u16().unwrap_or(443))
    {
        Verdict::Terminate(acceptor) => acceptor,
        Verdict::Refuse(error) => return error.into_response(),
    };
    lifetime.tasks.clone().spawn(async move {
        let opened = tokio::time::timeout(HANDSHAKE, async {
            let upgraded = hyper::upgrade::on(request)
                .await
                .map_err(io::Error::other)?;
            acceptor.accept(TokioIo::new(upgraded)).await
        });
        match opened.await.map_err(io::Error::from).flatten() {
            Ok(tls) => {
                connection(edge, TokioIo::new(tls), Arrival::Tunnel { host }, lifetime).await
            }
            Err(error) => tracing::debug!(%error, host, "tunnel was given up before it opened"),
        }
    });
    Response::new(Body::empty())
}
