//! When the keeper's connection is lost: connecting again, and what is said and given to the next keeper first.
//!
//! Invariants:
//! 1. A keeper that comes back is found within a quarter of the time it was away.
//! 2. Attempts that fail make no load: neither those to connect, nor connections that end as soon as they are there, as they do
//!    while this process has no free descriptors for what the keeper sends.
//! 3. A loss is told once, however many attempts it takes, and so is its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::super::link::{ConnectError, KeeperLink};
use super::Connection;
use crate::driver::DriverError;
use crate::keeper::protocol::Op;

/// Requests wait this long for a keeper to come back.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between the first attempts to connect; each next pause is a quarter longer.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(250);
/// A connection that lasts so long is a good one: the next loss is another one.
const STEADY: Duration = Duration::from_secs(1);
/// Losses that follow each other faster are told as one.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// How often attempts are made, and told of.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    /// When the good connection before ended.
    outage: Instant,
    pause: Option<Duration>,
    told: Option<Instant>,
    /// The last loss was told, and its end was not.
    open: bool,
}

impl Pace {
    pub(super) const fn connected(at: Instant) -> Self {
        Self {
            since: at,
            outage: at,
            pause: None,
            told: None,
            open: false,
        }
    }

    /// A connection ended. Whether to tell of it.
    fn lost(&mut self, now: Instant) -> bool {
        if now - self.since >= STEADY {
            self.pause = None;
            self.outage = now;
        } else {
            self.failed();
        }
        let tell = self.told.is_none_or(|told| now - told >= TELL_AGAIN);
        if tell {
            self.told = Some(now);
        }
        self.open = tell;
        tell
    }

    /// Connected again. Whether to tell of it: only of the end of a loss that was told.
    const fn regained(&mut self, now: Instant) -> bool {
        self.since = now;
        std::mem::replace(&mut self.open, false)
    }

    /// Since when requests that were lost with their connection have waited.
    pub(super) const fn outage(&self) -> Instant {
        self.outage
    }

    fn failed(&mut self) {
        let longer = |pause: Duration| (pause * 5 / 4).min(LONGEST);
        self.pause = Some(self.pause.map_or(SHORTEST, longer));
    }
}

impl Connection {
    /// Requests without an answer are sent again to the next keeper.
    pub(super) fn lost(&mut self, error: &io::Error) {
        if self.shared.gave_place.load(Ordering::Acquire) {
            tracing::debug!(%error, "the keeper's connection ended; the next server has the place");
        } else if self.pace.lost(Instant::now()) {
            tracing::warn!(%error, "the keeper's connection ended; connecting again");
        } else {
            tracing::debug!(%error, "the keeper's connection ended again");
        }
        self.link = None;
        let mut unanswered: Vec<_> = self.pending.drain().collect();
        unanswered.sort_by_key(|(id, _)| *id);
        for (_, call) in unanswered.into_iter().rev() {
            // Not from now on: with a connection that comes and goes no request would ever end.
            self.waiting.push_front((self.pace.outage, call));
        }
    }

    /// `false`: nobody needs the connection any more.
    pub(super) async fn reconnect(&mut self) -> bool {
        let mut refused = None;
        loop {
            if let Some(pause) = self.pace.pause
                && !self.wait(pause).await
            {
                return false;
            }
            // A driver that nobody holds any more must not come back and supersede the next one; nor one that made place for it.
            if self.calls.is_closed() || self.shared.gave_place.load(Ordering::Acquire) {
                return false;
            }
            let holds = self.internal_sockets.keys().copied().collect();
            let shared = Arc::clone(&self.shared);
            match KeeperLink::connect(&shared.socket, &shared.data_id, &shared.build, holds).await {
                Ok(link) => {
                    self.resume(link).await;
                    return true;
                }
                Err(ConnectError::Refused(reason)) => {
                    if refused.as_ref() != Some(&reason) {
                        tracing::error!(%reason, "the keeper refuses this server");
                        refused = Some(reason);
                    }
                }
                Err(ConnectError::Io(error)) => tracing::debug!(%error, "no keeper yet"),
            }
            self.pace.failed();
            self.give_up_old();
        }
    }

    /// Goes on over `link`, if it stays.
    async fn resume(&mut self, link: KeeperLink) {
        let pid = link.keeper_pid;
        self.shared
            .never_freezes
            .lock()
            .clone_from(&link.never_freezes);
        if self.pace.regained(Instant::now()) {
            tracing::info!(pid, "connected to the keeper again");
        } else {
            tracing::debug!(pid, "connected to the keeper once more");
        }
        self.link = Some(link);
        if let Err(error) = self.give_back().await {
            self.lost(&error);
            self.give_up_old();
            return;
        }
        let waiting: Vec<_> = self.waiting.drain(..).collect();
        for (since, call) in waiting {
            if call.answer.is_closed() {
                continue;
            }
            if self.link.is_some() {
                self.send(call).await;
            } else {
                // Lost again meanwhile; it has waited since it was first tried.
                self.waiting.push_back((since, call));
            }
        }
        self.give_up_old();
    }

    /// Takes calls meanwhile. `false`: nobody makes any more.
    async fn wait(&mut self, pause: Duration) -> bool {
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return true,
                call = self.calls.recv() => match call {
                    Some(call) => self.waiting.push_back((Instant::now(), call)),
                    None => return false,
                },
            }
        }
    }

    fn give_up_old(&mut self) {
        while let Some((since, _)) = self.waiting.front()
            && since.elapsed() >= PATIENCE
        {
            if let Some((_, call)) = self.waiting.pop_front() {
                let text = format!(
                    "it does not answer at {}; `utsuwa up` as root starts it again",
                    self.shared.socket.display()
                );
                let _ = call.answer.send(Err(DriverError::Unavailable(text)));
            }
        }
    }

    /// What a keeper that was replaced may have lost.
    async fn give_back(&mut self) -> io::Result<()> {
        let mut gifts: Vec<(Op, Vec<OwnedFd>)> = Vec::new();
        for ((name, address), socket) in &*self.shared.listeners.lock() {
            let give = Op::GiveListener {
                name: name.clone(),
                address: address.clone(),
            };
            gifts.push((give, vec![socket.try_clone()?]));
        }
        for (sandbox, sockets) in &self.internal_sockets {
            let copies: io::Result<Vec<_>> = sockets.iter().map(OwnedFd::try_clone).collect();
            gifts.push((Op::GiveSandboxSockets { sandbox: *sandbox }, copies?));
        }
        for id in &self.told {
            gifts.push((Op::AckExit { id: id.clone() }, Vec::new()));
        }
        for (op, descriptors) in gifts {
            self.send_unanswered(op, descriptors).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

    use super::*;
    use crate::client::SandboxDriver;
    use crate::keeper::protocol::{FromKeeper, ToKeeper, VERSION};
    use crate::spawner::protocol::Channel;

    #[test]
    fn pauses_grow_to_a_limit_and_losses_are_told_once() {
        let begin = Instant::now();
        let mut pace = Pace::connected(begin);
        assert!(pace.lost(begin + STEADY), "the first is told");
        let mut ends_told = 0;
        assert_eq!(pace.pause, None, "and connected again at once");
        let mut pauses = Vec::new();
        for _ in 0..20 {
            // Connections that end as soon as they are there.
            ends_told += usize::from(pace.regained(begin + STEADY));
            assert!(!pace.lost(begin + STEADY), "told already");
            pauses.extend(pace.pause);
        }
        assert_eq!(pauses[0], SHORTEST);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[19], LONGEST);
        // A good one, and the next loss is a new one.
        assert_eq!(ends_told, 1, "the end of the loss that was told");
        assert!(!pace.regained(begin + TELL_AGAIN));
        assert!(pace.lost(begin + TELL_AGAIN + STEADY));
        assert!(pace.regained(begin + TELL_AGAIN + STEADY));
        assert_eq!(pace.pause, None);
    }

    /// Greets `count` clients and closes each connection at once. Answers how long that took.
    fn greet_and_close(listener: &OwnedFd, count: usize) -> Duration {
        let begin = std::time::Instant::now();
        for _ in 0..count {
            let client = Channel::from(rustix::net::accept(listener).unwrap());
            let hello = client.receive::<ToKeeper>().unwrap();
            assert!(matches!(hello, Some((ToKeeper::Hello { .. }, _))));
            let welcome = FromKeeper::Welcome {
                version: VERSION,
                build: "test".to_owned(),
                pid: 1,
                never_freezes: String::new(),
            };
            client.send(&welcome, &[]).unwrap();
        }
        begin.elapsed()
    }

    #[tokio::test]
    async fn a_connection_that_ends_at_once_again_and_again_makes_no_load() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keeper");
        let flags = SocketFlags::CLOEXEC;
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = rustix::net::socket_with(family, kind, flags, None).unwrap();
        rustix::net::bind(listener.as_fd(), &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        // The first is the driver's own; the second follows at once.
        let keeper = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || greet_and_close(&listener, 14))
            .unwrap();
        let driver = SandboxDriver::connect(&path, "id", "test", None)
            .await
            .unwrap();
        let took = tokio::task::spawn_blocking(move || keeper.join().unwrap());
        let took = took.await.unwrap();
        drop(driver);
        // Twelve pauses from 10 ms on, each a quarter longer.
        assert!(took >= Duration::from_millis(500), "{took:?}");
    }
}
