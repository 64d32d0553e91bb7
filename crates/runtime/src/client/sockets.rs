//! Sockets and process ids of running instances, kept ready.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use utsuwa_model::InstanceId;

use crate::sandbox::zygote::learnt;

/// Dial sockets asked for at once.
pub(super) const READY: u32 = 4;
/// Given back after a refused dial, no more than these are kept: however many dialled, they must not stay as descriptors.
const KEPT: usize = READY as usize;

/// Unconnected sockets by instance, so that a dial needs no round trip.
#[derive(Debug, Default)]
pub(super) struct SocketCache {
    instances: Mutex<HashMap<InstanceId, Ready>>,
    /// Process ids of what was started here, for showing.
    pub(super) pids: Mutex<HashMap<InstanceId, u32>>,
}

#[derive(Debug)]
struct Ready {
    address: SocketAddr,
    sockets: Vec<OwnedFd>,
    asking: bool,
    /// What it imports is noted there.
    learnt: Option<OwnedFd>,
}

impl SocketCache {
    /// The keeper says that the instance runs. Called in the order of its messages, so that what is told of an instance after
    /// its end makes no entry that nobody would ever remove.
    pub(super) fn lives(&self, id: &InstanceId, address: SocketAddr) {
        self.instances.lock().entry(id.clone()).or_insert(Ready {
            address,
            sockets: Vec::new(),
            asking: false,
            learnt: None,
        });
    }

    pub(super) fn learns(&self, id: &InstanceId, memory: OwnedFd) {
        if let Some(ready) = self.instances.lock().get_mut(id) {
            ready.learnt = Some(memory);
        }
    }

    pub(super) fn learnt(&self, id: &InstanceId) -> Option<Result<Vec<String>, String>> {
        let instances = self.instances.lock();
        let memory = instances.get(id)?.learnt.as_ref()?;
        Some(learnt(memory))
    }

    /// Keeps `sockets` for later dials; closes them if the instance has ended.
    pub(super) fn add(&self, id: &InstanceId, mut sockets: Vec<OwnedFd>) {
        if let Some(ready) = self.instances.lock().get_mut(id) {
            ready.asking = false;
            ready.sockets.append(&mut sockets);
        }
    }

    pub(super) fn give_back(&self, id: &InstanceId, socket: OwnedFd) {
        let mut instances = self.instances.lock();
        let Some(ready) = instances.get_mut(id) else {
            return;
        };
        if ready.sockets.len() < KEPT {
            ready.sockets.push(socket);
        }
    }

    /// One socket, and whether more should be asked for.
    pub(super) fn take(&self, id: &InstanceId) -> Option<(OwnedFd, SocketAddr, bool)> {
        let mut instances = self.instances.lock();
        let ready = instances.get_mut(id)?;
        let socket = ready.sockets.pop()?;
        // Not earlier: a program that starts shall not share the processors with the making of sockets it may never need.
        let ask = ready.sockets.is_empty() && !std::mem::replace(&mut ready.asking, true);
        Some((socket, ready.address, ask))
    }

    /// Whether more should be asked for now that none is ready; `false` while somebody asks, or for one that isn't known.
    pub(super) fn begins_to_ask(&self, id: &InstanceId) -> bool {
        let mut instances = self.instances.lock();
        let Some(ready) = instances.get_mut(id) else {
            return false;
        };
        ready.sockets.is_empty() && !std::mem::replace(&mut ready.asking, true)
    }

    pub(super) fn learn_pid(&self, id: &InstanceId, pid: u32) {
        if pid != 0 {
            self.pids.lock().insert(id.clone(), pid);
        }
    }

    pub(super) fn forget(&self, id: &InstanceId) {
        self.pids.lock().remove(id);
        self.instances.lock().remove(id);
    }

    pub(super) fn stop_asking(&self, id: &InstanceId) {
        if let Some(ready) = self.instances.lock().get_mut(id) {
            ready.asking = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn many_dials_at_once_leave_no_more_sockets_behind_than_are_kept_ready() {
        let cache = SocketCache::default();
        let id: InstanceId = format!("{:032x}", 1).parse().unwrap();
        assert!(!cache.begins_to_ask(&id), "not known");
        cache.lives(&id, "10.0.0.1:0".parse().unwrap());
        let asking = (0..100).filter(|_| cache.begins_to_ask(&id)).count();
        assert_eq!(asking, 1);
        cache.add(&id, (0..READY).map(|_| socket()).collect());
        // A hundred were refused.
        for _ in 0..100 {
            cache.give_back(&id, socket());
        }
        let ready = std::iter::from_fn(|| cache.take(&id)).count();
        assert_eq!(ready, KEPT);
    }
}
