//! The data path in one process: real loopback sockets, scripted apps, no container anywhere.

mod affinity;
mod app;
mod bodies;
mod containers;
mod crowd;
mod edges;
mod errors;
mod floods;
mod health;
mod leaving;
mod life;
mod probed;
mod protocols;
mod queue;
mod rest;
mod scene;
mod smuggling;
