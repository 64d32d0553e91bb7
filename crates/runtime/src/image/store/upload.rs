//! Uploads (in work).
/// What to load.
#[derive(Debug, Clone, Default)]
pub struct LoadRequest {}
