//! Why an image could not be had. Texts are for the person who deploys: they name the image, what went wrong, and what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::unpack::UnpackError;

/// What a caller can do about an error; branch on this, never on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// No such image or tag.
    NotFound,
    /// The registry wants credentials, or other ones.
    Unauthorized,
    /// The image or the reference is wrong; only the user can change that.
    Caller,
    /// The disk is (nearly) full.
    Exhausted,
    /// A registry, the network or the keeper does not answer as it should; later may work.
    Unavailable,
    /// The store itself is damaged or a bug showed.
    Internal,
}

/// What a registry that refuses access was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    Credentials,
    /// None are configured.
    Nothing,
    /// There may be some; why they can't be had and what to do, in sentences.
    Unreadable(String),
}

/// Why [`super::ImageStore`] could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    #[error("Image reference '{reference}' is not valid: {why}.")]
    BadReference { reference: String, why: String },
    /// `cloud-run-spec.md` §1.6: the words of the product we follow.
    #[error(
        "Image '{image}' not found. Its registry knows no such repository or tag: check how both are spelt, and that it was pushed; `skopeo list-tags docker://{}` lists the tags there are. Then deploy again.",
        repository(.image)
    )]
    NotFound { image: String },
    #[error(
        "Image '{image}' not found. Names in utsuwa.local are the built-in sample (utsuwa.local/hello) and uploaded images, and this server holds none of this name: `utsuwa images list` shows them, `utsuwa images load oci-archive:FILE` uploads one."
    )]
    NotLoaded { image: String },
    #[error(
        "Registry '{registry}' refuses access to image '{image}'{detail}. {} Then deploy again. (It also answers so when the repository does not exist: check how it is spelt.)",
        advice(.registry, .shown)
    )]
    Unauthorized {
        image: String,
        registry: String,
        shown: Shown,
        detail: String,
    },
    #[error(
        "Cloud Run does not support image '{image}': Container manifest type '{media_type}' must support {wanted}. It offers: {offered}."
    )]
    Architecture {
        image: String,
        media_type: String,
        wanted: String,
        offered: String,
    },
    #[error("Image '{image}' can't be used: {why}.")]
    Unsupported { image: String, why: String },
    #[error(
        "Registry '{registry}' can't be reached over https ({why}). If its certificate is of an authority of your own, name that one's file (ca-file) in the file of the server's option registries-file. If it speaks plain http, start the server with --insecure-registry {registry} (in its configuration file: insecure-registries = [\"{registry}\"]); `utsuwa up --replace` takes the place of the running one. Then deploy again."
    )]
    NoTls { registry: String, why: String },
    #[error(
        "Registry '{registry}' redirects from https to plain http ({target}); refused, since anybody on the way could change the answer."
    )]
    InsecureRedirect { registry: String, target: String },
    #[error(
        "Registry '{registry}' can't be reached to {doing}: {why}. Check how its name is spelt, that it runs, and that this machine gets there; then deploy again."
    )]
    Unreachable {
        registry: String,
        doing: String,
        why: String,
    },
    #[error(
        "Registry '{registry}' can't be found: {why}. Check how its name is spelt, and what this machine's resolver (/etc/resolv.conf) \
         says to it: getent hosts {host}. Then deploy again."
    )]
    NoAddress {
        registry: String,
        /// Whose address was asked for: the registry's, or another one that it works under or leads to.
        host: String,
        why: String,
        /// Asking again soon would find out the same.
        lasting: bool,
    },
    #[error("Registry '{registry}' can't be used to {doing}: {why}.")]
    Registry {
        registry: String,
        doing: String,
        why: String,
    },
    #[error("Registry '{registry}' sent nothing for {} s while the server tried to {doing}.", .waited.as_secs_f32())]
    Stalled {
        registry: String,
        doing: String,
        waited: Duration,
    },
    #[error(
        "Registry '{registry}' sent only {bytes} bytes in {} s while the server tried to {doing}; a download that is slower than \
         {least} bytes a second is given up. Deploy again to go on from there, or push the image to a registry that is nearer.",
        .waited.as_secs_f32()
    )]
    Slow {
        registry: String,
        doing: String,
        bytes: u64,
        waited: Duration,
        least: u64,
    },
    #[error(
        "Image '{image}' is not here after {} min, the longest a pull may take: {arrived} of {total} bytes arrived. They are kept \
         for a while: deploy again to go on from there, or use a smaller image or a faster registry.",
        .limit.as_secs() / 60
    )]
    TooLong {
        image: String,
        limit: Duration,
        arrived: u64,
        total: u64,
    },
    #[error(
        "Registry '{registry}' sent other content for {what} than the image names: expected {expected}, got {found}. Nothing of it was kept."
    )]
    Corrupt {
        registry: String,
        what: String,
        expected: String,
        found: String,
    },
    #[error(
        "Not enough disk space at {}: {needed_bytes} more bytes are needed, {available_bytes} are free, and {reserve_bytes} are kept in reserve. Free some space.",
        .path.display()
    )]
    DiskReserve {
        path: PathBuf,
        needed_bytes: u64,
        available_bytes: u64,
        reserve_bytes: u64,
    },
    #[error("{doing} at {}: {source}{}", .path.display(), room(source.kind()))]
    Disk {
        doing: &'static str,
        path: PathBuf,
        source: Arc<io::Error>,
    },
    #[error("The uploaded image can't be read: {why}.")]
    Archive { why: String },
    #[error("Image '{image}', layer {layer}: {source}")]
    Unpack {
        image: String,
        layer: Digest,
        source: Box<UnpackError>,
    },
    #[error(
        "This build of the server holds no sample image: its program could not be compiled for {target}. Deploy another image."
    )]
    NoSample { target: &'static str },
    #[error("The index of the image store can't be read at {}: {why}. Move the file away to pull the images again.", .path.display())]
    Index { path: PathBuf, why: String },
    /// The server is stopping, or a task of it died.
    #[error("Pulling was interrupted: {0}.")]
    Interrupted(String),
}

impl PullError {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotFound { .. } | Self::NotLoaded { .. } => ErrorClass::NotFound,
            Self::Unauthorized { .. } => ErrorClass::Unauthorized,
            Self::BadReference { .. }
            | Self::Architecture { .. }
            | Self::Unsupported { .. }
            | Self::NoAddress { lasting: true, .. }
            | Self::Archive { .. }
            | Self::NoSample { .. } => ErrorClass::Caller,
            Self::DiskReserve { .. } => ErrorClass::Exhausted,
            Self::Disk { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorClass::Exhausted,
                _ => ErrorClass::Internal,
            },
            Self::NoTls { .. }
            | Self::NoAddress { lasting: false, .. }
            | Self::Unreachable { .. }
            | Self::InsecureRedirect { .. }
            | Self::Registry { .. }
            | Self::Stalled { .. }
            | Self::Slow { .. }
            | Self::TooLong { .. }
            | Self::Corrupt { .. }
            | Self::Interrupted(_) => ErrorClass::Unavailable,
            Self::Unpack { source, .. } => source.class(),
            Self::Index { .. } => ErrorClass::Internal,
        }
    }

    /// For `map_err` on file operations.
    pub(crate) fn disk(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk {
            doing,
            path,
            source: Arc::new(source),
        }
    }
}

/// What to do about a disk that took no more.
pub(crate) fn room(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space on the disk of the data directory"
        }
        _ => "",
    }
}

/// `r.example/team/api:1.4` or `r.example/team/api@sha256:…` without what names one image of it.
fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        // The colon before a path is a port's.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

fn advice(registry: &str, shown: &Shown) -> String {
    match shown {
        Shown::Credentials => format!(
            "The credentials configured for '{registry}' were refused: renew them with `docker login {registry}` as the user who starts the server, or in the file of the server's option registries-file."
        ),
        Shown::Nothing => format!(
            "No credentials are configured for '{registry}': run `docker login {registry}` as the user who starts the server, or name another file in docker's format with the server's option docker-config, or one with a table per registry with the option registries-file."
        ),
        Shown::Unreadable(why) => format!("It was asked without credentials. {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_tag_says_how_to_find_the_others() {
        for (image, repository) in [
            (
                "r.example:5000/team/api:1.5",
                "docker://r.example:5000/team/api`",
            ),
            (
                "r.example:5000/team/api",
                "docker://r.example:5000/team/api`",
            ),
            ("r.example/api@sha256:00", "docker://r.example/api`"),
        ] {
            let image = image.to_owned();
            let text = PullError::NotFound { image }.to_string();
            assert!(text.contains(repository), "{text}");
        }
    }

    #[test]
    fn a_name_without_an_address_is_final_only_when_that_will_stay_so() {
        let class = |lasting| {
            let (registry, why) = ("r.example".to_owned(), "a reason".to_owned());
            PullError::NoAddress {
                host: registry.clone(),
                registry,
                why,
                lasting,
            }
            .class()
        };
        assert_eq!(class(true), ErrorClass::Caller);
        assert_eq!(class(false), ErrorClass::Unavailable);
    }

    /// Docker Hub, which images call docker.io, is asked under another name.
    #[test]
    fn the_host_to_ask_for_is_the_one_that_has_no_address() {
        let error = PullError::NoAddress {
            registry: "docker.io".to_owned(),
            host: "registry-1.docker.io".to_owned(),
            why: "no such name".to_owned(),
            lasting: true,
        };
        let text = error.to_string();
        assert!(text.contains("Registry 'docker.io'"), "{text}");
        assert!(
            text.contains("getent hosts registry-1.docker.io."),
            "{text}"
        );
    }
}
