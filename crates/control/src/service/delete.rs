//! The end of a service: hosts first, then instances, then revisions, then what was kept for it and of it, then the row.
//! Until the row is gone the pass is repeated, whatever happens in between, and nobody can make another one of its name.

use std::time::Duration;

use utsuwa_model::service::Service;

use crate::core::Core;
use crate::rounds::{Key, PassError, Priority, Report};

/// Requests that were cut off and the ends of instances are written down within milliseconds.
const LATE_LINES: Duration = Duration::from_secs(10);

impl Core {
    /// One step of the cascade. Instances that end ask for the next one.
    pub(crate) async fn delete_pass(&self, service: &Service) -> Result<Report, PassError> {
        let key = &service.key;
        let mut actions = 0;
        if self
            .world
            .with(|inner| inner.services.remove(key).is_some())
        {
            self.mark_routes(key);
            self.publish();
            self.ask_domains_of(key);
            actions += 1;
        }
        let mut left = 0;
        for revision in self.store.revisions_of(key)? {
            self.end_revision(&revision.key);
            if self
                .world
                .revision(&revision.key, |state| state.instances.len())
                .is_some_and(|count| count > 0)
            {
                left += 1;
                continue;
            }
            self.env.before("remove revision").await;
            self.store.remove_revision(&revision.key).await?;
            // Its last pass, after which nothing is said of it any more.
            self.ask_revision(&revision.key);
            actions += 1;
        }
        if left > 0 {
            // The instance loop asks for this service when the last instance is gone; this is only the belt to the braces.
            let wake_at = Some(self.env.now().plus(Duration::from_secs(1)));
            return Ok(Report {
                because: format!("waits for instances of {left} revisions"),
                wake_at,
                actions,
                gone: false,
            });
        }
        self.logs
            .remove(key.clone(), None)
            .await
            .map_err(PassError)?;
        if let Some(uid_base) = self.store.known_uid_base(key)? {
            self.driver.release(uid_base).await?;
        }
        // What is said of it from now on (the end of its last instance) nobody would remove.
        self.ask_after(Key::Logs, LATE_LINES, Priority::Housekeeping);
        self.env.before("remove service").await;
        self.store.remove_service(key).await?;
        self.world.with(|inner| inner.latest.remove(key));
        Ok(Report {
            because: "removed".to_owned(),
            wake_at: None,
            actions: actions + 1,
            gone: true,
        })
    }
}
