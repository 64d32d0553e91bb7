//! Where issued certificates are kept: a file for each host in the keys directory, its key and its chain together, so that one
//! is never without the other.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use utsuwa_model::Timestamp;
use utsuwa_model::domain::DomainName;

use super::authority::{read, write_private};
use super::{Given, Pattern, TlsError, Unusable};

const FOLDER: &str = "issued";
const ENDING: &str = ".pem";

/// The files. What is in force is the ingress's ([`super::Tls`]).
#[derive(Debug, Clone)]
pub struct Cabinet {
    folder: PathBuf,
}

/// One file: what it holds, or why it is of no use.
pub type Kept = (DomainName, Result<Given, Unusable>);

impl Cabinet {
    #[must_use]
    pub fn new(keys_dir: &Path) -> Self {
        Self {
            folder: keys_dir.join(FOLDER),
        }
    }

    /// All there are. Files of other names are nobody's.
    ///
    /// # Errors
    /// The folder or a file can't be read.
    pub fn all(&self, now: Timestamp) -> Result<Vec<Kept>, TlsError> {
        let failed = |source| TlsError::Io {
            action: "read",
            path: self.folder.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut kept = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let host = name.to_str().and_then(|name| name.strip_suffix(ENDING));
            let Some(host) = host.and_then(|host| host.parse::<DomainName>().ok()) else {
                continue;
            };
            if let Some(text) = read(&self.path(&host))? {
                let pattern = Pattern::Host(host.to_string());
                let given = Given::new(pattern, text.as_bytes(), text.as_bytes(), now);
                kept.push((host, given));
            }
        }
        kept.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(kept)
    }

    /// Keeps what was issued for `host` in the place of what was before.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn keep(&self, host: &DomainName, chain_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|source| TlsError::Io {
                action: "create",
                path: self.folder.clone(),
                source,
            })?;
        write_private(&self.path(host), &format!("{key_pem}{chain_pem}"))
    }

    /// Removes what is kept for `host`, if something is.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn remove(&self, host: &DomainName) -> Result<(), TlsError> {
        let path = self.path(host);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(TlsError::Io {
                action: "remove",
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    fn path(&self, host: &DomainName) -> PathBuf {
        self.folder.join(format!("{host}{ENDING}"))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn what_is_kept_is_found_until_it_is_removed() {
        let keys = tempfile::tempdir().unwrap();
        let cabinet = Cabinet::new(keys.path());
        assert!(cabinet.all(Timestamp(0)).unwrap().is_empty());
        let host: DomainName = "www.example.com".parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_string()]).unwrap();
        let chain = params.self_signed(&key).unwrap().pem();
        cabinet.keep(&host, &chain, &key.serialize_pem()).unwrap();
        fs::write(keys.path().join("issued/README"), "of somebody else").unwrap();
        fs::write(keys.path().join("issued/broken.example.com.pem"), "no").unwrap();
        let all = cabinet.all(Timestamp(0)).unwrap();
        assert_eq!(all.len(), 2);
        assert!(all[0].1.is_err() && all[1].1.is_ok(), "{all:?}");
        assert_eq!(all[1].0, host);
        cabinet.remove(&host).unwrap();
        cabinet.remove(&host).unwrap();
        assert_eq!(cabinet.all(Timestamp(0)).unwrap().len(), 1);
    }
}
