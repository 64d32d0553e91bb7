//! Directories of the host that its operator lets services mount: what `--allow-host-dir` says, and what of it a service asks for.
//!
//! Owns: the rule's spelling, and which rule a path belongs to. Doesn't: look at any file system; that is the starter's, by
//! descriptor, against the keeper's own copy of the rules.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// By this name an instance reaches its host (decision 11); a volume of kind nfs with this server is a directory of the host.
pub const HOST: &str = "host.utsuwa.internal";
/// What to do instead of naming another machine.
pub const ONLY_THIS_HOST: &str = "directories of other machines are not built in this server: mount the directory on this one, start the server \
     with --allow-host-dir PATH, and write host.utsuwa.internal for the server";
/// Of these nobody needs to show anything to a service, and much in them is the host itself.
const CLOSED: [&str; 6] = ["/proc", "/sys", "/dev", "/run", "/boot", "/etc"];

/// One rule: a directory with all that is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDir {
    /// Absolute, without `.`, `..` and doubled slashes; never `/`.
    pub path: String,
    pub writable: bool,
}

/// Why a rule can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {why}")]
pub struct HostDirError {
    text: String,
    why: &'static str,
}

impl HostDir {
    /// The rule for `path` and where below its directory that is (empty for the directory itself): of several the nearest.
    #[must_use]
    pub fn find<'a>(rules: &'a [Self], path: &str) -> Option<(&'a Self, String)> {
        let wanted = parts(path);
        if !path.starts_with('/') || wanted.contains(&"..") {
            return None;
        }
        let above = rules
            .iter()
            .filter(|rule| wanted.starts_with(&parts(&rule.path)));
        let nearest = above.max_by_key(|rule| parts(&rule.path).len())?;
        let below = wanted[parts(&nearest.path).len()..].join("/");
        Some((nearest, below))
    }

    /// Whether one of the two is the other or lies in it.
    #[must_use]
    pub fn overlaps(&self, path: &str) -> bool {
        let (own, other) = (parts(&self.path), parts(path));
        own.starts_with(&other) || other.starts_with(&own)
    }
}

impl FromStr for HostDir {
    type Err = HostDirError;

    /// `PATH` or `PATH:ro` to read, `PATH:rw` to write.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why| HostDirError {
            text: text.to_owned(),
            why,
        };
        let (path, writable) = match text.rsplit_once(':') {
            Some((path, "ro")) => (path, false),
            Some((path, "rw")) => (path, true),
            Some(_) => return Err(wrong("after ':' comes ro or rw, and a path has no ':'")),
            None => (text, false),
        };
        let named = parts(path);
        if !path.starts_with('/') || named.contains(&"..") || path.chars().any(char::is_control) {
            return Err(wrong(
                "must be an absolute path without '..', for example /srv/data or /srv/data:rw",
            ));
        }
        if named.is_empty() {
            return Err(wrong(
                "that is all of the host; name the directory that services need",
            ));
        }
        let rule = Self {
            path: format!("/{}", named.join("/")),
            writable,
        };
        if CLOSED
            .iter()
            .any(|closed| named.starts_with(&parts(closed)))
        {
            return Err(wrong(
                "directories in /proc, /sys, /dev, /run, /boot and /etc are the host's own; copy what services need elsewhere",
            ));
        }
        Ok(rule)
    }
}

impl fmt::Display for HostDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        f.write_str(if self.writable { ":rw" } else { ":ro" })
    }
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_rule_is_read_only_unless_it_says_otherwise() {
        for (text, shown) in [
            ("/srv/data", "/srv/data:ro"),
            ("/srv/data:ro", "/srv/data:ro"),
            ("//srv/./data/:rw", "/srv/data:rw"),
        ] {
            assert_eq!(text.parse::<HostDir>().unwrap().to_string(), shown);
        }
        for (text, word) in [
            ("srv", "absolute"),
            ("/srv/../etc", "absolute"),
            ("/", "all of the host"),
            ("/./:rw", "all of the host"),
            ("/srv:x", "ro or rw"),
            ("/a:b/c", "ro or rw"),
            ("/proc/1", "the host's own"),
            ("/dev:rw", "the host's own"),
            ("/run/utsuwa", "the host's own"),
            ("", "absolute"),
        ] {
            let error = text.parse::<HostDir>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_nearest_rule_counts_and_names_count_whole() {
        let rules: Vec<HostDir> = ["/srv", "/srv/data:rw", "/var/lib/x"]
            .iter()
            .map(|rule| rule.parse().unwrap())
            .collect();
        for (path, rule, below) in [
            ("/srv/data/a/b", "/srv/data:rw", "a/b"),
            ("/srv/data", "/srv/data:rw", ""),
            ("/srv/database", "/srv:ro", "database"),
            ("//srv/./other/", "/srv:ro", "other"),
            ("/var/lib/x", "/var/lib/x:ro", ""),
        ] {
            let (found, rest) = HostDir::find(&rules, path).unwrap();
            assert_eq!((found.to_string().as_str(), rest.as_str()), (rule, below));
        }
        for path in ["/var/lib", "/etc", "srv/data", "/srv/../etc", "/", ""] {
            assert_eq!(HostDir::find(&rules, path), None, "{path}");
        }
        assert!(rules[2].overlaps("/var") && rules[2].overlaps("/var/lib/x/y"));
        assert!(!rules[2].overlaps("/var/lib/xy"));
    }
}
