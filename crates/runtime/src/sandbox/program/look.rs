//! What [`super::execute`] would say, without executing: for programs that another kernel than the host's will run.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{Access, AtFlags};

use super::{MACHINE, elf_interpreter, explain, head, number};
use crate::spawner::SpawnError;

/// Whether `arguments[0]` is there and can be run by the current (effective) user.
///
/// # Errors
/// As [`super::execute`].
pub(crate) fn look(arguments: &[CString], path: &str, uid: u32) -> Result<(), SpawnError> {
    let program = arguments[0].to_string_lossy().into_owned();
    if program.is_empty() {
        return Err(super::no_name());
    }
    let (candidates, searched) = if program.contains('/') {
        let exactly = "looked for exactly this path".to_owned();
        (vec![program.clone()], exactly)
    } else {
        let directories = path.split(':');
        let candidates = directories.map(|directory| match directory {
            "" => format!("./{program}"),
            _ => format!("{directory}/{program}"),
        });
        (candidates.collect(), format!("looked in PATH={path}"))
    };
    let mut refused = None;
    for candidate in candidates {
        let file = Path::new(&candidate);
        let Some(errno) = hindrance(file) else {
            return Ok(());
        };
        match explain(&program, file, errno, uid, arguments, &[]) {
            Some(error @ SpawnError::PermissionDenied { .. }) => refused = refused.or(Some(error)),
            Some(error) => return Err(error),
            None => {}
        }
    }
    Err(refused.unwrap_or(SpawnError::CommandNotFound { program, searched }))
}

/// With which error executing it would fail.
fn hindrance(file: &Path) -> Option<i32> {
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) => return Some(error.raw_os_error().unwrap_or(libc::ENOENT)),
    };
    if !metadata.is_file() {
        return Some(libc::EACCES);
    }
    if let Err(errno) =
        rustix::fs::accessat(rustix::fs::CWD, file, Access::EXEC_OK, AtFlags::EACCESS)
    {
        return Some(errno.raw_os_error());
    }
    // A program may be run by those who may not read it: then nothing more can be told.
    File::open(file).ok()?;
    let bytes = head(file);
    if let Some(line) = bytes.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        return match line.trim_start().split([' ', '\t']).next() {
            None | Some("") => Some(libc::ENOEXEC),
            Some(interpreter) => missing(interpreter),
        };
    }
    if !bytes.starts_with(b"\x7fELF") || number::<2>(&bytes, 18) != Some(u64::from(MACHINE)) {
        return Some(libc::ENOEXEC);
    }
    elf_interpreter(&bytes).and_then(|interpreter| missing(&interpreter))
}

fn missing(interpreter: &str) -> Option<i32> {
    (!Path::new(interpreter).exists()).then_some(libc::ENOENT)
}
