//! The local authority of the served domains: its key, its certificate, and what it signs (decision 16).
//!
//! It may sign for the domain and names below it alone (a critical name constraint; IP addresses are excluded, too), so that
//! trusting it gives its key no power over any other site. It is made once: a person who trusts it does so for years.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use utsuwa_model::Timestamp;
use utsuwa_model::domain::is_host_name;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{TlsError, Unusable};

/// The authority's certificate (PEM) in the keys directory: what `utsuwa trust` installs.
pub const CERTIFICATE_FILE: &str = "services-ca.pem";
const KEY_FILE: &str = "services-ca-key.pem";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// How long a leaf is valid: longer than any server runs without making it anew ([`super::leaves`]), shorter than clients mind.
pub(super) const LEAF_DAYS: u64 = 90;
/// Clients whose clocks are behind by so much still take a leaf.
const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Signs for one domain and names below it.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    domain: String,
}

impl Authority {
    /// Reads the authority of `domain` from `keys_dir`, or makes it there.
    ///
    /// # Errors
    /// When the files can't be read, made or used.
    pub fn load_or_make(keys_dir: &Path, domain: &str) -> Result<Self, TlsError> {
        let issuer = match load(keys_dir)? {
            Some(issuer) => issuer,
            None => make(keys_dir, domain)?,
        };
        Ok(Self {
            issuer,
            domain: domain.to_owned(),
        })
    }

    /// Whether `keys_dir` holds an authority that [`Self::load_or_make`] would take. Only reads.
    ///
    /// # Errors
    /// There are files that can't be read or used.
    pub fn is_kept(keys_dir: &Path) -> Result<bool, TlsError> {
        load(keys_dir).map(|issuer| issuer.is_some())
    }

    /// The domain it may sign for.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// A certificate of `host` for the public half of `key`, valid from now on for [`LEAF_DAYS`].
    pub(super) fn sign(
        &self,
        host: &str,
        key: &KeyPair,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, TlsError> {
        let make = |source| TlsError::Make {
            host: host.to_owned(),
            source,
        };
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(make)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "Utsuwa service");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let since_epoch = now.since(Timestamp(0));
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + since_epoch.saturating_sub(CLOCKS_DIFFER);
        params.not_after = epoch + (since_epoch + DAY * u32::try_from(LEAF_DAYS).unwrap_or(90));
        let leaf = params.signed_by(key, &self.issuer).map_err(make)?;
        Ok(leaf.der().clone())
    }
}

/// The domain below which the one authority in `pem` may sign, if it is one that [`Authority::load_or_make`] makes: whoever
/// trusts it must know that it has no power over any other site, whatever was put in its file's place.
///
/// # Errors
/// It is anything else.
pub fn domain_of(pem: &str) -> Result<String, Unusable> {
    let wrong = |why: &str| Unusable(why.to_owned());
    let is_one = pem.trim().starts_with(BEGIN)
        && pem.trim().ends_with(END)
        && pem.matches("-----BEGIN").count() == 1;
    if !is_one {
        return Err(wrong("it is not one certificate in PEM and nothing else"));
    }
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Unusable(format!("it is not a certificate in PEM: {error}")))?;
    let (rest, certificate) = X509Certificate::from_der(&der)
        .map_err(|error| Unusable(format!("it can't be read: {error}")))?;
    let authority = certificate.basic_constraints().ok().flatten();
    if !rest.is_empty() || !authority.is_some_and(|found| found.value.ca) {
        return Err(wrong("it is no authority's"));
    }
    let constraints = match certificate.name_constraints() {
        Ok(Some(constraints)) if constraints.critical => constraints.value,
        _ => return Err(wrong("it may sign for every site")),
    };
    let excluded = constraints.excluded_subtrees.as_deref().unwrap_or_default();
    let excludes = |length: usize| {
        excluded
            .iter()
            .any(|tree| matches!(tree.base, GeneralName::IPAddress(all) if all == vec![0; length]))
    };
    match constraints.permitted_subtrees.as_deref() {
        // Address and mask of all there are.
        Some([only]) if excludes(8) && excludes(32) => match only.base {
            // As configured domains are: it is shown to people, who may type it.
            GeneralName::DNSName(domain) if is_host_name(domain) => Ok(domain.to_owned()),
            GeneralName::DNSName(domain) if !domain.is_empty() => {
                Err(wrong("it signs for what is no name of a host"))
            }
            _ => Err(wrong("it may sign for every site")),
        },
        _ => Err(wrong("it may sign for more than one domain")),
    }
}

fn load(keys_dir: &Path) -> Result<Option<Issuer<'static, KeyPair>>, TlsError> {
    let (key_path, cert_path) = (keys_dir.join(KEY_FILE), keys_dir.join(CERTIFICATE_FILE));
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |error: rcgen::Error| TlsError::Unusable {
            path,
            why: error.to_string(),
        }
    };
    // Neither is of use without the other.
    let (Some(key), Some(cert)) = (read(&key_path)?, read(&cert_path)?) else {
        return Ok(None);
    };
    let key = KeyPair::from_pem(&key).map_err(unusable(&key_path))?;
    let issuer = Issuer::from_ca_cert_pem(&cert, key).map_err(unusable(&cert_path))?;
    Ok(Some(issuer))
}

fn make(keys_dir: &Path, domain: &str) -> Result<Issuer<'static, KeyPair>, TlsError> {
    let failed = |source| TlsError::Make {
        host: domain.to_owned(),
        source,
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    // Two authorities of one name in one store confuse programs that look for issuers by name.
    let own = key.public_key_raw().iter().rev().take(4);
    let own: String = own.map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(
        DnType::CommonName,
        format!("Utsuwa local authority for {domain} {own}"),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_owned())],
        excluded_subtrees: all_addresses(),
    });
    // Fixed, so that a clock that is wrong at the first start does no harm.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    let cert = params.self_signed(&key).map_err(failed)?.pem();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(keys_dir)
        .map_err(|source| TlsError::Io {
            action: "create",
            path: keys_dir.to_owned(),
            source,
        })?;
    write_private(&keys_dir.join(KEY_FILE), &key.serialize_pem())?;
    write_private(&keys_dir.join(CERTIFICATE_FILE), &cert)?;
    Ok(Issuer::new(params, key))
}

fn all_addresses() -> Vec<GeneralSubtree> {
    vec![
        GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
        GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
    ]
}

/// The text of a file; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, TlsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TlsError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a file that only its owner reads, through a temporary name: a crash leaves the old file or the new one.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), TlsError> {
    let io = |action: &'static str| {
        let path = path.to_owned();
        move |source| TlsError::Io {
            action,
            path,
            source,
        }
    };
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("create"))?;
    file.write_all(text.as_bytes()).map_err(io("write"))?;
    file.sync_all().map_err(io("write"))?;
    fs::rename(&temporary, path).map_err(io("rename into place"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_and_kept_private() {
        let data = tempfile::tempdir().unwrap();
        let keys = data.path().join("keys");
        Authority::load_or_make(&keys, "localhost").unwrap();
        let path = keys.join(CERTIFICATE_FILE);
        let first = fs::read(&path).unwrap();
        Authority::load_or_make(&keys, "localhost").unwrap();
        assert_eq!(fs::read(&path).unwrap(), first);
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&keys), mode(&path), mode(&keys.join(KEY_FILE))),
            (0o700, 0o600, 0o600)
        );
    }

    #[test]
    fn broken_files_are_named_and_half_a_pair_is_made_anew() {
        let data = tempfile::tempdir().unwrap();
        Authority::load_or_make(data.path(), "localhost").unwrap();
        let path = data.path().join(CERTIFICATE_FILE);
        fs::write(&path, "nonsense").unwrap();
        let error = Authority::load_or_make(data.path(), "localhost")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(CERTIFICATE_FILE) && error.contains("remove"),
            "{error}"
        );
        fs::remove_file(&path).unwrap();
        Authority::load_or_make(data.path(), "localhost").unwrap();
    }

    #[test]
    fn only_an_authority_of_one_domain_is_worth_trusting() {
        let data = tempfile::tempdir().unwrap();
        Authority::load_or_make(data.path(), "apps.example.org").unwrap();
        let pem = fs::read_to_string(data.path().join(CERTIFICATE_FILE)).unwrap();
        assert_eq!(domain_of(&pem).unwrap(), "apps.example.org");
        let ended = |params: CertificateParams| {
            let key = KeyPair::generate().unwrap();
            domain_of(&params.self_signed(&key).unwrap().pem())
                .unwrap_err()
                .to_string()
        };
        let authority = || {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        assert!(ended(CertificateParams::default()).contains("no authority"));
        assert!(ended(authority()).contains("every site"));
        let name = |domain: &str| GeneralSubtree::DnsName(domain.to_owned());
        for (permitted, excluded) in [
            (vec![name("localhost")], vec![]),
            (
                vec![name("localhost"), name("example.com")],
                all_addresses(),
            ),
            (vec![name("")], all_addresses()),
            (vec![], all_addresses()),
        ] {
            let mut params = authority();
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: permitted,
                excluded_subtrees: excluded,
            });
            assert!(ended(params).contains("may sign for"));
        }
        for domain in [
            "x;reboot",
            "x y",
            "\u{1b}[2J",
            ".example.org",
            "Example.org",
        ] {
            let mut params = authority();
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![name(domain)],
                excluded_subtrees: all_addresses(),
            });
            assert!(ended(params).contains("no name of a host"), "{domain}");
        }
        for text in [
            "root:$6$secret:19000::::::".to_owned(),
            format!("{pem}{pem}"),
            format!("{pem}root:$6$secret:19000::::::\n"),
            String::new(),
        ] {
            domain_of(&text).unwrap_err();
        }
    }
}
