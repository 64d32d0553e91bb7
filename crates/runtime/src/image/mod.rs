//! Images: from a reference to layers on disk.

pub mod digest;
pub mod error;
pub mod unpack;
