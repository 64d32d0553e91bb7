//! Reading messages field by field, collecting what is wrong.

use std::collections::BTreeMap;
use std::fmt::Display;

use utsuwa_model::Violations;

use super::is_system;

/// Where we are in the message, and what was wrong so far.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) path: String,
    pub(super) found: &'a mut Violations,
}

impl Reader<'_> {
    /// A reader for the field `name` of this message.
    pub(super) fn at(&mut self, name: impl Display) -> Reader<'_> {
        let dot = if self.path.is_empty() { "" } else { "." };
        Reader {
            path: format!("{}{dot}{name}", self.path),
            found: &mut *self.found,
        }
    }

    /// Notes a problem of the field `name`; without a name, of this message.
    pub(super) fn wrong(&mut self, name: &str, description: impl Into<String>) {
        let dot = if self.path.is_empty() || name.is_empty() {
            ""
        } else {
            "."
        };
        self.found
            .add(format!("{}{dot}{name}", self.path), description);
    }

    /// Refuses the field `name` if it is set.
    pub(super) fn not_built(&mut self, name: &str, set: bool) {
        if set {
            self.wrong(name, "is not built in this server yet: leave the field out");
        }
    }

    /// A number that must not be negative; 0 means not given.
    pub(super) fn count(&mut self, name: &str, value: i32) -> Option<u32> {
        match u32::try_from(value) {
            Ok(0) => None,
            Ok(value) => Some(value),
            Err(_) => {
                self.wrong(name, format!("{value} must not be negative"));
                None
            }
        }
    }

    /// A port; 0 means not given.
    pub(super) fn port(&mut self, name: &str, value: i32) -> Option<u16> {
        match u16::try_from(value) {
            Ok(0) => None,
            Ok(value) => Some(value),
            Err(_) => {
                self.wrong(
                    name,
                    format!("{value} is not a port: it must be between 1 and 65535"),
                );
                None
            }
        }
    }

    /// A value with a parser of the model's.
    pub(super) fn parsed<T: std::str::FromStr<Err = utsuwa_model::name::NameError>>(
        &mut self,
        name: &str,
        text: &str,
    ) -> Option<T> {
        if text.is_empty() {
            return None;
        }
        text.parse()
            .map_err(|e: utsuwa_model::name::NameError| {
                self.wrong(name, format!("{:?} {}", e.value, e.rule))
            })
            .ok()
    }

    /// Labels or annotations: keys of Google's namespaces are fields in v2.
    pub(super) fn keys(
        &mut self,
        name: &str,
        map: &BTreeMap<String, String>,
        also: fn(&str) -> bool,
    ) {
        for key in map.keys().filter(|k| is_system(k) && !also(k)) {
            self.wrong(
                &format!("{name}[{key}]"),
                "keys of run.googleapis.com, cloud.googleapis.com, serving.knative.dev and autoscaling.knative.dev are not taken in v2: \
                 use the field that says the same",
            );
        }
    }
}

/// Empty text means not given.
pub(super) fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// `false` means not given.
pub(super) fn set(value: bool) -> Option<bool> {
    value.then_some(true)
}

/// Absent is 0 on the wire; a number beyond `i32` was never read from it.
pub(super) fn number(value: Option<u32>) -> i32 {
    value.and_then(|v| i32::try_from(v).ok()).unwrap_or(0)
}
