//! Whether a revision is what a template asks for (§1.7).

use super::Revision;
use crate::service::RevisionTemplate;

impl Revision {
    /// Whether deploying `template` under this revision's name means this very revision (a legal way back to it).
    #[must_use]
    pub fn is_made_from(&self, template: &RevisionTemplate) -> bool {
        let unnamed = |t: &RevisionTemplate| RevisionTemplate {
            revision: None,
            ..t.clone()
        };
        unnamed(&self.template).same_as(&unnamed(template))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::RevisionStatus;
    use crate::service::{Container, Meta};

    #[test]
    fn the_name_and_written_defaults_dont_count() {
        let container = Container {
            image: "a".to_owned(),
            ..Container::default()
        };
        let asked = RevisionTemplate {
            containers: vec![container],
            ..RevisionTemplate::default()
        };
        let made = Revision {
            key: "demo/r/hello/hello-1".parse().expect("a key"),
            meta: Meta::default(),
            service_generation: 1,
            service_uid: String::new(),
            template: RevisionTemplate {
                revision: Some("hello-1".parse().expect("a name")),
                ..asked.defaulted()
            },
            status: RevisionStatus::default(),
        };
        assert!(made.is_made_from(&asked));
        assert!(!made.is_made_from(&RevisionTemplate {
            concurrency: Some(3),
            ..asked
        }));
    }
}
