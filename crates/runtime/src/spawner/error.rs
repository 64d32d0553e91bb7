//! Why a spawner could not do what it was asked, as a value that crosses processes.
//!
//! Owns: [`SpawnError`], its text for the user, and its class. Says what happened, where, why, and what to do next.

use serde::{Deserialize, Serialize};

use crate::driver::DriverError;
use crate::image::ErrorClass;

/// Why a spawner refused or could not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", rename_all = "snake_case")]
pub enum SpawnError {
    /// The program is nowhere in the image.
    #[error(
        "the program {program:?} is not in the image ({searched}); name one with --command, or set ENTRYPOINT or CMD in the image"
    )]
    CommandNotFound { program: String, searched: String },
    /// It is there and may not be executed by this user.
    #[error("{program:?} may not be executed by uid {uid}: {why}")]
    PermissionDenied {
        program: String,
        uid: u32,
        why: String,
    },
    /// It is there and is not something the kernel can run.
    #[error("{program:?} can't be executed: {why}")]
    NotExecutable { program: String, why: String },
    /// Its `#!` line or its ELF header names a program that is not in the image.
    #[error("{program:?} needs {interpreter:?}, which is not in the image; {advice}")]
    InterpreterNotFound {
        program: String,
        interpreter: String,
        advice: String,
    },
    /// `USER` of the image names nobody.
    #[error(
        "the image's user {user:?} (config.User) is not known: {why}; name one that the image's {file} lists, or use a number"
    )]
    UserNotFound {
        user: String,
        file: String,
        why: String,
    },
    /// Arguments and environment are larger than the kernel takes.
    #[error(
        "arguments and environment variables together are larger than the kernel takes ({bytes} bytes): set fewer or shorter ones"
    )]
    ArgumentsTooLong { bytes: usize },
    /// Something the caller gave can't be used.
    #[error("{field}: {why}")]
    Invalid { field: String, why: String },
    /// The image's files make a start impossible.
    #[error("root file system at {path:?}: {why}")]
    Rootfs { path: String, why: String },
    /// Layers that are not in the image store.
    #[error("layer {diff_id} is not in the image store: pull the image again")]
    LayerMissing { diff_id: String },
    /// A layer has to be copied for this service first (`Prepare`).
    #[error("layer {diff_id} is not copied for this service yet: try again")]
    NotPrepared { diff_id: String },
    /// A layer could not be unpacked: `class` says whether that is the layer's fault or ours.
    #[error("unpack layer {diff_id}: {why}")]
    Unpack {
        diff_id: String,
        why: String,
        /// A spawner of before this field existed blamed the layer.
        #[serde(default = "blamed_on_the_layer")]
        class: ErrorClass,
    },
    /// A resource of the host ran out.
    #[error("{what} ran out on this host ({detail}): {advice}")]
    Exhausted {
        what: String,
        detail: String,
        advice: String,
    },
    /// The service wants a kernel of its own, and this host can't give it.
    #[error(
        "the execution environment gen1 runs on gVisor, whose program runsc is not installed on this host ({why}): {}; or deploy with --execution-environment=gen2",
        crate::sandbox::gvisor::INSTALL
    )]
    GvisorMissing { why: String },
    /// The memory limit is too small even for starting.
    #[error("the memory limit of {limit} bytes was reached while starting: raise it with --memory")]
    MemoryLimit { limit: u64 },
    /// The sandbox's process ended before its program ran.
    #[error("the sandbox ended before its program ran ({detail})")]
    SandboxGone { detail: String },
    /// Not answered in time.
    #[error("starting took longer than {seconds} s and was given up ({at})")]
    Timeout { seconds: u64, at: String },
    /// Networking of the sandbox.
    #[error("network of the sandbox: {why}")]
    Network { why: String },
    /// This spawner doesn't do that.
    #[error("this spawner does not do {op}: its role is {role}")]
    WrongRole { op: String, role: String },
    /// A system call failed in a way nothing above describes.
    #[error("{context}: {call}: {}", describe_errno(*.errno))]
    Sys {
        call: String,
        errno: i32,
        context: String,
    },
}

impl SpawnError {
    /// From a failed system call; running out of something gets its own words.
    #[must_use]
    pub fn sys(call: &str, errno: impl Into<std::io::Error>, context: impl Into<String>) -> Self {
        let error: std::io::Error = errno.into();
        let errno = error.raw_os_error().unwrap_or(0);
        let context = context.into();
        let exhausted = |what: &str, advice: &str| Self::Exhausted {
            what: what.to_owned(),
            detail: format!("{context}: {call}"),
            advice: advice.to_owned(),
        };
        match errno {
            libc::EMFILE => exhausted(
                "open files of this process",
                "raise the limit of open files (ulimit -n, LimitNOFILE=)",
            ),
            libc::ENFILE => exhausted("open files", "raise fs.file-max (sysctl)"),
            libc::ENOMEM => exhausted("memory", "stop something or add memory"),
            libc::EAGAIN if call.starts_with("clone") => exhausted(
                "processes",
                "raise kernel.pid_max, kernel.threads-max or TasksMax= of the unit",
            ),
            libc::ENOSPC if call.starts_with("clone") => exhausted(
                "namespaces",
                "raise user.max_user_namespaces and its siblings (sysctl -a | grep user.max)",
            ),
            libc::ENOSPC if call == "mkdir" => exhausted(
                "space for cgroups or files",
                "free some; see df -i and /proc/cgroups",
            ),
            0 => Self::Sys {
                call: format!("{call}: {error}"),
                errno,
                context,
            },
            _ => Self::Sys {
                call: call.to_owned(),
                errno,
                context,
            },
        }
    }

    /// What the driver's callers branch on.
    #[must_use]
    pub fn to_driver(&self) -> DriverError {
        match self {
            Self::CommandNotFound { .. }
            | Self::PermissionDenied { .. }
            | Self::NotExecutable { .. }
            | Self::InterpreterNotFound { .. }
            | Self::UserNotFound { .. }
            | Self::ArgumentsTooLong { .. }
            | Self::Invalid { .. }
            | Self::Rootfs { .. }
            | Self::LayerMissing { .. }
            | Self::GvisorMissing { .. }
            | Self::MemoryLimit { .. } => DriverError::Refused(self.to_string()),
            Self::Unpack { class, .. } => match class {
                ErrorClass::Caller | ErrorClass::NotFound | ErrorClass::Unauthorized => {
                    DriverError::Refused(self.to_string())
                }
                ErrorClass::Exhausted => DriverError::Exhausted(self.to_string()),
                ErrorClass::Unavailable | ErrorClass::Internal => {
                    DriverError::Internal(self.to_string())
                }
            },
            Self::Exhausted { .. } | Self::Timeout { .. } | Self::NotPrepared { .. } => {
                DriverError::Exhausted(self.to_string())
            }
            Self::SandboxGone { .. }
            | Self::Network { .. }
            | Self::WrongRole { .. }
            | Self::Sys { .. } => DriverError::Internal(self.to_string()),
        }
    }
}

fn blamed_on_the_layer() -> ErrorClass {
    ErrorClass::Caller
}

fn describe_errno(errno: i32) -> String {
    if errno == 0 {
        "no system error".to_owned()
    } else {
        std::io::Error::from_raw_os_error(errno).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bad_layer_is_blamed_on_the_image() {
        let refused = |class| {
            let error = SpawnError::Unpack {
                diff_id: "sha256:0".to_owned(),
                why: "no space".to_owned(),
                class,
            };
            // As it arrives: through a socket.
            let text = serde_json::to_string(&error).unwrap();
            serde_json::from_str::<SpawnError>(&text)
                .unwrap()
                .to_driver()
        };
        assert!(matches!(
            refused(ErrorClass::Caller),
            DriverError::Refused(_)
        ));
        assert!(matches!(
            refused(ErrorClass::Exhausted),
            DriverError::Exhausted(_)
        ));
        assert!(matches!(
            refused(ErrorClass::Unavailable),
            DriverError::Internal(_)
        ));
        assert!(matches!(
            refused(ErrorClass::Internal),
            DriverError::Internal(_)
        ));
        let old = r#"{"error":"unpack","diff_id":"sha256:0","why":"no layer"}"#;
        let old: SpawnError = serde_json::from_str(old).unwrap();
        assert!(matches!(old.to_driver(), DriverError::Refused(_)));
    }
}
