//! The logs of instances: their layout on disk and how they are read.

pub mod layout;
