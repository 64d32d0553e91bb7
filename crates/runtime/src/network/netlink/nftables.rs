//! What nftables holds, and who changed it: questions and news.
//!
//! Owns: the client's questions about tables, and [`News`]. Doesn't: change anything (`nft` and `iptables` do), or read what
//! rules mean: they are bytes to compare.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::netlink::SocketAddrNetlink;
use socket2::{Domain, Protocol, Socket, Type};

use super::message::{Message, text};
use super::{Entry, HEADER_BYTES, NLM_F_DUMP, Netlink, align, find, read_i32, read_u16, read_u32};
use crate::network::NetError;

/// `NFNL_SUBSYS_NFTABLES`, as messages' kinds carry it.
const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// The bit of `NFNLGRP_NFTABLES`.
const GROUP: u32 = 1 << 6;
/// Before the attributes: struct nfgenmsg.
const HEADER: usize = 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE`.
const TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const CHAIN_NAME: u16 = 3;
const GENERATION_ID: u16 = 1;
const GENERATION_BY: u16 = 3;

/// Names a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table<'a> {
    /// Of ours: for both families of addresses.
    Inet(&'a str),
    /// As iptables makes it.
    Ip(&'a str),
    /// As ip6tables makes it.
    Ip6(&'a str),
}

impl<'a> Table<'a> {
    fn family(self) -> u8 {
        match self {
            Self::Inet(_) => 1,
            Self::Ip(_) => 2,
            Self::Ip6(_) => 10,
        }
    }

    fn name(self) -> &'a str {
        match self {
            Self::Inet(name) | Self::Ip(name) | Self::Ip6(name) => name,
        }
    }
}

impl Netlink {
    /// Opens a client for the questions below in the thread's network namespace.
    pub(crate) fn of_nftables() -> Result<Self, NetError> {
        Self::of(libc::NETLINK_NETFILTER)
    }

    /// A number that each change of any table changes.
    pub(crate) fn generation(&mut self) -> Result<u32, NetError> {
        let step = "ask for the generation of nftables";
        let message = Message::new(GET_GENERATION, 0, &[0; HEADER], step.to_owned(), &[]);
        let (kind, entry) = self.first(message)?;
        let id = entry.attribute(HEADER, GENERATION_ID);
        match id.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
            Some(bytes) if kind == NEW_GENERATION => Ok(u32::from_be_bytes(bytes)),
            _ => {
                let error = io::Error::from_raw_os_error(-read_i32(&entry.payload, 0));
                Err(NetError::sys(step, error))
            }
        }
    }

    /// All that `table` holds but the elements of its sets: equal bytes are the same rules. `None`: there is no such table.
    pub(crate) fn table(&mut self, table: Table<'_>) -> Result<Option<Vec<Vec<u8>>>, NetError> {
        let mut parts = Vec::new();
        for kind in [GET_TABLE, GET_CHAIN, GET_RULE] {
            parts.extend(
                self.parts(kind, table)?
                    .into_iter()
                    .map(|entry| entry.payload[HEADER..].to_vec()),
            );
            if parts.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(parts))
    }

    /// The rules of one chain. `None`: there is no such chain.
    pub(crate) fn chain(
        &mut self,
        table: Table<'_>,
        chain: &str,
    ) -> Result<Option<Vec<Vec<u8>>>, NetError> {
        let of = |entry: &Entry, attribute| is(entry.attribute(HEADER, attribute), chain);
        let chains = self.parts(GET_CHAIN, table)?;
        if !chains.iter().any(|entry| of(entry, CHAIN_NAME)) {
            return Ok(None);
        }
        let rules = self.parts(GET_RULE, table)?.into_iter();
        Ok(Some(
            rules
                .filter(|entry| of(entry, RULE_CHAIN))
                .map(|entry| entry.payload)
                .collect(),
        ))
    }

    fn parts(&mut self, kind: u16, table: Table<'_>) -> Result<Vec<Entry>, NetError> {
        let step = format!("look at table {} of nftables", table.name());
        let header = [table.family(), 0, 0, 0];
        let mut message = Message::new(kind, NLM_F_DUMP, &header, step, &[]);
        if kind == GET_RULE {
            // Spares those of others; kernels that don't know it send all.
            message = message.attribute(TABLE, &text(table.name()));
        }
        let mut parts = self.all(message)?;
        parts.retain(|entry| {
            entry.payload.first() == Some(&table.family())
                && is(entry.attribute(HEADER, TABLE), table.name())
        });
        Ok(parts)
    }
}

/// A text of the kernel's ends with a zero.
fn is(found: Option<&[u8]>, name: &str) -> bool {
    found.is_some_and(|bytes| bytes.strip_suffix(&[0]).unwrap_or(bytes) == name.as_bytes())
}

/// Readable when somebody changed nftables in the namespace in which it was made.
#[derive(Debug)]
pub(crate) struct News {
    socket: Socket,
}

impl News {
    pub(crate) fn subscribe() -> Result<Self, NetError> {
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(
                Domain::from(libc::AF_NETLINK),
                Type::RAW.cloexec().nonblocking(),
                Some(Protocol::from(libc::NETLINK_NETFILTER)),
            )?;
            rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|error| NetError::sys("subscribe to nftables' news", error))?,
        })
    }

    /// Reads all there is. Answers the names of the programs that made the changes, as far as they are told.
    pub(crate) fn read(&self) -> Vec<String> {
        let mut programs = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(length) => {
                    for program in changed_by(&buffer[..length]) {
                        if !programs.contains(&program) {
                            programs.push(program);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Some were lost. That there were any is all that matters.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return programs,
            }
        }
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Who made the changes that one datagram tells: each ends with a generation and the name of the program.
fn changed_by(mut bytes: &[u8]) -> Vec<String> {
    let mut programs = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let size = (read_u32(bytes, 0) as usize).clamp(HEADER_BYTES, bytes.len());
        if read_u16(bytes, 4) == NEW_GENERATION
            && let Some(attributes) = bytes.get(HEADER_BYTES + HEADER..size)
            && let Some(program) = find(attributes, GENERATION_BY)
        {
            let program = program.strip_suffix(&[0]).unwrap_or(program);
            programs.push(String::from_utf8_lossy(program).into_owned());
        }
        bytes = &bytes[align(size).min(bytes.len())..];
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::super::push;
    use super::*;

    #[test]
    fn a_change_names_its_program() {
        let mut message = vec![0; HEADER_BYTES + HEADER];
        message[4..6].copy_from_slice(&NEW_GENERATION.to_ne_bytes());
        push(&mut message, GENERATION_ID, &7_u32.to_be_bytes());
        push(&mut message, GENERATION_BY, b"iptables\0");
        let length = u32::try_from(message.len()).unwrap();
        message[0..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(changed_by(&message.repeat(2)), ["iptables", "iptables"]);
        for length in 0..message.len() {
            assert!(changed_by(&message[..length]).len() <= 1, "cut at {length}");
        }
    }
}
