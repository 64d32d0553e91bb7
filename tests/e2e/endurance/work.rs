//! What goes on all the while: requests, deploys, and an app that writes numbered lines.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;

use super::WINDOW;
use crate::harness::{PARENT, Tally, api_request, try_exchange, until};

/// Between two deploys, and between two batches of lines: a pace, so that the amount of work is the time's and not the
/// machine's, and the logs stay within their budget.
const DEPLOY_PACE: Duration = Duration::from_millis(200);
const BATCH_PACE: Duration = Duration::from_millis(150);
/// More lines than a pipe holds.
const SHORT_LINES: usize = 2000;
/// Lines of which a single one is more than a pipe holds (64 KiB).
const LONG_LINES: usize = 4;
const LONG_BYTES: usize = 100_000;

/// Lines that the writer was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) lines: usize,
    /// Of each message; 0: as short as its number.
    pub(crate) bytes: usize,
    /// Whether the request was answered. If not, nobody knows whether the writer got it.
    pub(crate) answered: bool,
}

/// Services that were asked for.
#[derive(Debug, Default, Clone)]
pub(crate) struct Deploys {
    pub(crate) acknowledged: Vec<String>,
    /// The last acknowledged change of the service `patched`.
    pub(crate) round: usize,
}

#[derive(Debug)]
pub(crate) struct Work {
    api: SocketAddr,
    http: SocketAddr,
    stop: AtomicBool,
    /// The writer is at it.
    writing: AtomicBool,
    pub(crate) load: Tally,
    pub(crate) api_calls: Tally,
    pub(crate) writes: Tally,
    pub(crate) batches: Mutex<Vec<Batch>>,
    pub(crate) deploys: Mutex<Deploys>,
}

/// Ends the work also when the test fails: its threads are waited for.
pub(crate) struct Until<'a>(pub(crate) &'a Work);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Work {
    pub(crate) fn new(api: SocketAddr, http: SocketAddr) -> Self {
        Self {
            api,
            http,
            stop: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            load: Tally::default(),
            api_calls: Tally::default(),
            writes: Tally::default(),
            batches: Mutex::default(),
            deploys: Mutex::default(),
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn ask(&self) {
        self.load.ask(&self.stop, self.http, "steady");
    }

    /// New services, and changes of an old one.
    pub(crate) fn deploy(&self) {
        let template = |round: usize| {
            json!({"invokerIamDisabled": true, "template": {
                "annotations": {WINDOW.0: WINDOW.1},
                "containers": [{"image": "utsuwa.local/hello", "env": [{"name": "ROUND", "value": round.to_string()}]}],
            }})
        };
        let mut round = 0;
        while self.goes_on() {
            round += 1;
            let name = format!("made-{round}");
            let path = format!("{PARENT}/services?serviceId={name}");
            let answer = try_exchange(self.api, &api_request("POST", &path, &template(round)));
            if self.api_calls.count(&answer) {
                self.deploys.lock().acknowledged.push(name);
            }
            let path = format!("{PARENT}/services/patched");
            let answer = try_exchange(self.api, &api_request("PATCH", &path, &template(round)));
            if self.api_calls.count(&answer) {
                self.deploys.lock().round = round;
            }
            std::thread::park_timeout(DEPLOY_PACE);
        }
    }

    /// Batches of many short lines and of few long ones.
    pub(crate) fn write(&self) {
        let mut number = 0;
        while self.goes_on() {
            let (lines, bytes) = match number % 2 {
                0 => (SHORT_LINES, 0),
                _ => (LONG_LINES, LONG_BYTES),
            };
            let raw = format!(
                "GET /log?message=batch-{number}-&lines={lines}&bytes={bytes} HTTP/1.1\r\nhost: writer.localhost\r\nconnection: close\r\n\r\n"
            );
            self.writing.store(true, Ordering::Release);
            let answer = try_exchange(self.http, &raw);
            self.writing.store(false, Ordering::Release);
            let batch = Batch {
                lines,
                bytes,
                answered: self.writes.count(&answer),
            };
            self.batches.lock().push(batch);
            number += 1;
            std::thread::park_timeout(BATCH_PACE);
        }
    }

    /// The best moment for a kill: a batch is being written.
    pub(crate) fn until_writing(&self) {
        until("the writer to be at it", Duration::from_secs(10), || {
            self.writing.load(Ordering::Acquire).then_some(())
        });
    }

    /// Until everything is done again: requests, deploys and lines.
    pub(crate) fn until_flowing(&self) {
        let flows = |what: &str, tally: &Tally, more: usize| {
            let before = tally.answered();
            until(what, Duration::from_secs(20), || {
                (tally.answered() >= before + more).then_some(())
            });
        };
        flows("requests to be answered", &self.load, 20);
        flows("deploys to be acknowledged", &self.api_calls, 4);
        flows("lines to be written", &self.writes, 2);
    }
}
