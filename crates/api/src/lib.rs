//! The Google-compatible edge: REST and gRPC handlers, authentication, authorization, conversion, error mapping.
//!
//! Owns: everything between a byte on the API port and a transaction in the store, and every answer a caller gets (law 5).
//!
//! Deliberately not here: loops and containers (`control`, `runtime`); what a request needs from them it reads through the
//! traits in [`seam`]. Defaults and validation are the model's, Google's shapes are `utsuwa-wire`'s.
//!
//! Invariants:
//! 1. Every answer on a Google path is Google's JSON or a gRPC status; a method we haven't built answers 400 `UNIMPLEMENTED`
//!    (decision 17), an unknown path 404, never a 5xx.
//! 2. Internal text never reaches a caller: [`error::ApiError`] keeps it apart and logs it once.
//! 3. The edge speaks to the loops through the store alone.
//! 4. Only known host names are answered (decision 16): see [`http`].
//!
//! Failure: a handler's error becomes a `google.rpc.Status` in one place ([`error`]); a panic in one request ends only that.

pub mod admin;
pub mod error;
pub mod http;
pub mod iam;
pub mod intent;
pub mod preflight;
mod progress;
pub mod proxy;
pub mod seam;
mod state;
#[cfg(test)]
pub(crate) mod testing;
pub mod transcode;
pub mod v1;
pub mod v2;

pub use error::ApiError;
pub use http::{CallContext, serve};
pub use state::{Addresses, ApiState, Clock, Readiness, SystemClock};
