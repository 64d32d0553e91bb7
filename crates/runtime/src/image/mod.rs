//! Images: from a reference to layers on disk.
//!
//! Owns: names of images ([`reference`]), registries, the content-addressed store ([`ImageStore`]), the role that unpacks
//! layers ([`unpack`]), the built-in sample. Doesn't: mount layers, decide which images are needed.
//!
//! The store runs in the unprivileged server; layers are made through a [`LayerUnpacker`], in production by the keeper's
//! housekeeper, whose unpacking child has no rights outside its user namespace.

mod archive;
mod credentials;
pub mod digest;
mod error;
mod hello;
mod layers;
mod manifest;
mod progress;
pub mod reference;
mod registry;
mod store;
pub mod unpack;

pub use archive::pack_oci_directory;
pub use credentials::{Credential, Credentials, DockerConfig};
pub use digest::Digest;
pub use error::{ErrorClass, PullError, Shown};
pub use layers::{InProcessUnpacker, LayerUnpacker};
pub use progress::{LayerProgress, LayerState, PullProgress};
pub use reference::{HELLO, LOCAL_REGISTRY, Reference, RewriteRule, rewrite};
pub use registry::RegistrySettings;
pub use store::{Collected, ImageStore, Settings, StoredImage};
pub use unpack::{Limits, UnpackError, UnpackReport};
