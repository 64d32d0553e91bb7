//! A client of HTTPS that trusts one authority and no other.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};

/// Trusts the authority whose certificate this is.
pub(crate) fn trusting(pem: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// Connects from an address, says something, and only then shakes hands.
pub(crate) fn connect_after(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    name: &'static str,
    (from, said): (SocketAddr, &[u8]),
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect(&address.into())?;
    let mut socket = TcpStream::from(socket);
    socket.write_all(said)?;
    shake(config, socket, name)
}

/// Connects and shakes hands.
pub(crate) fn connect(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    name: &'static str,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    shake(config, TcpStream::connect(address)?, name)
}

fn shake(
    config: &Arc<ClientConfig>,
    mut socket: TcpStream,
    name: &'static str,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let mut session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(session, socket))
}
