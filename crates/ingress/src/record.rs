//! One request from its arrival to its record: written exactly once, however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use utsuwa_model::Timestamp;

use crate::body::Meter;
use crate::outside::Outside;
use crate::seam::{AnsweredBy, RequestRecord};

/// Status in the log of a request whose client left before there was an answer.
pub(crate) const CLIENT_GONE: u16 = 499;

/// The record under way. Dropping it writes it.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) outside: Arc<Outside>,
    pub(crate) arrived: Instant,
    pub(crate) meter: Option<Arc<Meter>>,
    /// Boxed: it moves from the handler into the response body.
    pub(crate) record: Option<Box<RequestRecord>>,
}

impl Exchange {
    pub(crate) fn new(outside: Arc<Outside>, arrived: Instant, record: RequestRecord) -> Self {
        Self {
            outside,
            arrived,
            meter: None,
            record: Some(Box::new(record)),
        }
    }

    /// Fills in the record while it is under way.
    pub(crate) fn note(&mut self, fill: impl FnOnce(&mut RequestRecord)) {
        if let Some(record) = &mut self.record {
            fill(record);
        }
    }

    /// Bytes of the response body went out.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.note(|record| record.response_bytes += bytes as u64);
    }

    /// The body ended before its end. The status that went out stays; the reason goes to the log.
    pub(crate) fn cut(&mut self, why: &str) {
        self.note(|record| {
            record.answered_by = AnsweredBy::Utsuwa {
                why: why.to_owned(),
            }
        });
    }

    /// When the request arrived, by the wall clock; the default once the record is gone.
    pub(crate) fn at(&self) -> Timestamp {
        self.record
            .as_ref()
            .map(|record| record.at)
            .unwrap_or_default()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        if record.status == 0 {
            record.status = CLIENT_GONE;
            record.answered_by = AnsweredBy::Utsuwa {
                why: "the client closed the connection before there was an answer".to_owned(),
            };
        }
        if let Some(meter) = &self.meter {
            record.request_bytes = meter.bytes.load(Ordering::Relaxed);
        }
        record.latency = self.arrived.elapsed();
        self.outside.log.record(*record);
    }
}
