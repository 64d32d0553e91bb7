//! Making a revision when the template changed (`cloud-run-spec.md` §1.7).

use utsuwa_decide::revision::automatic_name;
use utsuwa_model::revision::{Outcome, Revision, RevisionStatus};
use utsuwa_model::service::{Meta, Service};
use utsuwa_model::{RevisionId, RevisionKey};
use utsuwa_store::StoreError;

use crate::core::Core;
use crate::rounds::PassError;

/// The wanted name belongs to something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clash {
    pub(crate) message: String,
}

/// Which revision the template stands for, and whether it was made just now.
pub(crate) struct Created {
    pub(crate) current: Result<RevisionId, Clash>,
    pub(crate) made: bool,
}

impl Core {
    /// Finds the revision of the service's template, or makes it.
    pub(crate) async fn create_revision_if_changed(
        &self,
        service: &Service,
    ) -> Result<Created, PassError> {
        let revisions = self.store.revisions_of(&service.key)?;
        let found = |current| {
            Ok(Created {
                current: Ok(current),
                made: false,
            })
        };
        match &service.spec.template.revision {
            Some(name) => {
                if let Some(same) = revisions.iter().find(|r| r.key.revision == *name) {
                    if same.is_made_from(&service.spec.template) {
                        return found(name.clone());
                    }
                    return Ok(Created {
                        current: Err(taken(name)),
                        made: false,
                    });
                }
            }
            // A crash may have come between making it and saying so: what counts is what is there.
            None => {
                let newest = revisions.last();
                if let Some(newest) = newest.filter(|r| r.template.same_as(&service.spec.template))
                {
                    return found(newest.key.revision.clone());
                }
            }
        }
        self.create(service).await
    }

    async fn create(&self, service: &Service) -> Result<Created, PassError> {
        let explicit = service.spec.template.revision.clone();
        let name = match &explicit {
            Some(name) => name.clone(),
            None => automatic_name(
                &service.key.service,
                service.meta.generation,
                self.env.random(),
            )
            .parse()
            .map_err(|error| PassError(format!("name a revision: {error}")))?,
        };
        let revision = self.newborn(service, name.clone());
        self.env.before("create revision").await;
        match self.store.create_revision(revision).await {
            Ok(()) => Ok(Created {
                current: Ok(name),
                made: true,
            }),
            Err(StoreError::AlreadyExists { .. }) if explicit.is_some() => Ok(Created {
                current: Err(taken(&name)),
                made: false,
            }),
            // An automatic name was taken: the next pass draws another.
            Err(error) => Err(error.into()),
        }
    }

    fn newborn(&self, service: &Service, name: RevisionId) -> Revision {
        let now = self.env.wall();
        let template = service.spec.template.clone();
        Revision {
            key: RevisionKey {
                service: service.key.clone(),
                revision: name,
            },
            meta: Meta {
                uid: self.new_uid(),
                generation: 1,
                version: now,
                labels: template.labels.clone(),
                annotations: template.annotations.clone(),
                create_time: now,
                update_time: now,
                delete_time: None,
                creator: service.meta.last_modifier.clone(),
                last_modifier: service.meta.last_modifier.clone(),
                client: service.meta.client.clone(),
                client_version: service.meta.client_version.clone(),
            },
            service_generation: service.meta.generation,
            service_uid: service.meta.uid.clone(),
            template,
            status: RevisionStatus {
                conditions: crate::revision::newborn(now),
                outcome: Outcome::Pending,
                ..RevisionStatus::default()
            },
        }
    }
}

fn taken(name: &RevisionId) -> Clash {
    Clash {
        message: format!("Revision named '{name}' with different configuration already exists."),
    }
}
