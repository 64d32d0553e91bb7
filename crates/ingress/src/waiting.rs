//! The page that a browser may see while an instance starts: who asks for it (`utsuwa.local/waiting-page`), when, and what it says.
//!
//! The page comes back by itself after two seconds, without a script; each coming back is a request of its own, which waits a
//! moment for the instance before it is shown the page again.

use std::time::Duration;

use http::header::{ACCEPT, UPGRADE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};

/// How long a request waits before it is shown the page. Most starts take less, and then the app itself answers.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// When the page comes back.
pub(crate) const REFRESH: HeaderName = HeaderName::from_static("refresh");
pub(crate) const SECONDS: HeaderValue = HeaderValue::from_static("2");

pub(crate) const PAGE: &str = "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta http-equiv=\"refresh\" content=\"2\">\
    <meta name=\"robots\" content=\"noindex\"><title>Starting…</title>\n\
    <style>body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1rem;color:#333}\
    h1{font-size:1.3rem;font-weight:600}</style></head>\n\
    <body><h1>Starting…</h1><p>The service was asleep and is waking up. This page shows it as soon as it is there.</p></body>\n</html>\n";

const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Whether somebody looks at what is answered: a browser that opens a page, not a program or a part of one.
pub(crate) fn is_for(parts: &Parts) -> bool {
    parts.method == Method::GET
        && !parts.headers.contains_key(UPGRADE)
        && parts
            .headers
            .get(FETCH_MODE)
            .is_none_or(|mode| mode == "navigate")
        && parts.headers.get_all(ACCEPT).iter().any(|accept| {
            accept.to_str().is_ok_and(|text| {
                let named = |kind: &str| {
                    kind.split(';')
                        .next()
                        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html"))
                };
                text.split(',').any(named)
            })
        })
}
