//! Make containers exist and stop: images, start, stop, stats, logs; a real driver and a fake one.

pub mod driver;
pub mod privilege;
pub mod image;
pub mod network;
pub mod spawner;

pub use driver::{Driver, DriverError, InstanceEvent, Usage};
