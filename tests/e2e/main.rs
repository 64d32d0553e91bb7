//! The whole thing: the real program as root, real containers, real clients, kill −9 and restart.
//!
//! Every test starts a server of its own on free ports with its own data directory, and at its end takes it down, checks that the
//! kernel holds what it held before, and reads the server's log: an unexpected WARN or ERROR fails the test.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests"
)]

mod acme;
mod archives;
mod attacks;
mod bad_apps;
mod bad_images;
mod bad_input;
mod browser;
mod chaos;
mod cli;
mod clients;
mod containers;
mod contract;
mod deploy;
mod ends;
mod endurance;
mod first_hour;
mod flask;
mod full_disk;
mod gcloud;
mod gvisor;
mod handover;
mod harness;
mod health;
mod hostile;
mod idle;
mod killed_helpers;
mod lifecycle;
mod limits;
mod meant;
mod missing_kernel;
mod observed;
mod overtaken;
mod private_registry;
mod proxied;
mod real_clients;
mod reference;
mod replace_refused;
mod rootless;
mod scale;
#[path = "../skip.rs"]
mod skip;
mod suspend;
mod tiers;
mod tls;
mod trust;
mod typed;
mod unwritten;
mod volumes;
mod zygote;
