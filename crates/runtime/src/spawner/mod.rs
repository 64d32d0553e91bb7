//! The spawner role: makes sandboxes and starts instances in them, at the keeper's request.

pub mod error;
pub mod protocol;

pub use error::SpawnError;

use serde::{Deserialize, Serialize};

/// Descriptor on which a spawner finds its [`protocol::Channel`] to the keeper.
pub const CHANNEL_FD: i32 = 3;

/// Which requests a spawner serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `Prepare`, `Start`, and letting go of layers: nothing slow, so that a wake never waits.
    Starter,
    /// Everything else.
    Housekeeper,
}

/// All a spawner needs to know. The keeper runs `internal spawner JSON` with the channel as descriptor [`CHANNEL_FD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnerConfig {
    pub role: Role,
    /// The server's ID: carried by the name of every kernel object.
    pub id: String,
    /// `/run/utsuwa/ID`.
    pub runtime_dir: std::path::PathBuf,
    /// `images` in the data directory: `layers/`, `shifted/`.
    pub images_dir: std::path::PathBuf,
    /// The gateway; `None` gives sandboxes no network but loopback (their [`NetInfo`](crate::network::NetInfo) is then all zeros).
    pub network: Option<crate::network::NetConfig>,
    /// What to re-execute as (`/proc/self/exe` with these arguments) when the keeper is gone; empty: exit.
    pub on_keeper_gone: Vec<String>,
}
