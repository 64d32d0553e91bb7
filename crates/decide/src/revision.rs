//! What becomes of a revision: proving it, failing it in Google's words, naming it, forgetting old ones
//! (`cloud-run-spec.md` §1.7, §1.8).
//!
//! Owns: the judgement over one attempt to serve and the texts users see; in parts of their own what `Active` says, automatic
//! names, whether instances stay, how long a start is put off, and the choice of revisions to collect. Deliberately not here: making the attempt.
//!
//! Invariants:
//! 1. A revision is ready only when the ingress itself has reached an instance (or the user asked for no check).
//! 2. A routed, latest or kept revision is never collected.
//! 3. It is ready only when containers that no probe asks after have stayed for a while ([`stays_by`]).

use utsuwa_model::instance::Exit;
use utsuwa_model::revision::Outcome;
use utsuwa_model::{RevisionId, Timestamp};

mod active;
mod backoff;
mod collect;
mod name;
mod stay;

pub use active::{Active, active};
pub use backoff::{backoff_summary, crash_backoff, serving_backoff};
pub use collect::{Aged, KEPT_REVISIONS, collect};
pub use name::automatic_name;
pub use stay::{SETTLE, stays_by, watched_until};

/// What is known of the attempt to make a revision serve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proof {
    pub image: ImageState,
    /// The instance that is to prove it.
    pub instance: ProofInstance,
    /// `healthCheckDisabled`: running is enough.
    pub check_disabled: bool,
    /// Until then it is watched whether its containers stay ([`stays_by`]); `None`: they have, or nobody need ask.
    pub watched_until: Option<Timestamp>,
    /// The port the program was told.
    pub port: u16,
    /// Why the last attempt to start an instance failed, while others follow.
    pub trouble: Option<String>,
    /// What its owner can do about a program that runs and can't be reached, in whole sentences; empty: nothing is known.
    pub advice: String,
}

/// The image of the revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ImageState {
    #[default]
    Resolving,
    There,
    /// It can't be had; `reason` is one of §1.8.
    Refused {
        reason: String,
        message: String,
    },
}

/// The first instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProofInstance {
    #[default]
    None,
    Starting,
    Reached,
    /// The program could not even be started.
    NotStarted {
        why: String,
    },
    /// We could not make an instance, whatever its program: trouble of this machine, tried often enough.
    NotMade {
        why: String,
    },
    /// It ended before anybody reached it, of the end of `container` where it has several.
    Ended {
        container: String,
        exit: Exit,
        last_lines: Vec<String>,
    },
    /// It was reached, and ended while it was watched whether it stays.
    Left {
        container: String,
        exit: Exit,
        last_lines: Vec<String>,
    },
    /// It runs but the startup probe gave up. `tried`: Google's sentence for that probe and what was tried, in the words of the
    /// ingress, which alone knows them.
    NotListening {
        tried: String,
    },
}

/// The judgement over `proof`, with the reason and message of the condition that shows it.
#[must_use]
pub fn judge(proof: &Proof) -> (Outcome, &'static str, String) {
    let failed = |reason: &str, message: String| {
        (
            Outcome::Failed {
                reason: reason.to_owned(),
                message: message.clone(),
            },
            "",
            message,
        )
    };
    match (&proof.image, &proof.instance) {
        (ImageState::Refused { reason, message }, _) => failed(reason, message.clone()),
        (ImageState::Resolving, _) => (
            Outcome::Pending,
            "ResolvingDigests",
            "Pulling the image.".to_owned(),
        ),
        (ImageState::There, ProofInstance::None) => (
            Outcome::Pending,
            "Deploying",
            match &proof.trouble {
                None => "Starting the first instance.".to_owned(),
                Some(why) => {
                    format!("Starting the first instance. The last attempt failed: {why}")
                }
            },
        ),
        (ImageState::There, ProofInstance::Starting)
            if proof.check_disabled && proof.watched_until.is_none() =>
        {
            (Outcome::Ready, "", String::new())
        }
        (ImageState::There, ProofInstance::Reached) if proof.watched_until.is_some() => {
            (Outcome::Pending, "Deploying", stay::WATCHED.to_owned())
        }
        (ImageState::There, ProofInstance::Starting) => (
            Outcome::Pending,
            "Deploying",
            format!(
                "Waiting for the container to listen on port {}. {}",
                proof.port, proof.advice
            )
            .trim_end()
            .to_owned(),
        ),
        (ImageState::There, ProofInstance::Reached) => (Outcome::Ready, "", String::new()),
        (ImageState::There, ProofInstance::NotStarted { why }) => {
            failed("HealthCheckContainerError", format!("{NOT_STARTED} {why}"))
        }
        (ImageState::There, ProofInstance::NotMade { why }) => {
            failed("ProgressDeadlineExceeded", never_achieved(Some(why)))
        }
        (
            ImageState::There,
            ProofInstance::Ended {
                container,
                exit,
                last_lines,
            },
        ) => failed(
            &exit_reason(exit),
            exit_message(container, exit, last_lines, proof.port),
        ),
        (
            ImageState::There,
            ProofInstance::Left {
                container,
                exit,
                last_lines,
            },
        ) => failed(
            &exit_reason(exit),
            stay::left_message(container, exit, last_lines),
        ),
        (ImageState::There, ProofInstance::NotListening { tried }) => {
            failed("HealthCheckContainerError", tried.clone())
        }
    }
}

/// How the message of a revision begins whose program could not even be started: it wrote nothing.
pub const NOT_STARTED: &str = "The user-provided container could not be started:";

/// Google's words for a deploy whose first instance never came, and why, where that is known.
#[must_use]
pub fn never_achieved(why: Option<&str>) -> String {
    let google = "Initial scale was never achieved";
    why.map_or_else(
        || google.to_owned(),
        |why| format!("{google}. The last attempt to start an instance failed: {why}"),
    )
}

/// `ExitCode1`, as Knative names it; what has no code is a failed health check.
fn exit_reason(exit: &Exit) -> String {
    match exit {
        Exit::Code(code) => format!("ExitCode{code}"),
        _ => "HealthCheckContainerError".to_owned(),
    }
}

/// What we know first; then Google's sentence, since people and scripts look for it.
fn exit_message(container: &str, exit: &Exit, last_lines: &[String], port: u16) -> String {
    let mut cause = if container.is_empty() {
        let how = exit.describe_when("before it listened");
        format!("The container {how}.")
    } else {
        let how = exit.describe_when("before the instance was ready");
        format!("The container {container:?} {how}.")
    };
    if *exit == Exit::Code(0) {
        cause.push_str(" A service's program must keep running and answer requests.");
    }
    cause.push_str(&wrote(last_lines));
    format!(
        "{cause}\n\nThe user-provided container failed to start and listen on the port defined provided by the PORT={port} environment \
         variable within the allocated timeout. This can happen when the container port is misconfigured or if the timeout is \
         too short. The health check timeout can be extended. Logs for this revision might contain more information."
    )
}

/// What the program wrote last, as the end of a sentence or more; empty if that is nothing.
fn wrote(last_lines: &[String]) -> String {
    let lines: Vec<&str> = last_lines
        .iter()
        .map(|line| line.trim())
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(" Container failed with: {}", lines.join("\n"))
}

/// What a service says of a revision that failed (§1.8 item 6): image problems speak for themselves.
#[must_use]
pub fn service_message(revision: &RevisionId, reason: &str, message: &str) -> String {
    match reason {
        "ContainerMissing" | "ContainerImageUnauthorized" | "ContainerPermissionDenied" => {
            message.to_owned()
        }
        _ => format!("Revision '{revision}' is not ready and cannot serve traffic. {message}"),
    }
}

#[cfg(test)]
mod tests {
    use utsuwa_model::quantity::MemoryBytes;

    use super::*;

    fn proof(instance: ProofInstance) -> Proof {
        Proof {
            image: ImageState::There,
            instance,
            port: 8080,
            ..Proof::default()
        }
    }

    #[test]
    fn ready_only_when_reached() {
        assert_eq!(judge(&Proof::default()).0, Outcome::Pending);
        assert_eq!(judge(&proof(ProofInstance::None)).0, Outcome::Pending);
        assert_eq!(judge(&proof(ProofInstance::Starting)).0, Outcome::Pending);
        assert_eq!(judge(&proof(ProofInstance::Reached)).0, Outcome::Ready);
        assert_eq!(
            judge(&Proof {
                check_disabled: true,
                ..proof(ProofInstance::Starting)
            })
            .0,
            Outcome::Ready
        );
    }

    #[test]
    fn failures_in_googles_words_and_ours() {
        let google = "failed to start and listen on the port defined provided by the PORT=8080 environment variable";
        for (instance, reason, parts) in [
            (
                ProofInstance::Ended {
                    container: String::new(),
                    exit: Exit::Code(3),
                    last_lines: vec!["boom".into()],
                },
                "ExitCode3",
                vec![
                    google,
                    "exited with status 3",
                    "Container failed with: boom",
                ],
            ),
            (
                ProofInstance::Ended {
                    container: String::new(),
                    exit: Exit::Code(0),
                    last_lines: vec![],
                },
                "ExitCode0",
                vec![
                    "exited with status 0 before it listened. A service's program must keep running",
                ],
            ),
            (
                ProofInstance::Ended {
                    container: String::new(),
                    exit: Exit::OutOfMemory {
                        limit: MemoryBytes(128 << 20),
                    },
                    last_lines: vec![],
                },
                "HealthCheckContainerError",
                vec!["of 128Mi and was ended before it listened; raise it with --memory.\n\n"],
            ),
            (
                ProofInstance::NotListening {
                    tried: "Nothing accepted on 10.0.0.2:8080.".into(),
                },
                "HealthCheckContainerError",
                vec!["10.0.0.2:8080"],
            ),
            (
                ProofInstance::NotStarted {
                    why: "no /app".into(),
                },
                "HealthCheckContainerError",
                vec!["could not be started: no /app"],
            ),
            (
                ProofInstance::NotMade {
                    why: "nft: install nftables".into(),
                },
                "ProgressDeadlineExceeded",
                vec![
                    "Initial scale was never achieved",
                    "failed: nft: install nftables",
                ],
            ),
        ] {
            let (
                Outcome::Failed {
                    reason: got,
                    message,
                },
                ..,
            ) = judge(&proof(instance))
            else {
                unreachable!("failed")
            };
            assert_eq!(got, reason);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        let refused = ImageState::Refused {
            reason: "ContainerMissing".into(),
            message: "Image 'x' not found.".into(),
        };
        let (outcome, ..) = judge(&Proof {
            image: refused,
            ..Proof::default()
        });
        assert_eq!(
            outcome,
            Outcome::Failed {
                reason: "ContainerMissing".into(),
                message: "Image 'x' not found.".into()
            }
        );
    }
}
