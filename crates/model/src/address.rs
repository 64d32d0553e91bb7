//! Where services live: host names (decision 13) and project numbers (decision 14).

use crate::{ProjectId, Region, ServiceKey};

/// Characters of the hash in host names outside the default project and region.
const HASH_CHARACTERS: usize = 10;

/// Host name of a service: `NAME.DOMAIN` in the default project and region, else `NAME-HASH.DOMAIN`. Lower case, no port.
#[must_use]
pub fn service_host(
    key: &ServiceKey,
    project: &ProjectId,
    region: &Region,
    domain: &str,
) -> String {
    if key.project == *project && key.region == *region {
        return format!("{}.{domain}", key.service);
    }
    format!(
        "{}-{}.{domain}",
        key.service,
        place_hash(&key.project, &key.region)
    )
}

/// Host name of a tag of the service at `host`.
#[must_use]
pub fn tag_host(tag: &str, host: &str) -> String {
    format!("{tag}---{host}")
}

/// A project's number, derived from its id: twelve digits, as Google's are. Output names a project by it, input by either.
#[must_use]
pub fn project_number(project: &ProjectId) -> u64 {
    100_000_000_000 + fnv(project.as_str().as_bytes()) % 900_000_000_000
}

/// Ten letters and digits over project and region. 50 bits: a clash is as good as impossible, and refused if it happens.
fn place_hash(project: &ProjectId, region: &Region) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bits = fnv(format!("{project}/{region}").as_bytes());
    let mut text = String::with_capacity(HASH_CHARACTERS);
    for _ in 0..HASH_CHARACTERS {
        text.push(char::from(
            ALPHABET[usize::try_from(bits % 32).unwrap_or(0)],
        ));
        bits /= 32;
    }
    text
}

/// FNV-1a with a final mix: stable for ever (host names depend on it), no dependency, not meant to resist attack.
fn fnv(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_place_has_short_names() {
        let (project, region): (ProjectId, Region) = (
            "demo".parse().expect("ok"),
            "us-central1".parse().expect("ok"),
        );
        let at = |text: &str| {
            service_host(
                &text.parse().expect("a key"),
                &project,
                &region,
                "localhost",
            )
        };
        assert_eq!(at("demo/us-central1/hello"), "hello.localhost");
        let other = at("demo/europe-west1/hello");
        assert_eq!(other.len(), "hello-.localhost".len() + HASH_CHARACTERS);
        assert_ne!(other, at("demo2/europe-west1/hello"));
        assert_eq!(other, at("demo/europe-west1/hello"), "stable");
        assert_eq!(
            tag_host("blue", "hello.localhost"),
            "blue---hello.localhost"
        );
    }

    #[test]
    fn numbers_are_stable_and_have_twelve_digits() {
        for id in ["demo", "p", "a-long-project-name-of-some-kind"] {
            let number = project_number(&id.parse().expect("ok"));
            assert_eq!(number.to_string().len(), 12, "{id}");
        }
        let number = |id: &str| project_number(&id.parse().expect("ok"));
        assert_ne!(number("demo"), number("demo2"));
        // Written into users' scripts and stored nowhere: changing the function would change them.
        assert_eq!(number("demo"), 810944374904);
    }
}
