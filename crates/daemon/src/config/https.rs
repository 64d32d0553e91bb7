//! The options of HTTPS that are more than a value: the authority that is asked, and where this server is reached.

use std::net::IpAddr;
use std::path::PathBuf;

use utsuwa_ingress::tls::acme::{AcmeSettings, Check};
use utsuwa_model::domain::PublicAddress;

use super::parse::{Checker, domain};

/// What the word `letsencrypt` stands for.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// The authority of `acme-directory`; `None`: none is asked.
pub(super) fn acme(c: &mut Checker<'_>) -> Option<AcmeSettings> {
    let contact = c.layers.list("acme-contact").to_vec();
    for address in &contact {
        let parts = address.split_once('@');
        if parts.is_none_or(|(who, host)| who.is_empty() || !host.contains('.')) {
            c.wrong("acme-contact", &format!("{address:?} is no mail address"));
        }
    }
    let check = match c.layers.text("acme-challenge") {
        "auto" => Check::Either,
        "http-01" => Check::Http,
        "tls-alpn-01" => Check::Handshake,
        _ => {
            c.wrong("acme-challenge", "must be auto, http-01 or tls-alpn-01");
            Check::Either
        }
    };
    let root = Some(c.layers.text("acme-ca-file"))
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let directory = match c.layers.text("acme-directory") {
        "" => return None,
        "letsencrypt" => LETS_ENCRYPT.to_owned(),
        url => url.to_owned(),
    };
    if !directory.starts_with("https://") {
        c.wrong(
            "acme-directory",
            "must be letsencrypt, or the https:// address of an authority's directory",
        );
    }
    if c.layers.text("listen-https").is_empty() {
        c.wrong(
            "acme-directory",
            "certificates are of no use while listen-https is empty",
        );
    }
    Some(AcmeSettings {
        directory,
        contact,
        root,
        check,
    })
}

/// What it says is read when the ingress is there: it is read again whenever it changes.
pub(super) fn certificates_file(c: &mut Checker<'_>) -> Option<PathBuf> {
    let path = Some(c.layers.text("certificates-file"))
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)?;
    if !path.is_absolute() {
        c.wrong("certificates-file", "must be an absolute path");
    }
    if c.layers.text("listen-https").is_empty() {
        c.wrong(
            "certificates-file",
            "certificates are of no use while listen-https is empty",
        );
    }
    Some(path)
}

/// Addresses, or one name, separated by commas.
pub(super) fn public_address(text: &str) -> Result<PublicAddress, String> {
    let mut public = PublicAddress::default();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.parse() {
            Ok(IpAddr::V4(v4)) => public.v4 = Some(v4),
            Ok(IpAddr::V6(v6)) => public.v6 = Some(v6),
            Err(_) if ends_in_number(part) => {
                return Err(format!(
                    "{part} is no IP address, and no name ends in a number"
                ));
            }
            Err(_) => public.name = Some(domain(part)?),
        }
    }
    Ok(public)
}

/// As an address does: no client asks for it as a name.
fn ends_in_number(text: &str) -> bool {
    let last = text.trim_end_matches('.').rsplit('.').next();
    last.is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_a_mistake_is_no_name() {
        for wrong in [
            "300.1.1.1",
            "10.0.0",
            "7",
            "1.2.3.4.",
            "192.0.2.1,300.1.1.1",
        ] {
            let why = public_address(wrong).unwrap_err();
            assert!(why.contains("no IP address"), "{wrong}: {why}");
        }
        let public = public_address("192.0.2.1, 2001:db8::1, 1.example.org").unwrap();
        assert_eq!(public.name.as_deref(), Some("1.example.org"));
        assert!(public.v4.is_some() && public.v6.is_some());
    }
}
