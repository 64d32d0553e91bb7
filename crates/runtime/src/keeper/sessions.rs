//! Connections to the keeper: who they are, what a new server is told, and sending. What they ask is in `requests`.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::value::RawValue;

use super::core::{Keeper, Token, Watch};
use super::link::Link;
use super::protocol::{
    ClientKind, Event, FromKeeper, KNOWS_PARKED, KNOWS_TIERS, KeeperError, LEAVE_SINCE, OLDEST, Op,
    Reply, ToKeeper, VERSION, agree,
};
use crate::network::Gateway;
use crate::spawner::protocol::Channel;

/// More connections than this are somebody's mistake.
const SESSION_LIMIT: usize = 64;
/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    link: Link<FromKeeper>,
    pub(crate) uid: u32,
    kind: Option<ClientKind>,
    /// The protocol that was agreed on.
    version: u32,
    /// The process that connected; 0 for one that can't be seen from here.
    pid: i32,
    /// It was sent a signal to end: a second one would mean at once.
    signalled: bool,
}

impl Session {
    /// Sends SIGTERM to the process that connected, unless it has hung up: then its number may be another's.
    fn terminate(&self) -> io::Result<()> {
        let pid = Pid::from_raw(self.pid).ok_or(Errno::SRCH)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // It held its end all the while until now, so that the number was its own when it was opened.
        let mut polled = [PollFd::new(&self.link, PollFlags::empty())];
        poll(&mut polled, Some(&Timespec::default()))?;
        if polled[0].revents().intersects(PollFlags::HUP) {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::TERM) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Keeper {
    pub(crate) fn accept(&mut self) {
        loop {
            let socket =
                match accept_with(&self.listen, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                    Ok(socket) => socket,
                    Err(rustix::io::Errno::AGAIN) => return,
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                    Err(error) => {
                        tracing::error!(%error, "accept a connection");
                        return;
                    }
                };
            if let Err(error) = self.add_session(socket) {
                tracing::warn!(%error, "a connection was refused");
            }
        }
    }

    fn add_session(&mut self, socket: OwnedFd) -> io::Result<()> {
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        let uid = peer.uid.as_raw();
        if uid != 0 && uid != self.config.server_uid {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("uid {uid} may not connect"),
            ));
        }
        if self.sessions.len() >= SESSION_LIMIT {
            return Err(io::Error::other("too many connections"));
        }
        let id = self.next_session;
        self.next_session = self.next_session.wrapping_add(1).max(1);
        let link = Link::new(Channel::from(socket))?;
        self.watch(&link, Token::Session(id), Watch::Edge)?;
        self.sessions.insert(
            id,
            Session {
                link,
                uid,
                kind: None,
                version: OLDEST,
                pid: peer.pid.as_raw_nonzero().get(),
                signalled: false,
            },
        );
        Ok(())
    }

    pub(crate) fn serve_session(&mut self, id: u32) {
        loop {
            let Some(session) = self.sessions.get_mut(&id) else {
                return;
            };
            let received = session
                .link
                .flush()
                .and_then(|()| session.link.receive::<ToKeeper<Box<RawValue>>>());
            match received {
                Ok(Some((
                    ToKeeper::Hello {
                        version,
                        oldest,
                        build,
                        data_id,
                        kind,
                        holds,
                    },
                    _,
                ))) => {
                    let welcome = match agree(version, oldest) {
                        Some(version) => self.welcome(id, version, &build, &data_id, kind, &holds),
                        None => Err(self.other_protocol(&build, version)),
                    };
                    if let Err(reason) = welcome {
                        tracing::warn!(%reason, %build, "a client was refused");
                        self.say(id, FromKeeper::Refused { reason }, Vec::new());
                        self.drop_session(id);
                    }
                }
                Ok(Some((ToKeeper::Request { id: request, op }, descriptors))) => {
                    if session.kind.is_none() {
                        self.drop_session(id);
                        return;
                    }
                    match serde_json::from_str::<Op>(op.get()) {
                        Ok(op) => self.serve(id, request, op, descriptors),
                        Err(error) => {
                            let refusal = not_understood(&op, &error);
                            tracing::warn!(%refusal, "a request of another version");
                            self.reply(id, request, Err(refusal), Vec::new());
                        }
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(id, %error, "a connection ended");
                    self.drop_session(id);
                    return;
                }
            }
        }
    }

    pub(crate) fn drop_session(&mut self, id: u32) {
        if let Some(session) = self.sessions.remove(&id) {
            self.unwatch(&session.link);
        }
        if self.server == Some(id) {
            tracing::info!("the server is gone; instances go on");
            self.server = None;
            self.end_unfinished();
        }
    }

    /// Asks the server, if one is connected, to drain and end.
    pub(crate) fn end_server(&mut self, by: String) -> Result<(), KeeperError> {
        let Some(id) = self.server else { return Ok(()) };
        let Some(session) = self.sessions.get_mut(&id) else {
            return Ok(());
        };
        if session.version >= LEAVE_SINCE {
            self.say(id, FromKeeper::Leave { by }, Vec::new());
            return Ok(());
        }
        // It would take the message for a broken connection. Every server ends in order at its first SIGTERM.
        if !session.signalled {
            session.terminate().map_err(|error| {
                KeeperError::Internal(format!("end the server (process {}): {error}", session.pid))
            })?;
            session.signalled = true;
        }
        Ok(())
    }

    fn other_protocol(&self, build: &str, version: u32) -> String {
        format!(
            "this keeper ({}) speaks protocol {OLDEST} to {VERSION}, the client ({build}) {version}: \
             start the server once as root, so that it replaces the keeper",
            self.config.build
        )
    }

    fn welcome(
        &mut self,
        id: u32,
        version: u32,
        build: &str,
        data_id: &str,
        kind: ClientKind,
        holds: &[u32],
    ) -> Result<(), String> {
        if data_id != self.config.id {
            return Err(format!(
                "this keeper serves the data directory with id {}, not {data_id}",
                self.config.id
            ));
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.kind = Some(kind);
            session.version = version;
        }
        let pid = rustix::process::getpid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        self.say(
            id,
            FromKeeper::Welcome {
                version,
                build: self.config.build.clone(),
                pid,
                never_freezes: self.never_freezes().to_owned(),
            },
            Vec::new(),
        );
        if kind == ClientKind::Visitor {
            return Ok(());
        }
        if let Some(before) = self.server.replace(id).filter(|before| *before != id) {
            self.say(
                before,
                FromKeeper::Superseded {
                    by: build.to_owned(),
                },
                Vec::new(),
            );
            self.drop_session(before);
            self.end_unfinished();
        }
        tracing::info!(build, "a server connected");
        if version < KNOWS_TIERS {
            self.thaw_all();
        }
        if version < KNOWS_PARKED {
            self.end_parked();
        }
        self.tell_server(holds);
        Ok(())
    }

    /// What a new server must know.
    fn tell_server(&mut self, holds: &[u32]) {
        let numbers: Vec<u32> = self
            .sandboxes
            .keys()
            .copied()
            .filter(|number| !holds.contains(number))
            .collect();
        for number in numbers {
            self.reopen_internal(number);
            self.announce_sockets(number);
        }
        let gone = holds
            .iter()
            .filter(|number| !self.sandboxes.contains_key(number))
            .copied()
            .collect::<Vec<_>>();
        for sandbox in gone {
            self.announce(Event::SandboxGone { sandbox }, Vec::new());
        }
        let assigned: Vec<Event> = self
            .instances
            .values()
            .map(|instance| Event::SandboxAssigned {
                sandbox: instance.record.sandbox,
                instance: instance.record.spec.id.clone(),
                revision: instance.record.spec.revision.clone(),
            })
            .collect();
        for event in assigned {
            self.announce(event, Vec::new());
        }
        self.announce_refusals();
        let exits: Vec<_> = self.exits.values().cloned().collect();
        for exit in exits {
            self.announce(Event::Exited(exit), Vec::new());
        }
    }

    /// Tells the server, if there is one.
    pub(crate) fn announce(&mut self, event: Event, descriptors: Vec<OwnedFd>) {
        if let Some(server) = self.server {
            self.say(server, FromKeeper::Event(event), descriptors);
        }
    }

    pub(crate) fn announce_sockets(&mut self, number: u32) {
        let Some(sandbox) = self.sandboxes.get(&number) else {
            return;
        };
        if self.server.is_none() || sandbox.internal.is_empty() {
            return;
        }
        let copies: io::Result<Vec<OwnedFd>> =
            sandbox.internal.iter().map(OwnedFd::try_clone).collect();
        let net = sandbox.net.clone();
        match copies {
            Ok(copies) => self.announce(
                Event::SandboxSockets {
                    sandbox: number,
                    net,
                },
                copies,
            ),
            Err(error) => {
                tracing::error!(number, %error, "pass the internal sockets of a sandbox on")
            }
        }
    }

    /// Internal sockets that were lost with all who held them are made anew.
    fn reopen_internal(&mut self, number: u32) {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else {
            return;
        };
        if !sandbox.internal.is_empty() || sandbox.net.sockets.is_empty() || sandbox.netns.is_none()
        {
            return;
        }
        match Gateway::reopen(&self.config.id, &sandbox.net) {
            Ok(sockets) => {
                sandbox.internal = sockets;
                self.deposit(number);
            }
            Err(error) => {
                tracing::error!(number, %error, "this instance has no name service any more")
            }
        }
    }

    pub(crate) fn announce_refusals(&mut self) {
        let copies: io::Result<Vec<OwnedFd>> =
            self.refusals.iter().map(OwnedFd::try_clone).collect();
        if let Ok(copies) = copies
            && !copies.is_empty()
        {
            self.announce(Event::RefusalSockets, copies);
        }
    }

    pub(crate) fn reply(
        &mut self,
        session: u32,
        id: u64,
        result: Result<Reply, KeeperError>,
        descriptors: Vec<OwnedFd>,
    ) {
        self.say(session, FromKeeper::Reply { id, result }, descriptors);
    }

    pub(super) fn say(&mut self, id: u32, message: FromKeeper, descriptors: Vec<OwnedFd>) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Err(error) = session.link.send(message, descriptors) {
            tracing::debug!(id, %error, "a connection ended");
            self.drop_session(id);
        }
    }
}

/// What to say about an operation that can't be read.
fn not_understood(op: &RawValue, error: &serde_json::Error) -> KeeperError {
    let name = match serde_json::from_str::<serde_json::Value>(op.get()) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(serde_json::Value::Object(fields)) => fields.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    KeeperError::NotUnderstood {
        // The client's text, in our log and its own.
        op: name.chars().take(64).collect(),
        why: error.to_string(),
    }
}
