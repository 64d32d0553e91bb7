//! Names and ids. A value of these types is well-formed by construction.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a string is not a name. The text names the rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?}: {rule}")]
pub struct NameError {
    pub kind: &'static str,
    pub value: String,
    pub rule: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(value) {
                    Ok(()) => Ok(Self(Arc::from(value))),
                    Err(rule) => Err(NameError { kind: $kind, value: value.to_owned(), rule }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name_type!(
    /// A project id: 6–30 characters on Google; we take 1–63 lower-case letters, digits and hyphens that start with a letter
    /// (decision 14: projects exist when well-formed).
    ProjectId, "project", |s| dns_label(s, 63)
);
name_type!(
    /// A region such as `asia-northeast1`.
    Region, "region", |s| dns_label(s, 40)
);
name_type!(
    /// A service id: DNS-1035 label, at most 49 characters (`cloud-run-spec.md` §1.1.1).
    ServiceId, "service", |s| dns_label(s, 49)
);
name_type!(
    /// A revision id: DNS-1035 label, at most 63 characters (§1.3).
    RevisionId, "revision", |s| dns_label(s, 63)
);
name_type!(
    /// An instance id, unique for ever: 32 lower-case hexadecimal digits. It is its own incarnation number: an id is never
    /// given to a second instance, and instances are reached by id, so a request can't reach the wrong one.
    InstanceId, "instance", |s| {
        if s.len() == 32 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(())
        } else {
            Err("must be 32 lower-case hexadecimal digits")
        }
    }
);

/// DNS-1035 label of at most `max` characters. Who breaks one rule is told all of them, and need not find them one by one.
fn dns_label(s: &str, max: usize) -> Result<(), &'static str> {
    if s.is_empty() {
        return Err("must not be empty");
    }
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fine = s.len() <= max
        && s.bytes().all(inner)
        && s.starts_with(|c: char| c.is_ascii_lowercase())
        && !s.ends_with('-');
    if fine {
        return Ok(());
    }
    Err(match max {
        49 => {
            "must be 1 to 49 lower-case letters, digits and hyphens, begin with a letter and not end with a hyphen"
        }
        40 => {
            "must be 1 to 40 lower-case letters, digits and hyphens, begin with a letter and not end with a hyphen"
        }
        _ => {
            "must be 1 to 63 lower-case letters, digits and hyphens, begin with a letter and not end with a hyphen"
        }
    })
}

/// Names one service among all: `PROJECT/REGION/SERVICE` when displayed and stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    pub project: ProjectId,
    pub region: Region,
    pub service: ServiceId,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.project, self.region, self.service)
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        let mut parts = value.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(p), Some(r), Some(s)) => Ok(Self {
                project: p.parse()?,
                region: r.parse()?,
                service: s.parse()?,
            }),
            _ => Err(NameError {
                kind: "service key",
                value: value.to_owned(),
                rule: "must be PROJECT/REGION/SERVICE",
            }),
        }
    }
}

/// Names one revision among all: `PROJECT/REGION/SERVICE/REVISION`. Revision ids are unique within project and region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RevisionKey {
    pub service: ServiceKey,
    pub revision: RevisionId,
}

impl fmt::Display for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.revision)
    }
}

impl FromStr for RevisionKey {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        match value.rsplit_once('/') {
            Some((service, revision)) => Ok(Self {
                service: service.parse()?,
                revision: revision.parse()?,
            }),
            None => Err(NameError {
                kind: "revision key",
                value: value.to_owned(),
                rule: "must be PROJECT/REGION/SERVICE/REVISION",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_way_through_text() {
        let key: RevisionKey = "demo/asia-northeast1/hello/hello-00001-abc"
            .parse()
            .expect("well-formed");
        assert_eq!(
            key.to_string().parse::<RevisionKey>().expect("own text"),
            key
        );
        assert_eq!(key.service.service.as_str(), "hello");
    }

    #[test]
    fn a_bad_name_says_every_rule() {
        const ALL: &str = "must be 1 to 49 lower-case letters, digits and hyphens, begin with a letter and not end with a hyphen";
        for (bad, rule) in [
            ("", "must not be empty"),
            ("Hello", ALL),
            ("1a", ALL),
            ("Bad_Name", ALL),
            ("a-", ALL),
        ] {
            assert_eq!(
                bad.parse::<ServiceId>().expect_err("bad").rule,
                rule,
                "{bad}"
            );
        }
        assert!("a".repeat(49).parse::<ServiceId>().is_ok());
        assert!("a".repeat(50).parse::<ServiceId>().is_err());
    }
}
