//! What runs in an instance, for those who connect to it.

use std::any::Any;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketType};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::InstanceSpec;

use super::FakeDriver;
use crate::driver::DriverError;

/// A program of a test, which listens at an address of this machine; the port is the instance's own.
pub struct Program {
    pub address: IpAddr,
    /// Dropped when the instance ends: the program ends with it.
    pub life: Box<dyn Any + Send>,
}

/// Begins the program of an instance. Must not ask the driver anything.
pub type Begin = Arc<dyn Fn(&InstanceSpec) -> Program + Send + Sync>;

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl FakeDriver {
    /// Instances that start from now on run what `begin` makes, and can be connected to.
    pub fn runs(&self, begin: Begin) {
        self.inner.world.lock().begin = Some(begin);
    }

    pub(super) fn socket_of(&self, id: &InstanceId) -> Result<(OwnedFd, SocketAddr), DriverError> {
        let world = self.inner.world.lock();
        if !world.running.contains_key(id) {
            return Err(DriverError::NotFound(id.clone()));
        }
        let Some(program) = world.programs.get(id) else {
            return Err(DriverError::Internal(format!(
                "the fake driver has no network for {id}: say what it runs"
            )));
        };
        let family = match program.address {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = rustix::net::socket(family, SocketType::STREAM, None)
            .map_err(|error| DriverError::Internal(format!("make a socket for {id}: {error}")))?;
        Ok((socket, SocketAddr::new(program.address, 0)))
    }
}
