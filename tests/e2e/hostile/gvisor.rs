//! What gets through on gVisor and is no way out.

/// The attempt, and what it has got then. gVisor answers these calls itself; none reaches the host's kernel.
pub(crate) const OF_ITS_OWN: &[(&str, &str)] = &[];
