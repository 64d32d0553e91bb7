//! A custom domain that leads to a service (`cloud-run-spec.md` §1.6): what the user asked for and what became of it.

use core::net::{Ipv4Addr, Ipv6Addr};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::NameError;
use crate::service::Meta;
use crate::{Condition, ProjectId, Region, ServiceId, ServiceKey, Timestamp};

/// A domain that somebody owns elsewhere: lower case, at least two labels, no port, no last dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

impl DomainName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |rule| {
            Err(NameError {
                kind: "domain",
                value: text.to_owned(),
                rule,
            })
        };
        if text.len() > 253 {
            return wrong("must be at most 253 characters");
        }
        if !is_host_name(text) {
            return wrong("must be a full domain name in lower case, such as www.example.com");
        }
        if !text.contains('.') {
            return wrong("must have at least two parts, such as example.com");
        }
        if text.parse::<Ipv4Addr>().is_ok() {
            return wrong("must be a name, not an address");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Whether `text` is one or more labels of a host's name in lower case, with nothing before, between or after them.
#[must_use]
pub fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl TryFrom<String> for DomainName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

/// Whether a certificate is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CertificateMode {
    #[default]
    Automatic,
    None,
}

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainSpec {
    /// The service that requests for the domain go to; of the mapping's own project and region.
    pub route: ServiceId,
    pub certificate: CertificateMode,
    /// Take the domain from the mapping that has it.
    pub force_override: bool,
}

/// One domain and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainMapping {
    pub name: DomainName,
    pub project: ProjectId,
    pub region: Region,
    pub meta: Meta,
    pub spec: DomainSpec,
    pub status: DomainStatus,
}

impl DomainMapping {
    /// The service it leads to, whether that exists or not.
    #[must_use]
    pub fn service(&self) -> ServiceKey {
        ServiceKey {
            project: self.project.clone(),
            region: self.region.clone(),
            service: self.spec.route.clone(),
        }
    }
}

/// What became of it. Written by its loop alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DomainStatus {
    pub observed_generation: u64,
    pub conditions: Vec<Condition>,
    pub records: Vec<ResourceRecord>,
    pub mapped_route: String,
    pub url: String,
    /// Attempts to get a certificate that failed, since the last that didn't.
    pub trouble: Option<Trouble>,
}

/// A record that the owner of the domain sets at their DNS provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRecord {
    /// `A`, `AAAA` or `CNAME`.
    pub kind: String,
    pub data: String,
}

/// Attempts in a row that failed. Durable: a server that starts again must not begin to hurry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub failures: u32,
    /// When the last one failed.
    pub at: Timestamp,
    /// Why, in the user's words.
    pub message: String,
    /// The authority said not to come before this.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    pub from: Timestamp,
    pub until: Timestamp,
}

/// Which certificates there are for a host, as the ingress sees it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CertificateStanding {
    /// Given by the operator.
    pub given: Option<Validity>,
    /// Issued by an authority.
    pub issued: Option<Validity>,
}

/// Where clients outside reach this server, for the records of domains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublicAddress {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// A name that leads here: records point to it instead.
    pub name: Option<String>,
}

impl PublicAddress {
    /// What the owner of a domain sets.
    #[must_use]
    pub fn records(&self) -> Vec<ResourceRecord> {
        let record = |kind: &str, data: String| ResourceRecord {
            kind: kind.to_owned(),
            data,
        };
        if let Some(name) = &self.name {
            return vec![record("CNAME", format!("{name}."))];
        }
        let v4 = self.v4.map(|v4| record("A", v4.to_string()));
        let v6 = self.v6.map(|v6| record("AAAA", v6.to_string()));
        v4.into_iter().chain(v6).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_domains() {
        for good in [
            "example.com",
            "www.example.com",
            "xn--bcher-kva.example",
            "a-1.b2.c",
        ] {
            assert_eq!(good.parse::<DomainName>().expect(good).as_str(), good);
        }
        for bad in [
            "",
            "localhost",
            "Example.com",
            "example.com.",
            ".example.com",
            "a..b",
            "*.example.com",
            "-a.b",
            "a-.b",
            "1.2.3.4",
            "example.com:80",
            "exa_mple.com",
        ] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad}");
        }
        assert!(
            format!("{}.com", "a".repeat(64))
                .parse::<DomainName>()
                .is_err()
        );
    }

    #[test]
    fn a_name_beats_addresses_in_records() {
        let mut public = PublicAddress {
            v4: Some(Ipv4Addr::new(203, 0, 113, 7)),
            ..PublicAddress::default()
        };
        assert_eq!(public.records()[0].kind, "A");
        public.name = Some("run.example.net".to_owned());
        let records = public.records();
        assert_eq!(
            (records.len(), records[0].data.as_str()),
            (1, "run.example.net.")
        );
    }
}
