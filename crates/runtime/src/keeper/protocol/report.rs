//! How an instance ended, and whether it was asked to.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utsuwa_model::instance::Exit;
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    pub id: InstanceId,
    /// Whose instance it was: `None` from a keeper that doesn't say.
    #[serde(default)]
    pub revision: Option<RevisionKey>,
    /// Which of its containers ended first; empty in an instance of one.
    #[serde(default)]
    pub container: String,
    pub exit: Exit,
    pub at: Timestamp,
    /// The last lines it wrote, oldest first, standard error after standard output.
    pub last_lines: Vec<String>,
    /// It was asked to stop: `None` if it ended by itself, or a keeper was replaced meanwhile, or doesn't say.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// Nothing of its app had run yet: it was parked for a later start.
    #[serde(default)]
    pub parked: bool,
}

/// How an instance was made to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// It got SIGTERM, and so long to end.
    Asked { grace: Duration },
    /// It was killed when that time was up.
    Overdue { grace: Duration },
    /// Killed at once: its program does not handle SIGTERM.
    Unhandled,
    /// Killed at once: its program didn't run yet, or no time was given.
    AtOnce,
}

impl ExitReport {
    /// The line of the system log: what was asked of it belongs to how it ended.
    #[must_use]
    pub fn log_line(&self) -> String {
        let killed = self.exit == Exit::Signal(9);
        match self.stop {
            Some(Stop::Overdue { grace }) if killed => format!(
                "The instance was asked to stop (SIGTERM), did not end within {} s, and was killed (SIGKILL). An app should end \
                 on SIGTERM once it has finished what it is at.",
                grace.as_secs_f64()
            ),
            Some(Stop::Overdue { grace }) if !self.container.is_empty() => format!(
                "The instance was asked to stop (SIGTERM); not all of its containers ended within {} s, and the rest was killed \
                 (SIGKILL).",
                grace.as_secs_f64()
            ),
            Some(Stop::Unhandled) if killed => {
                "The instance was stopped (SIGKILL): it does not handle SIGTERM, so no time was given to it.".to_owned()
            }
            Some(Stop::AtOnce) if killed => "The instance was stopped (SIGKILL).".to_owned(),
            Some(Stop::Asked { .. }) => {
                format!("The instance was asked to stop (SIGTERM) and {}.", self.exit.describe())
            }
            _ => self.exit.log_line(&self.container),
        }
    }

    /// Whether it ended as it should: asked to, in its time; or by itself without a complaint.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        match self.stop {
            Some(Stop::Overdue { .. }) => false,
            Some(_) => !matches!(self.exit, Exit::OutOfMemory { .. }),
            None => matches!(self.exit, Exit::Code(0) | Exit::Signal(15)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_to_stop_did_not_crash() {
        let grace = Duration::from_secs(10);
        for (stop, exit, said, orderly) in [
            (None, Exit::Signal(9), "was ended by signal 9", false),
            (None, Exit::Code(0), "exited with status 0", true),
            (
                Some(Stop::Overdue { grace }),
                Exit::Signal(9),
                "did not end within 10 s",
                false,
            ),
            (
                Some(Stop::Unhandled),
                Exit::Signal(9),
                "does not handle SIGTERM",
                true,
            ),
            (
                Some(Stop::AtOnce),
                Exit::Signal(9),
                "was stopped (SIGKILL)",
                true,
            ),
            (
                Some(Stop::Asked { grace }),
                Exit::Code(143),
                "asked to stop (SIGTERM) and exited with status 143",
                true,
            ),
        ] {
            let report = ExitReport {
                id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
                revision: None,
                container: String::new(),
                exit,
                at: Timestamp(0),
                last_lines: Vec::new(),
                stop,
                parked: false,
            };
            let line = report.log_line();
            assert!(
                line.contains(said) && line.starts_with("The instance "),
                "{line}"
            );
            assert_eq!(report.is_orderly(), orderly, "{line}");
        }
        // From a keeper that doesn't say.
        let old =
            r#"{"id":"0123456789abcdef0123456789abcdef","exit":{"Code":0},"at":0,"last_lines":[]}"#;
        let exit = serde_json::to_string(&Exit::Code(0)).unwrap();
        let old = old.replace(r#"{"Code":0}"#, &exit);
        assert_eq!(serde_json::from_str::<ExitReport>(&old).unwrap().stop, None);
    }
}
