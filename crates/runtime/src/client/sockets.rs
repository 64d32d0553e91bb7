//! Sockets and process ids of running instances, kept ready.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use utsuwa_model::InstanceId;

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
}

impl SocketCache {
    /// The keeper says that the instance runs. Called in the order of its messages, so that what is told of an instance after
    /// its end makes no entry that nobody would ever remove.
    pub(super) fn lives(&self, id: &InstanceId, address: SocketAddr) {
        self.instances.lock().entry(id.clone()).or_insert(Ready {
            address,
            sockets: Vec::new(),
            asking: false,
        });
    }

    /// Keeps `sockets` for later dials; closes them if the instance has ended.
    pub(super) fn add(&self, id: &InstanceId, mut sockets: Vec<OwnedFd>) {
        if let Some(ready) = self.instances.lock().get_mut(id) {
            ready.asking = false;
            ready.sockets.append(&mut sockets);
        }
    }

    pub(super) fn give_back(&self, id: &InstanceId, socket: OwnedFd) {
        if let Some(ready) = self.instances.lock().get_mut(id) {
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
