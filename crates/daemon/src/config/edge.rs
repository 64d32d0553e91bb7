//! Limits of the data path: from options to the ingress's settings.

use std::time::Duration;

use utsuwa_ingress::{IngressSettings, Network};

use super::parse::{Checker, bytes, time};

/// The options that this file reads.
const TIMES: [&str; 2] = ["header-timeout", "body-timeout"];

/// What the options say; what else the ingress is told (numbers that depend on open files, and the drain) is the default.
pub(super) fn edge(c: &mut Checker<'_>) -> IngressSettings {
    let mut settings = IngressSettings::default();
    for (name, place) in TIMES
        .into_iter()
        .zip([&mut settings.header_timeout, &mut settings.body_timeout])
    {
        let positive = |text: &str| match time(text)? {
            Duration::ZERO => Err("must be one second at least".to_owned()),
            time => Ok(time),
        };
        if let Some(time) = c.parse(name, positive) {
            *place = time;
        }
    }
    let size = |text: &str| match bytes(text)? {
        size @ 4_096..=1_048_576 => Ok(usize::try_from(size).unwrap_or(usize::MAX)),
        _ => Err("must be 4Ki to 1Mi".to_owned()),
    };
    if let Some(size) = c.parse("max-header-bytes", size) {
        settings.max_header_bytes = size;
    }
    if let Some(streams) = c.parse("max-streams", number(1, 10_000)) {
        settings.max_streams = streams;
    }
    if let Some(frames) = c.parse("max-control-frames", number(10, 1_000_000)) {
        settings.max_control_frames = frames;
    }
    if let Some(waiting) = c.parse("max-waiting", number(1, 1_000_000)) {
        settings.max_waiting = usize::try_from(waiting).unwrap_or(usize::MAX);
    }
    settings.scanner_paths = c.layers.list("scanner-paths").to_vec();
    for path in &settings.scanner_paths {
        if !path.starts_with(['/', '*']) || path.matches('*').count() > 1 || path == "*" {
            c.wrong(
                "scanner-paths",
                &format!("{path:?} must be a path such as /.env, with one * at most"),
            );
        }
    }
    settings.proxies_http = networks(c, "proxy-protocol-http");
    settings.proxies_https = networks(c, "proxy-protocol-https");
    settings
}

fn networks(c: &mut Checker<'_>, name: &str) -> Vec<Network> {
    let mut all = Vec::new();
    for text in c.layers.list(name).to_vec() {
        match text.parse() {
            Ok(network) => all.push(network),
            Err(error) => c.wrong(name, &format!("{error}")),
        }
    }
    all
}

fn number(least: u32, most: u32) -> impl Fn(&str) -> Result<u32, String> {
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("must be a number from {least} to {most}")),
    }
}
