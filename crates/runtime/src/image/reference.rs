//! Names of images: parsing, defaults, and the operator's rewrite rules.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::PullError;

/// The host part of images this server holds itself.
pub const LOCAL_REGISTRY: &str = "utsuwa.local";
/// The built-in sample image.
pub const HELLO: &str = "utsuwa.local/hello";

/// A parsed image reference. Always has a tag or a digest; with both, the digest counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host and port, lower case.
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses `[HOST[:PORT]/]REPOSITORY[:TAG][@sha256:…]`. Without a host it is Docker Hub's, without tag and digest `latest`.
    ///
    /// # Errors
    /// [`PullError::BadReference`] saying which part is wrong.
    pub fn parse(text: &str) -> Result<Self, PullError> {
        let bad = |why: String| PullError::BadReference {
            reference: text.chars().take(300).collect(),
            why,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse::<Digest>()
                        .map_err(|error| bad(error.to_string()))?,
                ),
            ),
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(bad(format!(
                "'{tag}' is no tag (letters, digits, '_', '.', '-', at most 128)"
            )));
        }
        let (host, repository) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':', '[']) || host == "localhost" => {
                (host.to_lowercase(), rest.to_owned())
            }
            // A name without a slash but with a port was split as a tag above.
            Some(_) => ("docker.io".to_owned(), path.to_owned()),
            None => ("docker.io".to_owned(), format!("library/{path}")),
        };
        if !is_host(&host) {
            return Err(bad(format!("'{host}' is no host name")));
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            let name = repository
                .strip_prefix("library/")
                .filter(|_name| !path.contains('/'))
                .unwrap_or(&repository);
            return Err(bad(format!(
                "'{name}' is no repository name (lower-case letters and digits, separated by '.', '_', '-' or '/')"
            )));
        }
        let registry = if host == "index.docker.io" || host == "registry-1.docker.io" {
            "docker.io".to_owned()
        } else {
            host
        };
        let tag = tag
            .map(str::to_owned)
            .or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// `HOST/REPOSITORY`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// This repository at `digest`.
    pub fn pinned(&self, digest: Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub fn at(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// True for images of this server's own.
    pub fn is_local(&self) -> bool {
        self.registry == LOCAL_REGISTRY
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn is_component(component: &str) -> bool {
    let edge = |byte: Option<u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    edge(component.bytes().next())
        && edge(component.bytes().next_back())
        && component.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
        })
        && !component.contains("..")
        && !component.contains("___")
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return false;
    }
    if let Some(address) = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
    {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

/// The operator's rule that one image name means another: a mirror, or the built-in sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteRule {
    /// `HOST/REPOSITORY` (any tag), or a prefix that ends with `/` (`docker.io/`).
    pub from: String,
    /// What replaces it. Tag and digest are kept unless this names its own.
    pub to: String,
}

impl RewriteRule {
    /// The rules every server starts with: Google's sample works without a network.
    pub fn defaults() -> Vec<Self> {
        [
            "gcr.io/cloudrun/hello",
            "us-docker.pkg.dev/cloudrun/container/hello",
        ]
        .map(|from| Self {
            from: from.to_owned(),
            to: HELLO.to_owned(),
        })
        .to_vec()
    }
}

/// Applies the most specific rule once: an exact one, else the longest prefix.
///
/// # Errors
/// [`PullError::BadReference`] when a rule makes something that is no reference; the text names the rule.
pub fn rewrite(reference: &Reference, rules: &[RewriteRule]) -> Result<Reference, PullError> {
    let name = reference.name();
    let matching =
        rules.iter().filter(
            |rule| match rule.from.strip_suffix('*').unwrap_or(&rule.from) {
                prefix if prefix.ends_with('/') => name.starts_with(prefix),
                exact => name == exact,
            },
        );
    let Some(rule) =
        matching.max_by_key(|rule| (!rule.from.ends_with(['/', '*']), rule.from.len()))
    else {
        return Ok(reference.clone());
    };
    let rest = name
        .get(rule.from.trim_end_matches('*').len()..)
        .unwrap_or_default();
    let text = format!("{}{rest}", rule.to);
    let mut target = Reference::parse(&text).map_err(|error| match error {
        PullError::BadReference {
            reference: made,
            why,
        } => PullError::BadReference {
            reference: made,
            why: format!(
                "{why} (made from '{reference}' by the rewrite rule '{}' → '{}')",
                rule.from, rule.to
            ),
        },
        other => other,
    })?;
    let own = text.contains('@')
        || text
            .rsplit('/')
            .next()
            .is_some_and(|last| last.contains(':'));
    if !own {
        target.tag.clone_from(&reference.tag);
        target.digest = reference.digest;
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn defaults_are_filled_in() {
        let digest = Digest::of(b"x");
        for (text, whole) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("grafana/loki:2.9", "docker.io/grafana/loki:2.9".to_owned()),
            (
                "index.docker.io/library/alpine",
                "docker.io/library/alpine:latest".to_owned(),
            ),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            (
                "Gcr.io/p/a__b/c-d.e",
                "gcr.io/p/a__b/c-d.e:latest".to_owned(),
            ),
            (
                &format!("r.example/x@{digest}"),
                format!("r.example/x@{digest}"),
            ),
            (
                &format!("r.example/x:t@{digest}"),
                format!("r.example/x:t@{digest}"),
            ),
        ] {
            let parsed = Reference::parse(text).unwrap();
            assert_eq!(parsed.to_string(), whole);
            assert_eq!(Reference::parse(&whole).unwrap(), parsed);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_part_that_is_wrong() {
        for (text, part) in [
            ("", "repository"),
            ("UPPER", "repository"),
            ("a//b", "repository"),
            ("r.example/../x", "repository"),
            ("r.example/x:", "tag"),
            ("r.example/x:.t", "tag"),
            ("r.example/x@sha256:12", "digest"),
            ("r.example:99999/x", "host"),
            ("-r.example/x", "host"),
            ("http://r.example/x", "host"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_most_specific_rule_wins_and_the_tag_stays() {
        let mut rules = RewriteRule::defaults();
        rules.push(RewriteRule {
            from: "docker.io/".into(),
            to: "mirror.example/hub/".into(),
        });
        rules.push(RewriteRule {
            from: "docker.io/library/".into(),
            to: "mirror.example/lib/".into(),
        });
        rules.push(RewriteRule {
            from: "docker.io/library/redis".into(),
            to: "r.example/redis:7".into(),
        });
        for (text, whole) in [
            ("gcr.io/cloudrun/hello", "utsuwa.local/hello:latest"),
            (
                "us-docker.pkg.dev/cloudrun/container/hello:job",
                "utsuwa.local/hello:job",
            ),
            ("gcr.io/cloudrun/hello2", "gcr.io/cloudrun/hello2:latest"),
            ("grafana/loki:2.9", "mirror.example/hub/grafana/loki:2.9"),
            ("alpine:3", "mirror.example/lib/alpine:3"),
            ("redis:6", "r.example/redis:7"),
        ] {
            let target = rewrite(&Reference::parse(text).unwrap(), &rules).unwrap();
            assert_eq!(target.to_string(), whole);
        }
    }
}
