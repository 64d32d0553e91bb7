//! Listeners and connections. Both HTTP versions on one port; CONNECT turns a connection into a tunnel that is served again.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Edge;
use super::target::{Arrival, host_of};
use crate::proxy::{ProxyError, Verdict};
use crate::{ApiError, ApiState};

/// How long open requests may go on after shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves the API on all `listeners` until `shutdown` resolves, then lets open requests end (5 s at most).
///
/// # Errors
/// When the proxy's authority can't be read or made; the error names the file.
pub async fn serve(
    state: ApiState,
    listeners: Vec<TcpListener>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ProxyError> {
    let edge = Arc::new(Edge::new(state)?);
    let (stop, stopping) = watch::channel(false);
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(accept(Arc::clone(&edge), listener, stopping.clone())))
        .collect();
    drop(stopping);
    shutdown.await;
    let _ = stop.send(true);
    for task in accepting {
        let _ = task.await;
    }
    Ok(())
}

async fn accept(edge: Arc<Edge>, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let server = builder();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
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
        let _ = stream.set_nodelay(true);
        let local = stream
            .local_addr()
            .map_or(IpAddr::from([127, 0, 0, 1]), |a| a.ip().to_canonical());
        let arrival = Arrival::Direct { local };
        let edge = Arc::clone(&edge);
        let service =
            service_fn(move |request| serve_one(Arc::clone(&edge), arrival.clone(), request));
        let connection = graceful.watch(
            server
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .into_owned(),
        );
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "API connection ended early");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::info!(
            "API requests still open after {} s were cut off",
            DRAIN.as_secs()
        );
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
) -> Result<Response, Infallible> {
    if request.method() == Method::CONNECT && matches!(arrival, Arrival::Direct { .. }) {
        return Ok(connect(edge, request));
    }
    Ok(edge.answer(&arrival, request.map(Body::new)).await)
}

/// Opens the tunnel: 200, then TLS with our leaf, then HTTP once more.
fn connect(edge: Arc<Edge>, request: Request<Incoming>) -> Response {
    let Some(authority) = request.uri().authority() else {
        return ApiError::new(
            crate::error::Code::InvalidArgument,
            "CONNECT needs host:port.",
        )
        .into_response();
    };
    let host = host_of(authority.as_str()).to_ascii_lowercase();
    let acceptor = match edge
        .proxy
        .verdict(&host, authority.port_u16().unwrap_or(443))
    {
        Verdict::Terminate(acceptor) => acceptor,
        Verdict::Refuse(error) => return error.into_response(),
    };
    tokio::spawn(async move {
        let upgraded = match hyper::upgrade::on(request).await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(%error, host, "tunnel was given up before it opened");
                return;
            }
        };
        if let Err(error) = tunnel(edge, acceptor, upgraded, host.clone()).await {
            tracing::debug!(%error, host, "tunnel ended early");
        }
    });
    Response::new(Body::empty())
}

async fn tunnel<S>(
    edge: Arc<Edge>,
    acceptor: tokio_rustls::TlsAcceptor,
    stream: S,
    host: String,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tls = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream)).await??;
    let arrival = Arrival::Tunnel { host };
    let service = service_fn(move |request| serve_one(Arc::clone(&edge), arrival.clone(), request));
    builder()
        .serve_connection(TokioIo::new(tls), service)
        .await
        .map_err(io::Error::other)
}
