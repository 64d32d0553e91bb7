//! An app that listens where its probe doesn't ask: what to say of it, long before the probe gives up.
//!
//! Owns: the words, and how often they are said. Deliberately not here: seeing where programs listen (`seam::Connect`).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::STARTUP;
use crate::instance::Instance;
use crate::outside::Outside;
use crate::seam::{InstanceNote, Weight};

/// An app that listens only where it can't be reached will hardly change its mind after so long.
const SURELY: Duration = Duration::from_secs(3);
/// Between two looks: an app may take its time before it listens in the wrong place.
const PAUSE: Duration = Duration::from_secs(1);
/// An app that opens one port after the other is not told of each.
const MOST: usize = 3;
/// More addresses make a sentence that nobody reads.
const SHOWN: usize = 4;

/// Looks at one instance during its startup probe, and tells its owner what is new.
#[derive(Debug)]
pub(super) struct Watch {
    next: Instant,
    told: Vec<String>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            next: Instant::now() + SURELY,
            told: Vec::new(),
        }
    }

    /// Tells what is to be told of an instance that does not answer at `port`: in its service's log, and to whoever asks what
    /// its probe complains of.
    pub(super) fn look(&mut self, outside: &Outside, instance: &Instance, port: u16) {
        let now = Instant::now();
        if now < self.next || self.told.len() >= MOST {
            return;
        }
        self.next = now + PAUSE;
        let Some(text) = words(outside, instance, port).filter(|text| !self.told.contains(text))
        else {
            return;
        };
        self.told.push(text.clone());
        instance.failing.advise(STARTUP, &text);
        outside.wake.changed(&instance.revision);
        outside.log.noticed(InstanceNote {
            at: outside.clock.wall(),
            revision: instance.revision.clone(),
            instance: instance.id.clone(),
            weight: Weight::Warning,
            text,
        });
    }
}

/// Where the app listens instead of `port`, and what to do about it. `None`: nowhere, it can be reached there, or nobody knows.
pub(super) fn words(outside: &Outside, instance: &Instance, port: u16) -> Option<String> {
    let all = outside.connect.listens_on(&instance.id);
    sentence(&all, port, port == instance.port)
}

/// `told`: the port is the one that the program is told in PORT.
fn sentence(all: &[SocketAddr], port: u16, told: bool) -> Option<String> {
    let (alone, reachable): (Vec<&SocketAddr>, Vec<_>) =
        all.iter().partition(|at| at.ip().is_loopback());
    if reachable.iter().any(|at| at.port() == port) {
        return None;
    }
    if let Some(at) = alone.iter().find(|at| at.port() == port) {
        return Some(format!(
            "The app listens on {at} only, where nothing outside its instance can reach it: it must listen on 0.0.0.0:{port}."
        ));
    }
    if !told {
        let where_else = listed(if reachable.is_empty() {
            &alone
        } else {
            &reachable
        })?;
        return Some(format!(
            "The container listens on {where_else}, not on port {port}, which its startup probe asks: give the probe the right port."
        ));
    }
    if reachable.is_empty() {
        let at = listed(&alone)?;
        return Some(format!(
            "The container listens on {at} only, not on port {port} (PORT), and where nothing outside its instance can reach it: it \
             must listen on 0.0.0.0:{port}."
        ));
    }
    let at = listed(&reachable)?;
    let mut ports: Vec<u16> = reachable.iter().map(|at| at.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    let flag = match ports.as_slice() {
        [one] => format!("set `--port {one}`"),
        _ => "set `--port` to the one that takes requests".to_owned(),
    };
    Some(format!(
        "The container listens on {at}, not on port {port} (PORT): {flag}, or let it read PORT."
    ))
}

/// `0.0.0.0:5000 and [::]:9090`; `None` of nothing.
fn listed(all: &[&SocketAddr]) -> Option<String> {
    let mut shown: Vec<String> = all.iter().map(ToString::to_string).collect();
    shown.dedup();
    if shown.len() > SHOWN {
        let more = shown.len() - SHOWN + 1;
        shown.truncate(SHOWN - 1);
        shown.push(format!("{more} more"));
    }
    let last = shown.pop()?;
    Some(match shown.is_empty() {
        true => last,
        false => format!("{} and {last}", shown.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_place_has_its_cure() {
        let said = |places: &[&str], told: bool| {
            let all: Vec<SocketAddr> = places.iter().map(|at| at.parse().unwrap()).collect();
            sentence(&all, 8080, told).unwrap_or_default()
        };
        assert_eq!(
            said(&["0.0.0.0:5000"], true),
            "The container listens on 0.0.0.0:5000, not on port 8080 (PORT): set `--port 5000`, or let it read PORT."
        );
        // One server, both families.
        assert!(said(&["0.0.0.0:5000", "[::]:5000"], true).contains("set `--port 5000`"));
        assert_eq!(
            said(&["0.0.0.0:5000", "127.0.0.1:1", "[::]:9090"], true),
            "The container listens on 0.0.0.0:5000 and [::]:9090, not on port 8080 (PORT): set `--port` to the one that takes \
             requests, or let it read PORT."
        );
        let alone = said(&["127.0.0.1:5000"], true);
        assert!(alone.contains("127.0.0.1:5000 only, not on port 8080"));
        assert!(alone.contains("must listen on 0.0.0.0:8080"));
        assert!(said(&["127.0.0.1:8080", "0.0.0.0:5000"], true).contains("127.0.0.1:8080 only"));
        assert!(said(&["0.0.0.0:5000"], false).contains("give the probe the right port"));
        let many: Vec<String> = (1..10).map(|n| format!("0.0.0.0:{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(said(&many, true).contains("0.0.0.0:3 and 6 more, not on"));
        for fine in [&["0.0.0.0:8080", "127.0.0.1:8080"][..], &["[::]:8080"], &[]] {
            assert_eq!(said(fine, true), "");
        }
    }
}
