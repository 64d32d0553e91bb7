//! Whether the host's half of the rules still stands, and setting again what is gone.
//!
//! Others change the host's rules while we run: `systemctl restart nftables` flushes all there are, and with our table goes the
//! wall before the host; docker and ufw begin to drop what is forwarded. The gateway's own table is in a namespace that nobody
//! else has.
//!
//! Owns: the news of nftables, the comparison, the words about it. Doesn't: know what the rules say.
//!
//! A look happens at each news, and every [`INTERVAL`] for what sends none (legacy iptables) or was lost. It asks for one number
//! where nothing has changed.
//!
//! Failure: what can't be set again is tried at each look; it is said once.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::netlink::{Netlink, News, Table};
use super::{NetError, firewall, rules};

/// Between two looks without news.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between two openings of the host's firewall, should one not be found to stand. The wall is never made to wait.
const PAUSE: Duration = Duration::from_secs(1);
/// Times that reading is tried again, when somebody makes changes meanwhile.
const TRIES: usize = 8;

/// The watch over one server's rules in the host's namespace.
#[derive(Debug)]
pub(super) struct Watch {
    /// Of our table; by it, rules elsewhere are told from others' too.
    tag: String,
    /// The table as `nft` reads it.
    text: String,
    news: News,
    nftables: Netlink,
    /// Our table as the kernel gave it back; empty when it was gone by then.
    expected: Vec<Vec<u8>>,
    /// At the last look that found all in place.
    generation: Option<u32>,
    next: Instant,
    opened: Option<Instant>,
    /// What couldn't be set again, as it was said.
    failure: Option<String>,
}

impl Watch {
    /// Sets everything up and watches over it from now on. In the host's network namespace.
    pub(super) fn begin(tag: &str, text: String) -> Result<Self, NetError> {
        let mut watch = Self {
            tag: tag.to_owned(),
            text,
            // First, so that no change after it goes unnoticed.
            news: News::subscribe()?,
            nftables: Netlink::of_nftables()?,
            expected: Vec::new(),
            generation: None,
            next: Instant::now(),
            opened: None,
            failure: None,
        };
        watch.load()?;
        firewall::open(&watch.tag, &watch.tag)?;
        Ok(watch)
    }

    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// When to look if there are no news.
    pub(super) fn next(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Looks, and sets again what is missing. Answers what that was, after saying so.
    pub(super) fn look(&mut self) -> Vec<String> {
        let programs = self.news.read();
        let in_turn = self.next().is_zero();
        self.next = Instant::now() + INTERVAL;
        let mut missing = Vec::new();
        match self.mend(in_turn, &mut missing) {
            Ok(()) => self.failure = None,
            Err(error) => {
                let text = error.to_string();
                if self.failure.as_ref() != Some(&text) {
                    tracing::error!(
                        %error,
                        tag = self.tag,
                        "instances may reach this host, or nothing: the host's firewall rules of this server can't be set again or looked \
                         at; tried again every {} s",
                        INTERVAL.as_secs()
                    );
                    self.failure = Some(text);
                }
            }
        }
        if !missing.is_empty() {
            let by = if programs.is_empty() {
                "a firewall that was started or flushed".to_owned()
            } else {
                programs.join(", ")
            };
            let missing = missing.join("; ");
            tracing::warn!(
                missing,
                by,
                "rules of this server were missing in the host's firewall, probably the work of {by}: {missing}; they are set again"
            );
        }
        missing
    }

    /// What is set again is added to `missing`.
    fn mend(&mut self, in_turn: bool, missing: &mut Vec<String>) -> Result<(), NetError> {
        let generation = self.nftables.generation()?;
        let changed = self.generation != Some(generation);
        // The uplink goes first when the server is torn down: then there is nobody to protect the host from.
        if !(changed || in_turn) || Netlink::open()?.link(&self.tag).is_err() {
            return Ok(());
        }
        if changed && !self.stands()? {
            self.load()?;
            missing.push(format!(
                "nftables' table {}, which closes this host to instances and lets them reach the internet",
                self.tag
            ));
        }
        let mut firewalls = Vec::new();
        if changed {
            firewalls.extend(firewall::missing(&mut self.nftables, &self.tag)?);
        }
        if in_turn {
            firewalls.extend(firewall::missing_legacy(&self.tag)?);
        }
        if firewalls.is_empty() {
            self.generation = Some(generation);
            return Ok(());
        }
        if let Some(again) = self.opened.map(|opened| opened + PAUSE)
            && again > Instant::now()
        {
            self.next = again;
            return Ok(());
        }
        self.opened = Some(Instant::now());
        firewall::open(&self.tag, &self.tag)?;
        missing.push(format!(
            "accept rules for instances in {}",
            firewalls.join(" and ")
        ));
        Ok(())
    }

    fn stands(&mut self) -> Result<bool, NetError> {
        let found = self.read_back()?;
        Ok(!found.is_empty() && found == self.expected)
    }

    /// Replaces our table as a whole.
    fn load(&mut self) -> Result<(), NetError> {
        rules::load(&self.text)?;
        self.expected = self.read_back()?;
        Ok(())
    }

    /// Our table as it is, of one moment; empty when there is none.
    fn read_back(&mut self) -> Result<Vec<Vec<u8>>, NetError> {
        let mut tries = 0;
        loop {
            let before = self.nftables.generation()?;
            let found = self.nftables.table(Table::Inet(&self.tag))?;
            tries += 1;
            if tries == TRIES || self.nftables.generation()? == before {
                return Ok(found.unwrap_or_default());
            }
        }
    }
}
