//! Who may do what with a resource (`google.iam.v1.Policy`).

use serde::{Deserialize, Serialize};

/// An IAM policy. `etag` guards against lost updates: opaque, base64 on the wire. JSON may leave out what is empty, as Google's does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    pub version: i32,
    pub etag: String,
    pub bindings: Vec<Binding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Binding {
    pub role: String,
    pub members: Vec<String>,
    pub condition: Option<Expr>,
}

/// A CEL condition as written. Stored and read back; evaluated once identity exists.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Expr {
    pub expression: String,
    pub title: String,
    pub description: String,
    pub location: String,
}

/// The role that lets a caller invoke a service.
pub const INVOKER: &str = "roles/run.invoker";

impl Policy {
    /// Whether everybody may invoke. A binding with a condition doesn't open the door, since conditions aren't evaluated yet.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.bindings.iter().any(|b| {
            b.role == INVOKER && b.condition.is_none() && b.members.iter().any(|m| m == "allUsers")
        })
    }
}
