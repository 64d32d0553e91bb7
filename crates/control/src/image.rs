//! Collecting image content that no revision needs any more. Slow, and nobody waits for it.

use std::collections::BTreeSet;

use utsuwa_model::revision::Outcome;

use crate::core::Core;
use crate::rounds::{PassError, Report};

impl Core {
    /// One pass: rows that no revision names go, then the content that no row names.
    pub(crate) async fn images_pass(&self) -> Result<Report, PassError> {
        let images = self.store.images()?;
        let mut needed = BTreeSet::new();
        for key in self.store.all_service_keys()? {
            for revision in self.store.revisions_of(&key)? {
                needed.extend(revision.status.image_digests.iter().cloned());
                if revision.status.image_digests.is_empty()
                    && revision.status.outcome == Outcome::Pending
                {
                    // Being pulled: its content isn't named anywhere yet. Collecting waits for the next time.
                    let wake_at = Some(self.env.now().plus(self.settings.collect));
                    let because = format!("{} is being pulled: not now", revision.key.revision);
                    return Ok(Report {
                        because,
                        wake_at,
                        ..Report::default()
                    });
                }
            }
        }
        let (kept, unneeded): (Vec<_>, Vec<_>) = images
            .into_iter()
            .partition(|image| needed.contains(&image.pinned));
        for image in &unneeded {
            self.env.before("remove image").await;
            self.store.remove_image(&image.pinned).await?;
        }
        let manifests: BTreeSet<String> = kept.iter().map(|image| image.manifest.clone()).collect();
        let because = format!(
            "{} images are needed, {} were not",
            manifests.len(),
            unneeded.len()
        );
        self.images.collect(manifests.into_iter().collect()).await;
        let wake_at = Some(self.env.now().plus(self.settings.collect));
        Ok(Report {
            because,
            wake_at,
            actions: unneeded.len(),
            gone: false,
        })
    }
}
