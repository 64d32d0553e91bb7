use std::process::Child;

use super::*;
use crate::keeper::config::KeeperConfig;
use crate::keeper::core::Parts;
use crate::spawner::protocol::Reply;

/// A keeper without kernel objects of its own; the test is its housekeeper.
pub(crate) struct Imagined {
    pub(crate) keeper: Keeper,
    asked: Channel,
    /// In the housekeeper's place, to be killed.
    process: Child,
    _folder: tempfile::TempDir,
}

impl Imagined {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = KeeperConfig::new(folder.path(), 0, 0, None).unwrap();
        // An absolute path takes the place of the directory it is joined to.
        std::fs::create_dir(folder.path().join("run")).unwrap();
        config.id = folder.path().join("run").display().to_string();
        config.server_gid = rustix::process::getegid().as_raw();
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        let (listen, _) = Channel::pair().unwrap();
        let (lock, listen) = (file(), listen.into());
        let parts = Parts {
            config,
            lock,
            listen,
        };
        let mut keeper = Keeper::with(parts, None).unwrap();
        let (ours, asked) = Channel::pair().unwrap();
        let process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let spawner = |process| Spawner {
            process,
            failures: 0,
            last_words: None,
        };
        let housekeeper = Process {
            pid: process.id(),
            pidfd: pidfd_open(to_pid(process.id()).unwrap(), PidfdFlags::empty()).unwrap(),
            link: Link::new(ours).unwrap(),
            pending: HashMap::new(),
            next_request: 1,
        };
        keeper.spawners = vec![spawner(None), spawner(Some(housekeeper))];
        Self {
            keeper,
            asked,
            process,
            _folder: folder,
        }
    }

    /// The housekeeper answers what it is asked next.
    pub(crate) fn answer(&mut self, result: Result<Reply, SpawnError>) {
        let (request, _) = self.asked.receive::<Request>().unwrap().unwrap();
        let id = request.id;
        self.asked.send(&Response { id, result }, &[]).unwrap();
        self.keeper.serve_spawner(HOUSEKEEPER);
    }

    /// Waits until the keeper has killed the housekeeper, which is told to the keeper then.
    pub(crate) fn housekeeper_ends(&mut self) {
        use rustix::event::{PollFd, PollFlags, poll};
        let pidfd = &self.keeper.spawner(HOUSEKEEPER).unwrap().pidfd;
        poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None).unwrap();
        self.keeper.spawner_ended(HOUSEKEEPER);
    }
}

impl Drop for Imagined {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
