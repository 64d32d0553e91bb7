//! What is driven: keys, who waits for a pass, and what a pass has to say.

use std::time::Duration;

use utsuwa_model::domain::DomainName;
use utsuwa_model::{RevisionKey, ServiceKey, Timestamp};

/// One line of work: the loop and what it is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// How many instances a revision has.
    Instances(RevisionKey),
    /// Proving a revision and keeping it startable.
    Revision(RevisionKey),
    /// A service: its newest revision, its routes, its status, its end.
    Service(ServiceKey),
    /// A custom domain: its status and its certificate.
    Domain(DomainName),
    /// Unneeded image content.
    Images,
    /// What is kept of services that don't exist.
    Logs,
}

impl Key {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Instances(_) => "instances",
            Self::Revision(_) => "revision",
            Self::Service(_) => "service",
            Self::Domain(_) => "domain",
            Self::Images => "images",
            Self::Logs => "logs",
        }
    }

    /// What the line is about, as text.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::Instances(key) | Self::Revision(key) => key.to_string(),
            Self::Service(key) => key.to_string(),
            Self::Domain(name) => name.to_string(),
            Self::Images | Self::Logs => "all".to_owned(),
        }
    }

    /// A pass that takes longer is given up: its outcome is unknown and looked up by the next one.
    pub(super) fn limit(&self) -> Duration {
        match self {
            // May copy a whole root file system. Pulls are left by their passes, and have a limit of their own.
            Self::Revision(_) => Duration::from_secs(1800),
            Self::Instances(_) | Self::Service(_) => Duration::from_secs(60),
            // An authority is asked, and looks for itself; whoever asks has a limit of their own.
            Self::Domain(_) => Duration::from_secs(300),
            Self::Images | Self::Logs => Duration::from_secs(600),
        }
    }
}

/// Who waits for the pass. There is no default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// A request waits for an instance.
    Wake,
    /// A user or an instance waits.
    Soon,
    /// Nobody waits.
    Housekeeping,
    /// The slow look at everything; should find nothing.
    Sweep,
}

/// What a pass has to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) because: String,
    pub(crate) wake_at: Option<Timestamp>,
    /// What it did to the world or the store. Zero at rest.
    pub(crate) actions: usize,
    /// The subject is gone: the line is forgotten.
    pub(crate) gone: bool,
}

/// Why a pass did not come to its end. It is repeated, whatever the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PassError(pub(crate) String);
