//! Which images are others here than their names say: the server's rewrite rules, for who deploys and for who looks.

use serde_json::Value;
use utsuwa_runtime::image::{HELLO, Reference, RewriteRule, rewrite};

use crate::client::Api;
use crate::output::text_at;

/// The rules of the server that is spoken to.
#[derive(Debug)]
pub(super) struct Rewrites(Vec<RewriteRule>);

impl Rewrites {
    /// As the server has them; where it doesn't tell, nothing is known to be rewritten.
    pub(super) async fn of(api: &Api) -> Self {
        match api.get("/utsuwa/v1/config").await {
            Ok(answer) => Self::from_options(&answer),
            Err(_) => Self(Vec::new()),
        }
    }

    pub(super) fn from_options(answer: &Value) -> Self {
        let options = answer["options"].as_array();
        let given = options
            .into_iter()
            .flatten()
            .find(|option| option["option"] == "image-rewrites")
            .map(|option| text_at(option, "value"))
            .unwrap_or_default();
        let given = given.split(',').filter_map(|rule| rule.split_once('='));
        // In the server's order: of two equally exact rules the operator's counts.
        let mut rules = RewriteRule::defaults();
        rules.extend(given.map(|(from, to)| RewriteRule {
            from: from.to_owned(),
            to: to.to_owned(),
        }));
        Self(rules)
    }

    /// What `image` is here, and why, when that is another than its name says.
    pub(super) fn here(&self, image: &str) -> Option<String> {
        let named = Reference::parse(image).ok()?;
        let meant = rewrite(&named, &self.0).ok()?;
        if meant == named {
            return None;
        }
        let sample = meant.name() == HELLO;
        Some(if sample {
            format!("the built-in sample {HELLO} here (image-rewrites)")
        } else {
            format!("{meant} here (image-rewrites)")
        })
    }

    /// Whether `image` is the built-in sample here, in whatever version; another tag of its name is another program.
    pub(super) fn is_sample(&self, image: &str) -> bool {
        let meant = Reference::parse(image).and_then(|named| rewrite(&named, &self.0));
        meant.is_ok_and(|meant| {
            let latest = meant.tag.as_deref().is_none_or(|tag| tag == "latest");
            meant.name() == HELLO && (latest || meant.digest.is_some())
        })
    }

    /// What to say to who deploys `image`.
    pub(super) fn note(&self, image: &str) -> Option<String> {
        let here = self.here(image)?;
        Some(format!("note: {image} is {here}"))
    }

    /// Writes into the template of a service that is shown what its images are here.
    pub(super) fn explain(&self, service: &mut Value) {
        let containers = service.pointer_mut("/template/containers");
        for container in containers
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let image = text_at(container, "image");
            if let Some(here) = self.here(&image) {
                container["image"] = Value::from(format!("{image}: {here}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rewrites(value: &str) -> Rewrites {
        Rewrites::from_options(&json!({"options": [
            {"option": "domain", "value": "localhost"},
            {"option": "image-rewrites", "value": value},
        ]}))
    }

    #[test]
    fn the_sample_in_googles_place_is_named_as_such() {
        let rewrites = rewrites("docker.io/=mirror.example/hub/");
        assert_eq!(
            rewrites.note("gcr.io/cloudrun/hello").as_deref(),
            Some(
                "note: gcr.io/cloudrun/hello is the built-in sample utsuwa.local/hello here (image-rewrites)"
            )
        );
        assert_eq!(
            rewrites.note("redis:7").as_deref(),
            Some("note: redis:7 is mirror.example/hub/library/redis:7 here (image-rewrites)")
        );
        for as_named in ["utsuwa.local/hello", "r.example/a:1", "no such:name"] {
            assert_eq!(rewrites.note(as_named), None, "{as_named}");
        }
        let mut service = json!({"template": {"containers": [
            {"image": "gcr.io/cloudrun/hello"}, {"image": "r.example/side"},
        ]}});
        rewrites.explain(&mut service);
        let shown = text_at(&service, "template.containers.0.image");
        assert!(shown.contains("utsuwa.local/hello here"), "{shown}");
        assert_eq!(
            text_at(&service, "template.containers.1.image"),
            "r.example/side"
        );
    }

    #[test]
    fn the_operator_may_have_googles_own() {
        let rewrites = rewrites("gcr.io/cloudrun/hello=gcr.io/cloudrun/hello");
        assert_eq!(rewrites.here("gcr.io/cloudrun/hello"), None);
        assert!(!rewrites.is_sample("gcr.io/cloudrun/hello"));
        assert!(rewrites.is_sample(HELLO));
    }
}
