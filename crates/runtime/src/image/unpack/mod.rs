//! Unpacks one layer: the role `internal unpack`, and the code it runs.
//!
//! Owns: [`main`] (a process without privileges outside its user namespace, with three descriptors: 3 the compressed blob,
//! 4 the empty target directory, 5 where the result goes), [`unpack_layer`] (the same in the caller's process), and
//! [`mark_opaque`], the one step that needs the privilege this process hasn't.
//! Doesn't: make the namespace, the target directory or its final name; that is the housekeeper's.
//!
//! Invariants: 1. `Ok` is answered only when the uncompressed stream had the expected digest. 2. Nothing outside the target is
//! touched (see [`extract`]). 3. Memory does not grow with the layer's size.
//!
//! Protocol: `… internal unpack SPEC`, where SPEC is [`UnpackSpec::to_argument`]; descriptor 5 carries one JSON document,
//! `Result<UnpackReport, UnpackError>`, then the end of file ([`read_report`]).

mod attributes;
mod beneath;
mod error;
mod extract;
mod path;
mod stream;
mod tar;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use error::printable;
pub use error::{EntryProblem, UnpackError};
pub(crate) use tar::{Kind as TarKind, TarReader};

use super::digest::Digest;
use crate::sandbox::process::ID_COUNT;

/// A report names opaque directories only; no honest layer has more than a few thousand.
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// What a layer may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most bytes of the uncompressed archive.
    pub max_bytes: u64,
    /// Most entries.
    pub max_entries: u64,
    /// Free bytes that must stay on the disk.
    pub reserve_bytes: u64,
    /// Free inodes that must stay on the disk: who writes logs and the database needs new files too.
    pub reserve_inodes: u64,
    /// Archives above `ratio_free_bytes` may be at most this many times as large as their compressed form.
    pub max_ratio: u64,
    pub ratio_free_bytes: u64,
    /// So many ids there are: files of others belong to nobody, or to the only one there is.
    pub ids: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            // Large images have some 100,000.
            max_entries: 4_000_000,
            reserve_bytes: 512 << 20,
            // Far more than logs and the database take; an ext4 file system of 1 GiB has 65,536.
            reserve_inodes: 8192,
            // gzip reaches 1,030 on zeros, honest layers 3 to 20.
            max_ratio: 200,
            ratio_free_bytes: 2 << 30,
            ids: ID_COUNT,
        }
    }
}

/// What to unpack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackSpec {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// As the manifest says; only named in errors, the content tells its compression itself.
    pub media_type: String,
    pub limits: Limits,
}

impl UnpackSpec {
    /// The one argument of `internal unpack`.
    pub fn to_argument(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackReport {
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Device nodes and entries of unknown types, which were left out.
    pub skipped: u64,
    /// Extended attributes that were left out.
    pub skipped_attributes: u64,
    /// Entries owned by ids above 65,535, given to `nobody`.
    pub remapped_owners: u64,
    /// Paths below the root that hide the same directory of lower layers; see [`mark_opaque`].
    pub opaque: Vec<Vec<u8>>,
    /// What another process said of the counts above, in words.
    #[serde(default)]
    pub told: Vec<String>,
}

impl UnpackReport {
    /// What of the layer is not as the archive says, for people.
    #[must_use]
    pub fn left_out(&self) -> Vec<String> {
        let notes = [
            (
                self.skipped,
                "device nodes or entries of unknown types left out",
            ),
            (self.skipped_attributes, "extended attributes left out"),
            (
                self.remapped_owners,
                "entries of owners above 65535 given to nobody",
            ),
        ];
        let counted = notes
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"));
        self.told.iter().cloned().chain(counted).collect()
    }
}

/// The role's entry point: never returns an error by exit status alone, see the module's head.
pub fn main() -> ExitCode {
    let argument = std::env::args()
        .skip_while(|argument| argument != "unpack")
        .nth(1)
        .unwrap_or_default();
    let [blob, target, result] = take_descriptors();
    let answer = match serde_json::from_str::<UnpackSpec>(&argument) {
        Ok(spec) => {
            // Modes come from the archive alone.
            rustix::process::umask(rustix::fs::Mode::empty());
            unpack_layer(File::from(blob), target.as_fd(), &spec)
        }
        Err(error) => Err(UnpackError::Unavailable {
            why: format!("it was started with an unreadable request: {error}"),
        }),
    };
    let written = serde_json::to_vec(&answer)
        .map_err(io::Error::from)
        .and_then(|document| File::from(result).write_all(&document));
    if answer.is_ok() && written.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// [`main`] for a forked child that must not return.
pub fn child_main() -> ! {
    let code = main();
    #[expect(
        clippy::exit,
        clippy::disallowed_methods,
        reason = "a forked child has nothing to return to"
    )]
    std::process::exit(i32::from(code != ExitCode::SUCCESS))
}

#[expect(unsafe_code, reason = "descriptors inherited by number")]
fn take_descriptors() -> [OwnedFd; 3] {
    // SAFETY: the role is started with exactly these descriptors, and nothing else in this process owns them.
    unsafe {
        [
            OwnedFd::from_raw_fd(3),
            OwnedFd::from_raw_fd(4),
            OwnedFd::from_raw_fd(5),
        ]
    }
}

/// Unpacks `blob` (plain, gzip or zstd tar; read from its current position) under `target` and checks its digest.
///
/// # Errors
/// [`UnpackError`]; what is under `target` then must be removed.
pub fn unpack_layer(
    blob: File,
    target: BorrowedFd<'_>,
    spec: &UnpackSpec,
) -> Result<UnpackReport, UnpackError> {
    let mut reader = stream::BlobReader::open(blob, spec.limits)?;
    let unpacker = extract::Unpacker::new(target, spec.limits);
    // By reference: a limit that was passed is noted in the reader.
    let outcome = unpacker.run(&mut reader).map(|(report, _reader)| report);
    if let Some(broken) = reader.broken.take() {
        return Err(broken);
    }
    let report = outcome?;
    let found = reader.finish();
    if found != spec.diff_id {
        return Err(UnpackError::DiffId {
            expected: spec.diff_id,
            found,
        });
    }
    Ok(report)
}

/// Reads what [`main`] wrote to its descriptor 5.
///
/// # Errors
/// The error it reports, or `Unavailable` when it ended without an answer.
pub fn read_report(mut result: impl Read) -> Result<UnpackReport, UnpackError> {
    let unavailable = |why: String| UnpackError::Unavailable { why };
    let mut document = Vec::new();
    result
        .by_ref()
        .take(MAX_REPORT_BYTES)
        .read_to_end(&mut document)
        .map_err(|error| unavailable(format!("its answer can't be read: {error}")))?;
    if document.is_empty() {
        return Err(unavailable("it ended without an answer".to_owned()));
    }
    serde_json::from_slice::<Result<UnpackReport, UnpackError>>(&document)
        .map_err(|error| unavailable(format!("its answer can't be understood: {error}")))?
}

/// Marks the directories a report names as opaque for overlayfs. Needs `CAP_SYS_ADMIN` in the first user namespace.
///
/// Follows no symbolic link and never leaves `layer`, so a hostile report can only mark directories of its own layer.
///
/// # Errors
/// [`UnpackError::Sys`] naming the directory.
pub fn mark_opaque(layer: BorrowedFd<'_>, opaque: &[Vec<u8>]) -> Result<(), UnpackError> {
    // As `sandbox::rootfs` mounts it.
    let mark = if crate::rootless::is_rootless() {
        "user.overlay.opaque"
    } else {
        "trusted.overlay.opaque"
    };
    for path in opaque {
        let sys = |call: &str, errno: Errno| UnpackError::Sys {
            call: call.to_owned(),
            name: printable(path),
            errno: errno.raw_os_error(),
        };
        let name: &[u8] = if path.is_empty() { b"." } else { path };
        let directory = match beneath::open_one(layer, name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            // Replaced by a later entry of the layer.
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(sys("open the directory", errno)),
        };
        rustix::fs::fsetxattr(&directory, mark, b"y", XattrFlags::empty())
            .map_err(|errno| sys("mark as opaque", errno))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
