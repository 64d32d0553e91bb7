//! Sockets and process ids of running instances, kept ready.
//!
//! Invariant: one request for sockets of an instance is under way at most, and whoever finds none ready waits for it. Of hundreds of
//! requests that are let into a new instance at once, each would ask the keeper otherwise, and starts would queue behind them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use utsuwa_model::InstanceId;

use crate::driver::DriverError;
use crate::sandbox::zygote::learnt;

/// Dial sockets asked for beyond those that somebody waits for.
pub(super) const READY: u32 = 4;
/// Given back after a refused dial, no more than these are kept: however many dialled, they must not stay as descriptors.
const KEPT: usize = READY as usize;
/// Asked for at once. The keeper gives no more.
const AT_ONCE: u32 = 64;

/// What a dial begins with, or why not.
pub(super) type Socket = Result<(OwnedFd, SocketAddr), DriverError>;

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
    /// Who waits for one, oldest first.
    waiting: VecDeque<oneshot::Sender<Socket>>,
    asking: bool,
    /// What it imports is noted there.
    learnt: Option<OwnedFd>,
}

/// How a dial gets its socket.
#[derive(Debug)]
pub(super) enum Found {
    Ready(OwnedFd, SocketAddr),
    /// With the answer to the request that is under way, or that the caller is to make now.
    Soon(oneshot::Receiver<Socket>),
    /// The instance isn't known here: the keeper is.
    Unknown,
}

impl SocketCache {
    /// The keeper says that the instance runs. Called in the order of its messages, so that what is told of an instance after
    /// its end makes no entry that nobody would ever remove.
    pub(super) fn lives(&self, id: &InstanceId, address: SocketAddr) {
        self.instances.lock().entry(id.clone()).or_insert(Ready {
            address,
            sockets: Vec::new(),
            waiting: VecDeque::new(),
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

    /// Gives `sockets` to those who wait and keeps the rest for later dials; closes them if the instance has ended.
    pub(super) fn add(&self, id: &InstanceId, sockets: Vec<OwnedFd>) {
        let mut instances = self.instances.lock();
        let Some(ready) = instances.get_mut(id) else {
            return;
        };
        for socket in sockets {
            ready.hand(socket);
        }
    }

    pub(super) fn give_back(&self, id: &InstanceId, socket: OwnedFd) {
        let mut instances = self.instances.lock();
        let Some(ready) = instances.get_mut(id) else {
            return;
        };
        if ready.sockets.len() < KEPT {
            ready.hand(socket);
        }
    }

    /// A socket, and whether the caller is to ask for more.
    pub(super) fn take(&self, id: &InstanceId) -> (Found, bool) {
        let mut instances = self.instances.lock();
        let Some(ready) = instances.get_mut(id) else {
            return (Found::Unknown, false);
        };
        let found = match ready.sockets.pop() {
            Some(socket) => Found::Ready(socket, ready.address),
            None => {
                let (sender, receiver) = oneshot::channel();
                ready.waiting.push_back(sender);
                Found::Soon(receiver)
            }
        };
        // Not earlier: a program that starts shall not share the processors with the making of sockets it may never need.
        let ask = ready.sockets.is_empty() && !std::mem::replace(&mut ready.asking, true);
        (found, ask)
    }

    /// How many to ask for, while there are too few: for those who wait, and some to be ready. `None`: nothing is to be asked for
    /// any more, and who comes next asks again.
    pub(super) fn wanted(&self, id: &InstanceId, first: bool) -> Option<u32> {
        let mut instances = self.instances.lock();
        let ready = instances.get_mut(id)?;
        if !first && ready.waiting.is_empty() {
            ready.asking = false;
            return None;
        }
        let waiting = u32::try_from(ready.waiting.len()).unwrap_or(AT_ONCE);
        Some(waiting.saturating_add(READY).min(AT_ONCE))
    }

    /// Nothing came: those who wait are told, and who comes next asks again. An instance that the keeper doesn't know is
    /// forgotten in the same step: who came between would hear of the end of one that may live.
    pub(super) fn failed(&self, id: &InstanceId, error: &DriverError) {
        let gone = matches!(error, DriverError::NotFound(_));
        let waiting = {
            let mut instances = self.instances.lock();
            let Some(ready) = instances.get_mut(id) else {
                return;
            };
            ready.asking = false;
            let waiting = std::mem::take(&mut ready.waiting);
            if gone {
                instances.remove(id);
            }
            waiting
        };
        if gone {
            self.pids.lock().remove(id);
        }
        for one in waiting {
            // Fails only for one who left.
            let _unheard = one.send(Err(error.clone()));
        }
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
}

impl Ready {
    /// To whoever waits longest and is still there, else among the ready ones.
    fn hand(&mut self, socket: OwnedFd) {
        let mut offered = (socket, self.address);
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting.send(Ok(offered)) {
                Err(Ok(back)) => offered = back,
                Ok(()) | Err(Err(_)) => return,
            }
        }
        self.sockets.push(offered.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    fn cache() -> (SocketCache, InstanceId) {
        let (cache, id) = (SocketCache::default(), format!("{:032x}", 1));
        let id: InstanceId = id.parse().unwrap();
        assert!(matches!(cache.take(&id), (Found::Unknown, false)));
        cache.lives(&id, "10.0.0.1:0".parse().unwrap());
        (cache, id)
    }

    /// How many of those who wait have a socket now.
    fn heard(waiting: &mut [oneshot::Receiver<Socket>]) -> usize {
        let heard = waiting.iter_mut().map(|one| one.try_recv().is_ok());
        heard.filter(|heard| *heard).count()
    }

    /// As many as there are ready.
    fn ready(cache: &SocketCache, id: &InstanceId) -> usize {
        std::iter::from_fn(|| match cache.take(id).0 {
            Found::Ready(socket, _) => Some(socket),
            Found::Soon(_) | Found::Unknown => None,
        })
        .count()
    }

    #[test]
    fn many_dials_at_once_leave_no_more_sockets_behind_than_are_kept_ready() {
        let (cache, id) = cache();
        cache.add(&id, (0..READY).map(|_| socket()).collect());
        // A hundred were refused.
        for _ in 0..100 {
            cache.give_back(&id, socket());
        }
        assert_eq!(ready(&cache, &id), KEPT);
    }

    #[test]
    fn a_hundred_dials_at_once_are_two_requests() {
        let (cache, id) = cache();
        let (mut soon, mut asked) = (Vec::new(), 0);
        for _ in 0..100 {
            let (found, ask) = cache.take(&id);
            asked += u32::from(ask);
            match found {
                Found::Soon(receiver) => soon.push(receiver),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(asked, 1);
        assert_eq!(cache.wanted(&id, true), Some(AT_ONCE));
        cache.add(&id, (0..AT_ONCE).map(|_| socket()).collect());
        let served = heard(&mut soon);
        assert_eq!(served, AT_ONCE as usize);
        let rest = 100 - AT_ONCE + READY;
        assert_eq!(cache.wanted(&id, false), Some(rest));
        cache.add(&id, (0..rest).map(|_| socket()).collect());
        assert_eq!(cache.wanted(&id, false), None, "nobody waits any more");
        let served = heard(&mut soon);
        assert_eq!(served, 100 - AT_ONCE as usize);
        assert_eq!(ready(&cache, &id), READY as usize);
    }

    #[test]
    fn who_left_gets_no_socket_and_who_waits_hears_of_failure_and_end() {
        let (cache, id) = cache();
        let (Found::Soon(left), true) = cache.take(&id) else {
            panic!("nothing was ready");
        };
        let (Found::Soon(mut waits), false) = cache.take(&id) else {
            panic!("asked twice");
        };
        drop(left);
        cache.add(&id, vec![socket()]);
        assert!(waits.try_recv().unwrap().is_ok());
        let (Found::Soon(mut waits), false) = cache.take(&id) else {
            panic!("asked twice");
        };
        cache.failed(&id, &DriverError::Internal("no socket".to_owned()));
        assert!(waits.try_recv().unwrap().is_err());
        let (Found::Soon(mut waits), true) = cache.take(&id) else {
            panic!("it may be asked again");
        };
        cache.learn_pid(&id, 7);
        cache.failed(&id, &DriverError::Internal("no socket".to_owned()));
        assert!(waits.try_recv().unwrap().is_err());
        assert_eq!(
            cache.pids.lock().get(&id),
            Some(&7),
            "it lives, as far as anybody knows"
        );
        let (Found::Soon(mut waits), true) = cache.take(&id) else {
            panic!("it may be asked again");
        };
        cache.forget(&id);
        assert_eq!(
            waits.try_recv().unwrap_err(),
            oneshot::error::TryRecvError::Closed
        );
    }

    #[test]
    fn an_instance_that_the_keeper_does_not_know_is_forgotten_with_its_failure() {
        let (cache, id) = cache();
        cache.learn_pid(&id, 7);
        let (Found::Soon(mut waits), true) = cache.take(&id) else {
            panic!("nothing was ready");
        };
        cache.failed(&id, &DriverError::NotFound(id.clone()));
        assert!(matches!(
            waits.try_recv().unwrap(),
            Err(DriverError::NotFound(_))
        ));
        assert!(matches!(cache.take(&id), (Found::Unknown, false)));
        assert!(cache.pids.lock().is_empty());
    }
}
