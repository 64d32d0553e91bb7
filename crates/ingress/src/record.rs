//! One request from its arrival to its record: written exactly once, however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use utsuwa_model::Timestamp;

use crate::body::Meter;
use crate::client::UnderWay;
use crate::outside::Outside;
use crate::revision::Revision;
use crate::seam::{AnsweredBy, RequestRecord};

/// Status in the log of a request whose client left before there was an answer.
pub(crate) const CLIENT_GONE: u16 = 499;

/// The record under way. Dropping it writes it.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) outside: Arc<Outside>,
    pub(crate) arrived: Instant,
    pub(crate) meter: Option<Arc<Meter>>,
    /// Keeps its connection from being idle until the answer has ended.
    pub(crate) under_way: Option<UnderWay>,
    /// Whose request it is counted as.
    pub(crate) revision: Option<Arc<Revision>>,
    /// Why we answered ourselves, in one word.
    pub(crate) refused: Option<&'static str>,
    /// Boxed: it moves from the handler into the response body.
    pub(crate) record: Option<Box<RequestRecord>>,
}

impl Exchange {
    pub(crate) fn new(outside: Arc<Outside>, arrived: Instant, record: RequestRecord) -> Self {
        Self {
            outside,
            arrived,
            meter: None,
            under_way: None,
            revision: None,
            refused: None,
            record: Some(Box::new(record)),
        }
    }

    /// It is a request of `revision` from now on.
    pub(crate) fn of(&mut self, revision: &Arc<Revision>) {
        self.revision = Some(Arc::clone(revision));
        self.note(|record| record.revision = Some(revision.key.clone()));
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

impl Exchange {
    fn count(&self, record: &RequestRecord) {
        let other;
        let meters = match &self.revision {
            Some(revision) => &revision.meters,
            // Refused before a revision was chosen: rare enough for a lookup.
            None => {
                other = self.outside.rejected.of(record.service());
                &*other
            }
        };
        let bytes = (record.request_bytes, record.response_bytes);
        meters.ended(record.status, record.latency, bytes);
        if let Some(reason) = self.refused {
            meters.refused(reason);
        }
        if !record.queued.is_zero() {
            meters.waited(record.queued);
        }
        if let Some(cold) = &record.cold {
            meters.woken(cold);
        }
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
        self.count(&record);
        self.outside.log.record(record);
    }
}
