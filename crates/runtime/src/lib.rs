//! Make containers exist and stop: images, start, stop, stats, logs; a real driver and a fake one.

pub mod client;
pub mod driver;
pub mod fake;
pub mod image;
pub mod keeper;
pub mod logs;
pub mod network;
pub mod precedence;
pub mod privilege;
pub mod rootless;
pub mod sandbox;
pub mod spawner;

pub use driver::{Driver, DriverError, InstanceEvent, Reclaimed, Usage};

#[cfg(test)]
#[path = "../../../tests/skip.rs"]
mod skip;
