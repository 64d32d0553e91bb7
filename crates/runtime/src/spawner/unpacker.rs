//! Unpacking a layer in a child that can do no harm.
//!
//! Owns: that child (its namespaces, privileges, descriptors), the partial directory and its final name, opaque marks.
//! Doesn't: read archives (`image::unpack` does, in the child).
//!
//! Invariants
//! 1. The child's root is the first id of images ([`Ids::of_images`]); it has no network, no privilege outside its user
//!    namespace and three descriptors.
//! 2. A layer's directory appears under its final name only when its digest was right.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::path::{Path, PathBuf};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::child::Child;
use super::chores::PARTIAL;
use super::protocol::{Reply, SpawnError};
use crate::image::ErrorClass;
use crate::image::unpack::{self, Limits, UnpackError, UnpackReport, UnpackSpec};
use crate::precedence;
use crate::rootless::{Ids, may_set_groups};
use crate::sandbox::layers::digest_hex;
use crate::sandbox::process::{map_ids, reap};
use crate::sandbox::seccomp;
use crate::sandbox::sys::{self, Cloned};

/// What giving files their owners and modes takes.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// A layer being unpacked.
#[derive(Debug)]
pub(super) struct Job {
    request: u64,
    diff_id: String,
    partial: PathBuf,
    target: PathBuf,
    directory: File,
    child: Child,
}

/// What to tell the keeper.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) request: u64,
    pub(super) result: Result<Reply, SpawnError>,
}

impl Job {
    /// Starts unpacking `blob`.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left on disk then.
    pub(super) fn begin(
        request: u64,
        images: &Path,
        diff_id: &str,
        media_type: &str,
        blob: Option<OwnedFd>,
        reserve_bytes: u64,
    ) -> Result<Self, SpawnError> {
        let hex = digest_hex(diff_id)?;
        let refuse = |why: String| SpawnError::Unpack {
            diff_id: diff_id.to_owned(),
            why,
            class: ErrorClass::Caller,
        };
        let blob = blob.ok_or_else(|| refuse("the request came without its blob".to_owned()))?;
        let ids = Ids::here();
        let spec = UnpackSpec {
            diff_id: diff_id
                .parse()
                .map_err(|_| refuse("this is no digest".to_owned()))?,
            media_type: media_type.to_owned(),
            limits: Limits {
                reserve_bytes,
                ids: ids.count(),
                ..Limits::default()
            },
        };
        let at = |call: &'static str| {
            move |e: io::Error| SpawnError::sys(call, e, format!("unpack layer {diff_id}"))
        };
        let layers = images.join("layers");
        fs::create_dir_all(&layers).map_err(at("mkdir"))?;
        let (target, partial) = (
            layers.join(hex),
            layers.join(format!("{hex}{PARTIAL}-{request}")),
        );
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&partial)
            .map_err(at("mkdir"))?;
        let begun = (|| {
            let owner = Some(ids.of_images());
            lchown(&partial, owner, owner).map_err(at("chown"))?;
            let directory = File::open(&partial).map_err(at("open"))?;
            let (reader, writer) =
                pipe_with(PipeFlags::CLOEXEC).map_err(|e| at("pipe")(e.into()))?;
            let pidfd = start_child(&spec, ids, &blob, &directory, &writer)?;
            Ok((directory, pidfd, File::from(reader)))
        })();
        match begun {
            Ok((directory, pidfd, answer_pipe)) => Ok(Self {
                request,
                diff_id: diff_id.to_owned(),
                partial,
                target,
                directory,
                child: Child::new(pidfd, answer_pipe),
            }),
            Err(error) => {
                let _ = fs::remove_dir_all(&partial);
                Err(error)
            }
        }
    }

    pub(super) fn waits_for(&self) -> BorrowedFd<'_> {
        self.child.waits_for()
    }

    /// Whether it has said all it will.
    pub(super) fn advance(&mut self) -> bool {
        self.child.advance()
    }

    /// Ends the child, and names the directory or removes it.
    pub(super) fn finish(mut self) -> Finished {
        let report = unpack::read_report(self.child.finish());
        let result = self.settle(report);
        if result.is_err() {
            let _ = fs::remove_dir_all(&self.partial);
        }
        Finished {
            request: self.request,
            result,
        }
    }

    fn settle(&self, report: Result<UnpackReport, UnpackError>) -> Result<Reply, SpawnError> {
        let failed = |error: UnpackError| SpawnError::Unpack {
            diff_id: self.diff_id.clone(),
            class: error.class(),
            why: error.to_string(),
        };
        let report = report.map_err(failed)?;
        unpack::mark_opaque(self.directory.as_fd(), &report.opaque).map_err(failed)?;
        match fs::rename(&self.partial, &self.target) {
            Ok(()) => {}
            // Unpacked twice at the same time: the first one stays.
            Err(_) if self.target.is_dir() => {
                let _ = fs::remove_dir_all(&self.partial);
            }
            Err(error) => {
                return Err(SpawnError::sys(
                    "rename",
                    error,
                    format!("unpack layer {}", self.diff_id),
                ));
            }
        }
        Ok(Reply::Unpacked {
            entries: report.entries,
            bytes: report.bytes,
            skipped: report.left_out(),
        })
    }
}

fn start_child(
    spec: &UnpackSpec,
    ids: Ids,
    blob: &OwnedFd,
    directory: &File,
    result: &OwnedFd,
) -> Result<OwnedFd, SpawnError> {
    let context = "start the unpacking process";
    let argument = std::ffi::CString::new(spec.to_argument()).map_err(|_| SpawnError::Invalid {
        field: "media type".to_owned(),
        why: "it contains a NUL character".to_owned(),
    })?;
    let arguments = [
        c"utsuwa".to_owned(),
        c"internal".to_owned(),
        c"unpack".to_owned(),
        argument,
    ];
    let (go_reader, go_writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| SpawnError::sys("pipe", e, context))?;
    // Opened before privileges go: the child need not be able to reach the file by its path.
    let program =
        File::open("/proc/self/exe").map_err(|e| SpawnError::sys("open", e, "/proc/self/exe"))?;
    let namespaces = (libc::CLONE_NEWUSER
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWPID) as u64;
    let cloned = sys::clone_process(namespaces, false, None)
        .map_err(|e| SpawnError::sys("clone3", e, context))?;
    match cloned {
        Cloned::Child => {
            drop(go_writer);
            let failure = become_unpacker(
                go_reader,
                &program,
                [blob.as_fd(), directory.as_fd(), result.as_fd()],
                &arguments,
            );
            // The reader of descriptor 5 understands only reports; this one it can show.
            let answer: Result<UnpackReport, UnpackError> = Err(UnpackError::Unavailable {
                why: failure.to_string(),
            });
            let _ = rustix::io::write(result, &serde_json::to_vec(&answer).unwrap_or_default());
            sys::leave(1)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(go_reader);
            match map_ids(pid, 0, ids.of_images(), ids.count()) {
                Ok(()) => {
                    let _ = rustix::io::write(&go_writer, b"g");
                    Ok(pidfd)
                }
                Err(error) => {
                    drop(go_writer);
                    reap(&pidfd);
                    Err(error)
                }
            }
        }
    }
}

/// Returns only when something failed.
fn become_unpacker(
    go: OwnedFd,
    program: &File,
    descriptors: [BorrowedFd<'_>; 3],
    arguments: &[std::ffi::CString],
) -> SpawnError {
    let prepare = || -> Result<(OwnedFd, [OwnedFd; 3]), SpawnError> {
        let mut byte = [0];
        match File::from(go).read(&mut byte) {
            Ok(1) => {}
            _ => sys::leave(1),
        }
        let step = |call: &'static str| {
            move |e: rustix::io::Errno| SpawnError::sys(call, e, "give up privileges")
        };
        sys::reset_signals();
        precedence::goes_on_with_others();
        if may_set_groups() {
            rustix::thread::set_thread_groups(&[]).map_err(step("setgroups"))?;
        }
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
            .map_err(step("setresgid"))?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
            .map_err(step("setresuid"))?;
        for bit in 0..64 {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if !NEEDED.contains(capability) {
                let _ = rustix::thread::remove_capability_from_bounding_set(capability);
            }
        }
        let sets = CapabilitySets {
            effective: NEEDED,
            permitted: NEEDED,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).map_err(step("capset"))?;
        rustix::thread::set_no_new_privs(true).map_err(step("prctl"))?;
        // Out of the way of 3, 4 and 5 first.
        let above =
            |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 10).map_err(step("fcntl"));
        let program = above(program.as_fd())?;
        let moved = [
            above(descriptors[0])?,
            above(descriptors[1])?,
            above(descriptors[2])?,
        ];
        sys::cloexec_from(3)
            .map_err(|e| SpawnError::sys("close_range", e, "descriptors of the maker"))?;
        for (descriptor, number) in moved.iter().zip(3..) {
            sys::place(descriptor.as_fd(), number)
                .map_err(|e| SpawnError::sys("dup2", e, "descriptors of the unpacker"))?;
        }
        sys::install_seccomp(&seccomp::compile())
            .map_err(|e| SpawnError::sys("seccomp", e, "install the filter"))?;
        Ok((program, moved))
    };
    match prepare() {
        // `moved` lives until exec; placing has closed what the borrowed numbers 3 to 5 meant before.
        Ok((program, _moved)) => SpawnError::sys(
            "execveat",
            sys::exec_descriptor(&program, arguments, &[]),
            "run the unpacker",
        ),
        Err(error) => error,
    }
}
