//! Which of the addresses to listen on this machine has.
//!
//! `localhost` means 127.0.0.1 and ::1, of which the second may be missing; whatever else stands in the way of listening is
//! the operator's to know.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

use rustix::io::Errno;

use crate::config::Listen;

/// The addresses of `listen` that can be listened on. Only a loopback that `localhost` stands for is left out, and only
/// where the machine lacks it.
pub(super) fn addresses_here(listen: &Listen) -> Vec<SocketAddr> {
    let mut addresses = listen.addresses();
    if addresses.len() > 1 {
        // A port of the kernel's choice is never taken: what fails is the address.
        addresses.retain(|address| {
            !TcpListener::bind((address.ip(), 0)).is_err_and(|error| is_missing(&error))
        });
    }
    addresses
}

/// No such address, or (IPv6 switched off at boot) no such family at all.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable
        || Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_address_is_told_from_a_taken_one() {
        let of = |errno: Errno| is_missing(&io::Error::from(errno));
        // Loopback without ::1, then a kernel started with ipv6.disable=1.
        assert!(of(Errno::ADDRNOTAVAIL));
        assert!(of(Errno::AFNOSUPPORT));
        for other in [Errno::ADDRINUSE, Errno::ACCESS, Errno::MFILE, Errno::NOBUFS] {
            assert!(!of(other), "{other}");
        }
    }

    #[test]
    fn an_address_that_was_named_is_never_left_out() {
        let listen = |host: &str| Listen {
            host: host.to_owned(),
            port: 1,
        };
        // TEST-NET-1: nobody has it.
        assert_eq!(addresses_here(&listen("192.0.2.1")).len(), 1);
        assert!(
            addresses_here(&listen("localhost")).contains(&SocketAddr::from(([127, 0, 0, 1], 1)))
        );
    }
}
