//! Where a registry is, and where it may send us.

use reqwest::Url;

use super::Registry;
use crate::image::error::PullError;
use crate::image::reference::Reference;

impl Registry {
    /// Plain http is reached from plain http or where the operator allowed it; other schemes never.
    pub(super) fn allow(
        &self,
        image: &Reference,
        from: &Url,
        target: &Url,
    ) -> Result<(), PullError> {
        let insecure = || {
            let host = target.host_str().unwrap_or_default();
            let authority = target
                .port()
                .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            self.is_insecure(&authority)
        };
        match target.scheme() {
            "https" => Ok(()),
            "http" if from.scheme() == "http" || insecure() => Ok(()),
            _ => Err(PullError::InsecureRedirect {
                registry: image.registry.clone(),
                target: origin(target),
            }),
        }
    }

    pub(super) fn base(&self, registry: &str) -> String {
        let host = if registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            registry
        };
        let scheme = if self.is_insecure(registry) {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{host}")
    }

    pub(super) fn is_insecure(&self, registry: &str) -> bool {
        let host = registry
            .rsplit_once(':')
            .map_or(registry, |(host, _port)| host);
        self.settings
            .insecure
            .iter()
            .any(|entry| entry == registry || entry == host)
    }
}

pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}
