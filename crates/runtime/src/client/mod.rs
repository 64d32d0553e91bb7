//! The server's side of the keeper: the driver that starts real sandboxes.
//!
//! Owns: [`SandboxDriver`], its connection, and reconnecting when the keeper was replaced. Doesn't: need any privilege.
//!
//! Invariants
//! 1. Every request ends: with its answer, or with `Unavailable` about a second after the connection was lost. All
//!    requests can be repeated, so a lost connection repeats them.
//! 2. An exit is acknowledged only after a receiver got it; it is sent to receivers once.
//! 3. After the keeper was replaced, the listening sockets and internal sockets it lost are given back first.
//!
//! Failure: [`DriverError::Unavailable`] while no keeper answers; a driver that a newer server superseded says so for
//! good ([`SandboxDriver::superseded`]).

mod connection;
mod driver;
mod internal;
mod link;
mod listening;
mod shared;
mod sockets;
mod storage;

pub use driver::SandboxDriver;
pub use internal::InternalEvent;
pub use shared::Unpacked;
