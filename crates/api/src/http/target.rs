//! Whom a request addresses: ourselves by one of our names, or a Google API by its host name.

use std::net::IpAddr;

use axum::body::Body;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Request, Uri, Version, header};
use utsuwa_model::Region;

use crate::ApiError;
use crate::ApiState;
use crate::error::Code;

/// Which API a request is for and which region its host named. Handlers find it in the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallContext {
    /// The API's short name: `run`, `serviceusage`.
    pub api: String,
    /// The region in the host name (`asia-northeast1-run.googleapis.com`); `None` on the global host and on our own address.
    pub region: Option<Region>,
}

impl CallContext {
    /// The region named by the host, else the default one (product.md: a path without region means the default region).
    #[must_use]
    pub fn region_or_default(&self, state: &ApiState) -> Region {
        self.region
            .clone()
            .unwrap_or_else(|| state.settings.region.clone())
    }
}

/// How a connection reached us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Straight to the API port.
    Direct { local: IpAddr },
    /// Inside a tunnel that was opened by CONNECT to this Google host.
    Tunnel { host: String },
}

/// Whom a request addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Own,
    Google(CallContext),
}

/// Decides whom `request` addresses.
pub(crate) fn find(arrival: &Arrival, request: &Request<Body>) -> Result<Target, ApiError> {
    let named = match request.uri().authority() {
        Some(authority) if authority.as_str().contains('@') => return Err(userinfo()),
        authority => authority.map(|a| host_of(a.as_str()).to_owned()),
    };
    let header = host_header(request.headers())?;
    if let (Some(named), Some(header)) = (&named, &header)
        && !named.eq_ignore_ascii_case(header)
    {
        return Err(ApiError::new(
            Code::InvalidArgument,
            "The request's Host header is another than the host of its target.",
        ));
    }
    match arrival {
        Arrival::Tunnel { host } => {
            for name in named.iter().chain(header.iter()) {
                if !name.eq_ignore_ascii_case(host) {
                    return Err(refused(name, &format!("the tunnel was opened to {host}")));
                }
            }
            google(host)
                .map(Target::Google)
                .ok_or_else(|| refused(host, "it is not a Google API host"))
        }
        Arrival::Direct { local } => {
            let absolute = named.is_some()
                && (request.version() == Version::HTTP_2 || request.uri().scheme().is_some());
            let Some(host) = named.or(header) else {
                return Err(ApiError::new(
                    Code::InvalidArgument,
                    "The request has no Host header, so it is unknown whom it addresses.",
                ));
            };
            if is_own(&host, *local) {
                return Ok(Target::Own);
            }
            match google(&host) {
                Some(context) if absolute => Ok(Target::Google(context)),
                _ => Err(refused(
                    &host,
                    "it is neither a name of this server nor a Google API addressed through its proxy",
                )),
            }
        }
    }
}

fn userinfo() -> ApiError {
    ApiError::new(
        Code::InvalidArgument,
        "The request names a user in front of its host.",
    )
}

fn refused(host: &str, why: &str) -> ApiError {
    ApiError::new(
        Code::PermissionDenied,
        format!(
            "Host {host:?} is refused: {why}. Use http://localhost, http://127.0.0.1 or http://[::1] with the API's port, or `utsuwa env`."
        ),
    )
}

fn host_header(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(header::HOST).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(ApiError::new(
            Code::InvalidArgument,
            "The request has more than one Host header.",
        ));
    }
    match first.map(|v| v.to_str()) {
        None => Ok(None),
        Some(Ok(text)) if text.contains('@') => Err(userinfo()),
        Some(Ok(text)) if text.parse::<Authority>().is_ok() => Ok(Some(host_of(text).to_owned())),
        Some(_) => Err(ApiError::new(
            Code::InvalidArgument,
            "The Host header is not a host name with an optional port.",
        )),
    }
}

/// `host[:port]` without user and port; brackets of IPv6 are removed.
pub(crate) fn host_of(authority: &str) -> &str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(inside, _)| inside);
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

/// Names of our own: `localhost`, loopback addresses, and the address the connection was accepted on.
pub(crate) fn is_own(host: &str, local: IpAddr) -> bool {
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    host.parse::<IpAddr>()
        .is_ok_and(|ip| ip.is_loopback() || ip == local)
}

/// Splits `REGION-API.googleapis.com`; `None` if it isn't a Google API host.
pub(crate) fn google(host: &str) -> Option<CallContext> {
    let lower = host.to_ascii_lowercase();
    let label = lower.strip_suffix(".googleapis.com")?;
    if label.is_empty() || label.contains('.') {
        return None;
    }
    let (region, api) = split_region(label);
    Some(CallContext {
        api: api.to_owned(),
        region,
    })
}

/// `asia-northeast1-run` is region `asia-northeast1` and API `run`: a region is two or more words, the last ending in digits.
fn split_region(label: &str) -> (Option<Region>, &str) {
    for (at, _) in label.match_indices('-') {
        let (head, api) = (&label[..at], &label[at + 1..]);
        let words: Vec<&str> = head.split('-').collect();
        let letters = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase());
        let Some((last, first)) = words.split_last() else {
            continue;
        };
        let stem = last.trim_end_matches(|c: char| c.is_ascii_digit());
        if !first.is_empty()
            && first.iter().all(|w| letters(w))
            && letters(stem)
            && stem.len() < last.len()
            && !api.is_empty()
        {
            return (head.parse().ok(), api);
        }
    }
    (None, label)
}

/// A browser's page may speak to us only from our own names.
pub(crate) fn check_origin(request: &Request<Body>) -> Result<(), ApiError> {
    for origin in request.headers().get_all(header::ORIGIN) {
        let host = origin
            .to_str()
            .ok()
            .and_then(|o| o.parse::<Uri>().ok())
            .filter(|u| u.authority().is_some_and(|a| !a.as_str().contains('@')))
            .and_then(|u| u.host().map(|h| host_of(h).to_owned()));
        if !host.is_some_and(|host| is_own(&host, IpAddr::from([127, 0, 0, 1]))) {
            return Err(ApiError::new(
                Code::PermissionDenied,
                format!("Origin {origin:?} is refused: pages of other sites may not use this API."),
            ));
        }
    }
    Ok(())
}

/// What Cloud Run's own paths begin with. Of `/v2/` no more than this, so that the rest is free for what else speaks it: a registry's
/// paths end in `/manifests/…`, `/blobs/…`, `/tags/list` or `/_catalog`, and none of Cloud Run's does.
const OF_RUN: [&str; 3] = ["/v2/projects/", "/v1/projects/", "/apis/"];

/// The API that a path on our own address is for, and Google's path there: `/run/v2/x` is API `run` and path `/v2/x`. Google's paths
/// without a short name are Cloud Run's, as on `run.googleapis.com`: that is what a client asks for that was given our address in its place.
pub(crate) fn split_api(path: &str) -> Option<(&str, &str)> {
    if OF_RUN.iter().any(|start| path.starts_with(start)) {
        return Some(("run", path));
    }
    let end = path.strip_prefix('/')?.find('/')? + 1;
    let (api, rest) = (&path[1..end], &path[end..]);
    let word = !api.is_empty() && api.bytes().all(|b| b.is_ascii_lowercase());
    word.then_some((api, rest))
}

/// Replaces the path, keeps the query.
pub(crate) fn set_path(request: &mut Request<Body>, path: &str) -> Result<(), ApiError> {
    let whole = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let path_and_query: PathAndQuery = whole.parse().map_err(|_| {
        ApiError::new(
            Code::InvalidArgument,
            format!("The path {path:?} is not a valid path."),
        )
    })?;
    *request.uri_mut() = Uri::from(path_and_query);
    Ok(())
}

#[cfg(test)]
mod tests;
