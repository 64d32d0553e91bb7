//! The data path: TLS, host lookup, caller check, queue, instance choice, forwarding, request log.
//!
//! Owns: every request from its first byte to its record, and the one count of what is in flight (`revision`).
//! Deliberately not here: the store and the API (law 1 of the crate graph), starting and stopping instances (it asks through
//! [`seam::Wake`]), and files (records go to [`seam::RequestLog`]).
//!
//! Invariants:
//! 1. One path for traffic: every request waits, is counted and is forwarded in the same way, at zero instances and at a
//!    hundred (law 4).
//! 2. Never more than `concurrency` requests in one instance.
//! 3. Every accepted request ends exactly once, with exactly one record.
//! 4. After [`Ingress::retire`] answered `true`, nothing of ours is inside the instance, and nothing will be.
//! 5. An instance takes requests only after the ingress itself reached it.

mod affinity;
mod answer;
mod body;
mod budget;
mod chunk;
mod client;
mod connection;
mod counts;
mod deadline;
mod ending;
mod examine;
mod failing;
mod farewell;
mod flaw;
mod forward;
mod front;
mod gate;
mod gated;
mod greeting;
mod grpc;
mod grpc_edge;
mod hall;
mod handle;
mod handover;
mod headers;
mod health;
mod instance;
mod interim;
mod leaving;
mod meter;
mod metrics;
mod outside;
mod pace;
mod pause;
mod places;
mod probe;
mod proxied;
mod queued;
mod record;
mod request_line;
mod rest;
mod revision;
mod revisions;
mod scanners;
pub mod seam;
mod seldom;
mod serve;
mod served;
mod settings;
mod slot;
mod source;
mod stay;
mod stream;
mod table;
pub mod tls;
mod told;
mod trace;
mod upstream;
mod waiting;
mod watched;
mod websocket;

#[cfg(test)]
#[path = "../../../tests/skip.rs"]
mod skip;

#[cfg(test)]
mod tests;

pub use front::{Ingress, Refusal};
pub use handover::queue;
pub use places::Crowded;
pub use proxied::{Network, NetworkError};
pub use serve::Scheme;
pub use settings::IngressSettings;

pub(crate) use front::Shared;
