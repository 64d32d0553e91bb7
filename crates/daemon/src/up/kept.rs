//! What is kept of services, as the loops see it: what their instances wrote (the keeper has it) and their journals.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use utsuwa_model::{ServiceKey, Timestamp};
use utsuwa_runtime::client::SandboxDriver;
use utsuwa_runtime::logs::layout;

use super::journal::Journal;

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) driver: SandboxDriver,
    pub(super) journal: Journal,
    /// Where what instances wrote lies.
    pub(super) logs: PathBuf,
}

impl utsuwa_control::seam::Logs for Kept {
    fn known(&self) -> BoxFuture<'_, Result<Vec<ServiceKey>, String>> {
        let roots = [self.logs.clone(), self.journal.root().to_owned()];
        Box::pin(async move {
            let look = move || {
                let mut known = BTreeSet::new();
                for root in roots {
                    let found = layout::services(&root)
                        .map_err(|error| format!("list {}: {error}", root.display()))?;
                    known.extend(found);
                }
                Ok(known.into_iter().collect())
            };
            tokio::task::spawn_blocking(look)
                .await
                .map_err(|error| format!("list logs: {error}"))?
        })
    }

    fn remove(
        &self,
        service: ServiceKey,
        before: Option<Timestamp>,
    ) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.driver
                .remove_logs(&service, before)
                .await
                .map_err(|error| error.to_string())?;
            self.journal.remove(service, before).await
        })
    }
}
