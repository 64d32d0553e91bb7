//! The authority's key and certificate, and the leaf they sign.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::{ProxyError, ca_pem_path};

/// Reads `ca.pem` and `ca-key.pem`, or makes both.
pub(super) fn load_or_make(keys_dir: &Path) -> Result<Issuer<'static, KeyPair>, ProxyError> {
    let key_path = keys_dir.join("ca-key.pem");
    let cert_path = ca_pem_path(keys_dir);
    match (
        fs::read_to_string(&key_path),
        fs::read_to_string(&cert_path),
    ) {
        (Ok(key), Ok(cert)) => {
            let key = KeyPair::from_pem(&key).map_err(|e| ProxyError::Unusable {
                path: key_path,
                why: e.to_string(),
            })?;
            Issuer::from_ca_cert_pem(&cert, key).map_err(|e| ProxyError::Unusable {
                path: cert_path,
                why: e.to_string(),
            })
        }
        (Err(e), _) if e.kind() != ErrorKind::NotFound => Err(ProxyError::Io {
            action: "read",
            path: key_path,
            source: e,
        }),
        (_, Err(e)) if e.kind() != ErrorKind::NotFound => Err(ProxyError::Io {
            action: "read",
            path: cert_path,
            source: e,
        }),
        // One of the two is missing: neither is of use without the other.
        _ => {
            let (key, cert, params) = make()?;
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(keys_dir)
                .map_err(|source| ProxyError::Io {
                    action: "create",
                    path: keys_dir.to_owned(),
                    source,
                })?;
            write_private(&key_path, &key.serialize_pem())?;
            write_private(&cert_path, &cert)?;
            Ok(Issuer::new(params, key))
        }
    }
}

fn make() -> Result<(KeyPair, String, CertificateParams), ProxyError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(
        DnType::CommonName,
        "Utsuwa local authority for googleapis.com",
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("googleapis.com".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    let cert = params.self_signed(&key)?.pem();
    Ok((key, cert, params))
}

/// Writes through a temporary name, so that a crash leaves the old file or the new one.
fn write_private(path: &Path, text: &str) -> Result<(), ProxyError> {
    let io = |action: &'static str| {
        let path = path.to_owned();
        move |source| ProxyError::Io {
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

/// TLS for every host of `*.googleapis.com`; the leaf is made anew at each start and lives in memory.
pub(super) fn server_config(keys_dir: &Path) -> Result<ServerConfig, ProxyError> {
    let issuer = load_or_make(keys_dir)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![
        "*.googleapis.com".to_owned(),
        "googleapis.com".to_owned(),
    ])?;
    params
        .distinguished_name
        .push(DnType::CommonName, "*.googleapis.com");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    let leaf = params.signed_by(&key, &issuer)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
