//! Session affinity: a cookie by which a client comes back to the revision and the instance it was on.
//!
//! Best effort, as on Cloud Run: an instance that is gone, leaving or full is left for another, and the cookie then names that
//! one. The choice itself is [`utsuwa_decide::admit::choose_with_affinity`].
//!
//! Invariants:
//! 1. A cookie never leads anywhere the host's route does not: it picks among the route's own revisions and their ready
//!    instances.
//! 2. Revisions without affinity neither read nor set it.

use std::sync::Arc;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use utsuwa_model::route::RevisionRoute;
use utsuwa_model::{InstanceId, RevisionId, RevisionKey};

use crate::revision::Revision;
use crate::serve::Scheme;

const NAME: &str = "utsuwa-affinity";
/// How long a browser keeps it: 30 days.
const MAX_AGE_SECONDS: u32 = 30 * 24 * 60 * 60;

/// Where a client was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Affinity {
    pub(crate) revision: RevisionId,
    pub(crate) instance: InstanceId,
}

impl Affinity {
    /// What the client's cookie says; `None` without one that we could have made.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(';'))
            .filter_map(|pair| pair.trim().strip_prefix(NAME)?.strip_prefix('='))
            .find_map(|value| {
                let (revision, instance) = value.split_once('.')?;
                Some(Self {
                    revision: revision.parse().ok()?,
                    instance: instance.parse().ok()?,
                })
            })
    }

    /// What the cookie of a client says to a host whose requests are shared among `revisions`; `None` unless the one it
    /// names is still among them and wants affinity. Answers its place too.
    pub(crate) fn among(
        headers: &HeaderMap,
        revisions: &[(Arc<Revision>, Arc<RevisionRoute>)],
    ) -> Option<(usize, Self)> {
        if !revisions.iter().any(|(_, route)| route.session_affinity) {
            return None;
        }
        let before = Self::of(headers)?;
        let place = revisions.iter().position(|(revision, route)| {
            route.session_affinity && revision.key.revision == before.revision
        })?;
        Some((place, before))
    }

    /// The header that makes the client come back to `instance`; `None` when its cookie says so already.
    pub(crate) fn cookie(
        before: Option<&Self>,
        revision: &RevisionKey,
        instance: &InstanceId,
        scheme: Scheme,
    ) -> Option<HeaderValue> {
        if before
            .is_some_and(|known| known.revision == revision.revision && known.instance == *instance)
        {
            return None;
        }
        let secure = match scheme {
            Scheme::Https => "; Secure",
            Scheme::Http => "",
        };
        HeaderValue::try_from(format!(
            "{NAME}={}.{instance}; Path=/; Max-Age={MAX_AGE_SECONDS}; HttpOnly; SameSite=Lax{secure}",
            revision.revision
        ))
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn said(cookies: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(COOKIE, HeaderValue::from_static(cookie));
        }
        Affinity::of(&headers).map(|found| format!("{} {}", found.revision, found.instance))
    }

    #[test]
    fn only_what_we_could_have_made_is_read() {
        let wanted = Some(format!("a-00001-abc {ID}"));
        for good in [
            &["utsuwa-affinity=a-00001-abc.0123456789abcdef0123456789abcdef"][..],
            &[
                "x=1",
                "y=2;utsuwa-affinity=a-00001-abc.0123456789abcdef0123456789abcdef; z=3",
            ],
            &[
                "utsuwa-affinity=spoilt; utsuwa-affinity=a-00001-abc.0123456789abcdef0123456789abcdef",
            ],
        ] {
            assert_eq!(said(good), wanted, "{good:?}");
        }
        for bad in [
            &[][..],
            &["utsuwa-affinity="],
            &["utsuwa-affinity=a-00001-abc"],
            &["utsuwa-affinity=../etc.0123456789abcdef0123456789abcdef"],
            &["utsuwa-affinity=a-00001-abc.0123"],
            &["my-utsuwa-affinity=a-00001-abc.0123456789abcdef0123456789abcdef"],
            &["utsuwa-affinity-2=a-00001-abc.0123456789abcdef0123456789abcdef"],
        ] {
            assert_eq!(said(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_cookie_is_made_once_and_read_back() {
        let key: RevisionKey = "demo/here/a/a-00001-abc".parse().unwrap();
        let id: InstanceId = ID.parse().unwrap();
        let made = Affinity::cookie(None, &key, &id, Scheme::Https).unwrap();
        let text = made.to_str().unwrap();
        for part in [
            "HttpOnly",
            "Secure",
            "Max-Age=2592000",
            "Path=/",
            "SameSite=Lax",
        ] {
            assert!(text.split("; ").any(|word| word == part), "{part}: {text}");
        }
        let mut headers = HeaderMap::new();
        let pair = text.split(';').next().unwrap();
        headers.insert(COOKIE, HeaderValue::from_str(pair).unwrap());
        let back = Affinity::of(&headers).unwrap();
        assert_eq!((&back.revision, &back.instance), (&key.revision, &id));
        assert_eq!(Affinity::cookie(Some(&back), &key, &id, Scheme::Http), None);
        let other: InstanceId = "f".repeat(32).parse().unwrap();
        let moved = Affinity::cookie(Some(&back), &key, &other, Scheme::Http).unwrap();
        assert!(!moved.to_str().unwrap().contains("Secure"));
    }
}
