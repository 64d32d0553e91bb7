//! Images end to end: a real registry, a misbehaving one, uploads, and the sample.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "tests"
)]

mod bad_registry;
mod broken_download;
mod fake;
mod fixture;
mod real_registry;
mod registry_access;
mod restart;
mod sample;
#[path = "../../../../tests/skip.rs"]
mod skip;
mod upload;
