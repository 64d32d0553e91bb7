//! What HTTPS stands on, set up at the start: the local authority, what was issued before, and the authority that is asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use utsuwa_ingress::tls::acme::Acme;
use utsuwa_ingress::tls::{Authority, Cabinet, Tls};
use utsuwa_model::domain::PublicAddress;

use super::certificates::Secured;
use super::environment::Machine;
use crate::config::{Config, Listen};

/// Reads the authority of `domain`, or makes it at the first start; takes in what was issued before.
pub(super) fn open(keys: &Path, domain: &str, config: &Config) -> anyhow::Result<Secured> {
    let authority = Authority::load_or_make(keys, domain)
        .context("make the certificate authority for the served domain")?;
    let https = config.listen_https.as_ref();
    let redirect = https.filter(|_| config.https_redirect).map(|l| l.port);
    let tls = Tls::new(authority, Arc::new(Machine::begin()), redirect).context("set up TLS")?;
    let cabinet = Cabinet::new(keys);
    let kept = cabinet
        .all(Machine::time())
        .context("read the certificates that were issued")?;
    for (host, given) in kept {
        match given {
            Ok(given) => tls.install(&host, given),
            // The loop of its domain asks for another one; without a domain nobody needs it.
            Err(error) => {
                tracing::info!(%host, %error, "a certificate that was issued is of no use any more");
                cabinet.remove(&host).context("remove it")?;
            }
        }
    }
    let acme = config.acme.as_ref().map(|settings| {
        let challenges = tls.challenges();
        Arc::new(Acme::new(settings.clone(), keys, challenges))
    });
    Ok(Secured {
        tls: Arc::new(tls),
        cabinet,
        acme,
    })
}

/// Where clients outside reach this server: as configured, or the addresses that it listens on or would speak from.
pub(super) fn public_address(config: &Config) -> PublicAddress {
    if config.public_address != PublicAddress::default() {
        return config.public_address.clone();
    }
    let listen = config.listen_https.as_ref().unwrap_or(&config.listen_http);
    let mut public = PublicAddress::default();
    let mut take = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => public.v4 = Some(v4),
        IpAddr::V6(v6) => public.v6 = Some(v6),
    };
    match unspecified(listen) {
        None => listen.addresses().iter().for_each(|a| take(a.ip())),
        Some(both) => {
            // Documentation addresses stand for the internet. Nothing is sent: the kernel is asked for its route.
            let v4 = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
            let v6 = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9));
            let from = [Some(v4), both.then_some(v6)];
            from.into_iter()
                .flatten()
                .filter_map(source)
                .for_each(&mut take);
        }
    }
    public
}

/// Whether `listen` is every address of this machine; `true`: those of IPv6, too.
fn unspecified(listen: &Listen) -> Option<bool> {
    let addresses = listen.addresses();
    let all = addresses.iter().find(|a| a.ip().is_unspecified())?;
    Some(all.is_ipv6())
}

/// The address that this machine would speak to `to` from.
fn source(to: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}
