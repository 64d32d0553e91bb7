//! The data path in one process: real loopback sockets, scripted apps, no container anywhere.

mod affinity;
mod answers;
mod app;
mod bodies;
mod containers;
mod crowd;
mod edges;
mod errors;
mod floods;
mod handover;
mod health;
mod idle;
mod leaving;
mod life;
mod metrics;
mod probed;
mod protocols;
mod proxied;
mod queue;
mod rest;
mod scene;
mod sleepers;
mod smuggling;
mod startup;
mod tls;

pub(crate) use answers::Script;
