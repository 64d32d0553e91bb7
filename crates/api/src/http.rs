//! The API's one port: who is addressed, is that allowed, which handler answers.
//!
//! Owns: the HTTP server (HTTP/1.1 and h2c, REST and gRPC on one port), the checks of `Host` and `Origin` (decision 16), and
//! dispatch by API short name (own address) or Google host name (through the forward proxy).
//!
//! Not here: what a handler does; CONNECT and certificates ([`crate::proxy`]).
//!
//! Invariants:
//! 1. A host name that isn't ours nor `*.googleapis.com` is refused with 403 before any handler runs.
//! 2. A handler sees Google's own path: the short name is stripped where there is one, and [`CallContext`] says API and region.
//! 3. Every answer on a Google path is Google's JSON.

mod server;
mod target;
#[cfg(test)]
mod tests;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, header};
pub use server::serve;
pub(crate) use target::Arrival;
pub use target::CallContext;
use target::Target;

use crate::error::Code;
use crate::proxy::Proxy;
use crate::transcode::Transcoder;
use crate::{ApiError, ApiState, admin, preflight, v1, v2};

/// All handlers, built once.
#[derive(Debug)]
pub(crate) struct Edge {
    state: ApiState,
    v1: axum::Router,
    preflight: axum::Router,
    admin: axum::Router,
    grpc: axum::Router,
    run_v2: Transcoder,
    pub(crate) proxy: Proxy,
}

impl Edge {
    pub(crate) fn new(state: ApiState) -> Result<Self, crate::proxy::ProxyError> {
        let proxy = Proxy::open(&state.keys_dir)?;
        Ok(Self {
            v1: v1::router(state.clone()).fallback(unknown_path),
            preflight: preflight::router(state.clone()).fallback(unknown_path),
            admin: admin::router(state.clone()).fallback(unknown_path),
            grpc: v2::grpc(&state),
            run_v2: v2::transcoder(&state),
            proxy,
            state,
        })
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, arrival: &Arrival, mut request: Request<Body>) -> Response {
        let target = match target::find(arrival, &request)
            .and_then(|t| target::check_origin(&request).map(|()| t))
        {
            Ok(target) => target,
            Err(error) => return error.into_response(),
        };
        if is_grpc(&request) {
            return call(&self.grpc, request).await;
        }
        match target {
            Target::Own => match request.uri().path() {
                "/healthz" => self.health(),
                "/metrics" => self.metrics(),
                path if path.starts_with("/utsuwa/") => call(&self.admin, request).await,
                path => match target::split_api(path) {
                    Some((api, rest)) => {
                        let context = CallContext {
                            api: api.to_owned(),
                            region: None,
                        };
                        let rest = rest.to_owned();
                        if let Err(error) = target::set_path(&mut request, &rest) {
                            return error.into_response();
                        }
                        self.google(context, request).await
                    }
                    None => unknown_path(request).await,
                },
            },
            Target::Google(context) => self.google(context, request).await,
        }
    }

    async fn google(&self, context: CallContext, mut request: Request<Body>) -> Response {
        let path = request.uri().path().to_owned();
        let api = context.api.clone();
        request.extensions_mut().insert(context);
        match api.as_str() {
            "run" if path.starts_with("/v2/") => self.run_v2.answer(request).await,
            "run" => call(&self.v1, request).await,
            api if preflight::APIS.contains(&api) => call(&self.preflight, request).await,
            // What `gcloud run services logs read` asks.
            "logging" => ApiError::unimplemented(
                "logging.googleapis.com is not built in this server yet: `utsuwa logs NAME` shows the logs of a service.",
            )
            .into_response(),
            api => ApiError::unimplemented(format!(
                "{api}.googleapis.com is not built in this server yet. Served: run, {}.",
                preflight::APIS.join(", ")
            ))
            .into_response(),
        }
    }

    /// For Prometheus. Names of services and how much they are used are for who may use the API: it has no other address.
    fn metrics(&self) -> Response {
        let kind = [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )];
        (kind, self.state.insight.metrics()).into_response()
    }

    fn health(&self) -> Response {
        if self.state.ready.get() {
            "ok\n".into_response()
        } else {
            (
                http::StatusCode::SERVICE_UNAVAILABLE,
                "starting: deploys are not possible yet\n",
            )
                .into_response()
        }
    }
}

/// Whether `host` is a Google API's host name.
pub(crate) fn google_host(host: &str) -> bool {
    target::google(host).is_some()
}

fn is_grpc(request: &Request<Body>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

pub(crate) async fn call(router: &axum::Router, request: Request<Body>) -> Response {
    use tower::ServiceExt;
    match router.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// 404 in Google's JSON.
pub(crate) async fn unknown_path(request: Request<Body>) -> Response {
    ApiError::new(
        Code::NotFound,
        format!(
            "There is no method at {} {} on this server.",
            request.method(),
            request.uri().path()
        ),
    )
    .into_response()
}
