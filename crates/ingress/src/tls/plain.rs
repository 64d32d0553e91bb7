//! What plain HTTP from outside is answered because of TLS: an authority's check, or the way to HTTPS.

use http::{Method, Request};

use crate::Shared;
use crate::answer::Answer;
use crate::serve::{Door, Scheme};

/// The port that `https://` means.
const HTTPS: u16 = 443;

/// The answer in place of the service's own. `served`: a service has this host (normalised).
pub(crate) fn instead<B>(
    shared: &Shared,
    door: &Door,
    host: &str,
    served: bool,
    request: &Request<B>,
) -> Option<Answer> {
    if door.inside || door.scheme == Scheme::Https {
        return None;
    }
    let tls = shared.tls.get()?;
    if let Some(text) = tls.challenges.text(host, request.uri().path()) {
        return Some(Answer::Challenge { text });
    }
    let port = tls.redirect().filter(|_| served)?;
    // `OPTIONS *` is about the server, not about a place in it.
    let path = request.uri().path_and_query().map(|path| path.as_str());
    let path = path.filter(|path| path.starts_with('/')).unwrap_or("/");
    let to = if port == HTTPS {
        format!("https://{host}{path}")
    } else {
        format!("https://{host}:{port}{path}")
    };
    let keep = !matches!(*request.method(), Method::GET | Method::HEAD);
    Some(Answer::Redirect { to, keep })
}
