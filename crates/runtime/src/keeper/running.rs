//! Which servers' keepers run here, for whoever looks for a server without knowing its data directory.
//!
//! Doesn't: look into what other users have: root's are told to root, a user's to the user.

use std::fs;
use std::path::{Path, PathBuf};

use super::config::{KeeperConfig, runtime_base};
use super::visitor::Visitor;
use crate::rootless;

/// The data directories over which a keeper of this user runs, whether there is a server or not; sorted. What can't be read is left
/// out.
#[must_use]
pub fn running() -> Vec<PathBuf> {
    let uid = rootless::user_outside().unwrap_or_else(|| rustix::process::getuid().as_raw());
    let places: Vec<PathBuf> = match uid {
        0 => entries(&runtime_base())
            .into_iter()
            .filter(|run| answers(run))
            .collect(),
        uid => rootless::inhabited(uid),
    };
    let mut found: Vec<PathBuf> = places.iter().filter_map(|run| data_dir(run)).collect();
    found.sort();
    found.dedup();
    found
}

/// What lies in a directory of servers.
pub(crate) fn entries(base: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Whether a keeper listens in the runtime directory `run`: its files alone may be those of one that was killed.
fn answers(run: &Path) -> bool {
    let id = run.file_name().and_then(|name| name.to_str());
    id.is_some_and(|id| Visitor::connect(&run.join("keeper.sock"), id).is_ok())
}

fn data_dir(run: &Path) -> Option<PathBuf> {
    let text = fs::read(run.join("keeper.json")).ok()?;
    let config: KeeperConfig = serde_json::from_slice(&text).ok()?;
    Some(config.data_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_listens_at_is_no_keeper() {
        let base = tempfile::tempdir().unwrap();
        let run = base.path().join("ab12");
        fs::create_dir(&run).unwrap();
        let config = KeeperConfig::new(base.path(), 0, 0, None).unwrap();
        fs::write(
            run.join("keeper.json"),
            serde_json::to_vec(&config).unwrap(),
        )
        .unwrap();
        let all = entries(base.path());
        assert!(all.contains(&run));
        assert!(!all.iter().any(|run| answers(run)));
        assert_eq!(data_dir(&run).as_deref(), Some(base.path()));
        fs::write(run.join("keeper.json"), "{").unwrap();
        assert_eq!(data_dir(&run), None);
    }
}
