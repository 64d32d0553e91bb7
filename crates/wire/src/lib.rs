//! Google's shapes: generated messages, JSON mapping, field masks, path templates, status details.
//!
//! Owns: what `proto/` says, as Rust types ([`google`]) and as descriptors ([`pool`]), and the rules by which REST and gRPC
//! carry the same call: routes ([`rules`]), path templates ([`path`]), JSON ([`json`]), field masks ([`mask`]).
//!
//! Deliberately not here: behaviour, and our own types. This crate knows nothing of the crates above it.
//!
//! Invariants:
//! 1. One descriptor set is the source of everything: typed messages, routes, reflection.
//! 2. JSON is proto3's canonical form: int64 as strings, enum values by name, defaults left out.
//! 3. A parse error names the field that is wrong, never just a byte position.

pub mod json;
pub mod mask;
pub mod path;
pub mod rules;

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// The generated messages, clients and servers, one module per package.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    missing_debug_implementations,
    unreachable_pub,
    rustdoc::all,
    reason = "generated"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/google.rs"));
}
pub use generated::google;

/// The descriptor set of all packages, encoded. For server reflection.
pub static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// All message and service descriptors.
///
/// # Panics
/// Never in a program that was built: the bytes are decoded by this crate's tests.
pub fn pool() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(DESCRIPTORS)
            .expect("the descriptors were made by this crate's build")
    });
    &POOL
}

/// The type URL of a message in an `Any`.
#[must_use]
pub fn type_url(full_name: &str) -> String {
    format!("type.googleapis.com/{full_name}")
}

/// Packs a message into an `Any`.
#[must_use]
pub fn pack<M: prost::Message + prost::Name>(message: &M) -> prost_types::Any {
    prost_types::Any {
        type_url: type_url(&M::full_name()),
        value: message.encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_descriptors_keep_their_routes() {
        let routes = crate::rules::of_service("google.cloud.run.v2.Services").expect("served");
        assert_eq!(routes.len(), 8);
    }
}
