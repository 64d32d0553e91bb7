//! What loops found out. Written by `control` only, in one transaction with the conditions it belongs to (§1.8, invariant 1).

use serde::{Deserialize, Serialize};

use crate::{Condition, RevisionId};

/// The part of a service that loops write.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Equals `meta.generation` once the loops have answered for it.
    pub observed_generation: u64,
    pub conditions: Vec<Condition>,
    /// Newest revision, ready or not.
    pub latest_created: Option<RevisionId>,
    /// Highest-generation revision that became ready.
    pub latest_ready: Option<RevisionId>,
    /// The generation of the service that `latest_ready` stands for: later than its own when it was named again.
    #[serde(default)]
    pub latest_ready_generation: u64,
    /// What is really routed, `latest` resolved.
    pub traffic: Vec<TrafficStatus>,
    /// `http(s)://HOST[:PORT]`, no trailing slash. Empty where the service's own address is switched off.
    pub url: String,
    /// Other addresses that lead to it: the same host over HTTPS, its own domains.
    #[serde(default)]
    pub other_urls: Vec<String>,
}

impl ServiceStatus {
    /// All addresses that lead to it, its own first.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        std::iter::once(&self.url)
            .filter(|url| !url.is_empty())
            .chain(&self.other_urls)
            .cloned()
            .collect()
    }
}

/// One routed share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficStatus {
    pub revision: RevisionId,
    pub latest: bool,
    pub percent: Option<u32>,
    pub tag: Option<String>,
    /// Address of the tag, empty without one.
    pub url: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_switched_off_is_none_of_them() {
        let mut status = ServiceStatus {
            url: "http://a.localhost".to_owned(),
            other_urls: vec!["https://www.example.com".to_owned()],
            ..ServiceStatus::default()
        };
        assert_eq!(
            status.urls(),
            ["http://a.localhost", "https://www.example.com"]
        );
        status.url.clear();
        assert_eq!(status.urls(), ["https://www.example.com"]);
    }
}
