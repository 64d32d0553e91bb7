//! Requests in a loop, counted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::try_exchange;

/// How requests fared.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    answered: AtomicUsize,
    refused: AtomicUsize,
    broken: Mutex<Vec<String>>,
}

/// A [`Tally`] at one moment.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) answered: usize,
    /// Connections that were refused.
    pub(crate) refused: usize,
    /// What came instead of an answer, at most [`SHOWN`] of them in words.
    pub(crate) broken: Vec<String>,
}

/// Enough to see what happened.
const SHOWN: usize = 20;

impl Tally {
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// What was counted since the last look.
    pub(crate) fn take(&self) -> Count {
        Count {
            answered: self.answered.swap(0, Ordering::Relaxed),
            refused: self.refused.swap(0, Ordering::Relaxed),
            broken: std::mem::take(&mut self.broken.lock()),
        }
    }

    /// Counts one exchange; `true` if it was answered with 200.
    pub(crate) fn count(&self, result: &std::io::Result<(u16, String, String)>) -> bool {
        match result {
            Ok((200, _, _)) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            other => {
                let mut broken = self.broken.lock();
                if broken.len() < SHOWN {
                    broken.push(format!("{other:?}"));
                }
            }
        }
        false
    }

    /// Asks `name` in a loop until told to stop.
    pub(crate) fn ask(&self, stop: &AtomicBool, address: SocketAddr, name: &str) {
        let raw = format!("GET / HTTP/1.1\r\nhost: {name}.localhost\r\nconnection: close\r\n\r\n");
        while !stop.load(Ordering::Relaxed) {
            self.count(&try_exchange(address, &raw));
        }
    }
}
