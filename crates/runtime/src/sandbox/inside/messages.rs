//! What the starter and the process in a sandbox say to each other.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utsuwa_model::instance::{Kernel, MemoryVolume, MountPoint, Zygote};

use crate::spawner::SpawnError;

/// To the process in the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToSandbox {
    /// It is in its cgroups: go to the waiting room.
    Attached,
    /// Become an instance. Descriptors: `[root, shm, stdout, stderr]`, then `runsc` for gVisor, or shared volumes, or one more
    /// for a zygote.
    Launch(Box<Launch>),
    /// After [`Self::Launch`], if that has host directories. Descriptors: a mount for each.
    HostDirs,
}

/// The program and how to run it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: String,
    #[serde(default)]
    pub(crate) volumes: Vec<MemoryVolume>,
    /// Where the directories of the host are to be seen, whose mounts follow.
    #[serde(default)]
    pub(crate) host_dirs: Vec<MountPoint>,
    #[serde(default)]
    pub(crate) kernel: Kernel,
    /// Names of the instance's containers, where there are several: each reaches the others on loopback.
    #[serde(default)]
    pub(crate) containers: Vec<String>,
    #[serde(default)]
    pub(crate) zygote: Option<Zygote>,
    /// The image's users are all one: there is no other id.
    #[serde(default)]
    pub(crate) one_id: bool,
    /// Most processes of one user of the image, where no cgroup limits them together.
    #[serde(default)]
    pub(crate) processes: Option<u32>,
}

/// From the process in the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum FromSandbox {
    /// In the waiting room.
    Staged,
    /// The next thing is exec: end of file after this means it happened. `mounts`: time until the root was complete.
    /// `volumes`: so many it has. `kernel`: the one its program runs on.
    Executing {
        mounts: Duration,
        #[serde(default)]
        volumes: usize,
        #[serde(default)]
        kernel: Kernel,
        /// Whether it does what [`Launch::zygote`] asked for.
        #[serde(default)]
        zygote: bool,
    },
    Failed(SpawnError),
}
