//! Removing what is kept of services that don't exist. Slow, and nobody waits for it.
//!
//! A service's own end removes its logs; this finds what was written after that, and what earlier builds left.

use std::collections::BTreeSet;

use crate::core::Core;
use crate::rounds::{PassError, Report};

impl Core {
    /// One pass over everything that is kept.
    pub(crate) async fn logs_pass(&self) -> Result<Report, PassError> {
        // In this order: a service that is made meanwhile finds only what was there before it, and what it writes is newer.
        let before = self.env.wall();
        let known = self.logs.known().await.map_err(PassError)?;
        let existing: BTreeSet<_> = self.store.all_service_keys()?.into_iter().collect();
        let (mut removed, mut failed) = (0, None);
        for service in known.iter().filter(|key| !existing.contains(key)) {
            self.env.before("remove logs").await;
            // One that can't go yet doesn't keep the others.
            match self.logs.remove(service.clone(), Some(before)).await {
                Ok(()) => removed += 1,
                Err(why) => failed = Some(why),
            }
        }
        if let Some(why) = failed {
            return Err(PassError(why));
        }
        let wake_at = Some(self.env.now().plus(self.settings.collect));
        Ok(Report {
            because: format!(
                "something is kept of {} services, of which {removed} don't exist",
                known.len()
            ),
            wake_at,
            actions: removed,
            gone: false,
        })
    }
}
