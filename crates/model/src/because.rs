//! Why a decision came out as it did. Data, not a log line: shown by `--why`, compared in tests, kept in bug reports.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// The reason for one decision: a sentence, the numbers it rests on, and when the question is asked again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Because {
    /// A whole sentence a user understands: `want 4: 37.2 in flight ÷ target 10`.
    pub summary: String,
    /// The inputs by name, in the order they matter.
    pub facts: Vec<(String, String)>,
    /// When this is looked at again without any other cause.
    pub next_look: Option<Timestamp>,
}

impl Because {
    /// A reason with only a sentence.
    #[must_use]
    pub fn new(summary: impl Into<String>) -> Self {
        Self {
            summary: summary.into(),
            ..Self::default()
        }
    }

    /// Adds one number or name the sentence rests on.
    #[must_use]
    pub fn fact(mut self, name: &str, value: impl ToString) -> Self {
        self.facts.push((name.to_owned(), value.to_string()));
        self
    }
}
