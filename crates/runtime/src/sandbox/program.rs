//! Finding and executing the program, and saying why it can't be.
//!
//! Owns: the search along PATH and the diagnosis of a failed `execve`. Runs inside the image's root, as the final user.

mod look;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::spawner::SpawnError;
pub(crate) use look::look;

/// Where programs are looked for when the environment has no PATH: what container images expect.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// Executes `arguments[0]`; returns only when that fails, with the reason in the user's words.
pub(crate) fn execute(
    arguments: &[CString],
    environment: &[CString],
    path: &str,
    uid: u32,
) -> SpawnError {
    let program = arguments[0].to_string_lossy().into_owned();
    if program.is_empty() {
        return no_name();
    }
    if program.contains('/') {
        let errno = try_execute(&arguments[0], arguments, environment);
        return explain(
            &program,
            Path::new(&program),
            errno,
            uid,
            arguments,
            environment,
        )
        .unwrap_or_else(|| SpawnError::CommandNotFound {
            program,
            searched: "looked for exactly this path".to_owned(),
        });
    }
    let mut refused = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{program}");
        let Ok(file) = CString::new(candidate.clone()) else {
            continue;
        };
        let errno = try_execute(&file, arguments, environment);
        let explained = explain(
            &program,
            Path::new(&candidate),
            errno,
            uid,
            arguments,
            environment,
        );
        match explained {
            // As every shell does: something of that name that may not be run doesn't end the search.
            Some(error @ SpawnError::PermissionDenied { .. }) => refused = refused.or(Some(error)),
            Some(error) => return error,
            None => {}
        }
    }
    refused.unwrap_or_else(|| SpawnError::CommandNotFound {
        program,
        searched: format!("looked in PATH={path}"),
    })
}

fn no_name() -> SpawnError {
    SpawnError::Invalid {
        field: "command".to_owned(),
        why: "the program's name is empty".to_owned(),
    }
}

fn try_execute(file: &CString, arguments: &[CString], environment: &[CString]) -> i32 {
    match nix::unistd::execve(file, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => errno as i32,
    }
}

/// Why `execve` of `file` failed; `None`: there is no such file.
fn explain(
    program: &str,
    file: &Path,
    errno: i32,
    uid: u32,
    arguments: &[CString],
    environment: &[CString],
) -> Option<SpawnError> {
    let program = program.to_owned();
    let not_executable = |why: &str| {
        Some(SpawnError::NotExecutable {
            program: program.clone(),
            why: why.to_owned(),
        })
    };
    match errno {
        libc::ENOENT | libc::ENOTDIR => {
            // The file is there: then what the kernel missed is its interpreter.
            let metadata = fs::metadata(file).ok()?;
            if !metadata.is_file() {
                return None;
            }
            Some(missing_interpreter(program, file))
        }
        libc::EACCES => match fs::metadata(file) {
            Ok(metadata) if metadata.is_dir() => {
                // "/bin" as a program, or a directory of that name on PATH.
                Some(SpawnError::PermissionDenied {
                    program,
                    uid,
                    why: "it is a directory".to_owned(),
                })
            }
            Ok(metadata) => {
                let mode = metadata.permissions().mode() & 0o7777;
                let why = if mode & 0o111 == 0 {
                    format!(
                        "its mode is {mode:04o}, no execute bit; set it in the image (chmod +x, COPY --chmod=755)"
                    )
                } else {
                    format!(
                        "it belongs to {}:{} with mode {mode:04o}",
                        metadata.uid(),
                        metadata.gid()
                    )
                };
                Some(SpawnError::PermissionDenied { program, uid, why })
            }
            Err(_) => {
                let why = format!(
                    "a directory on the way to {} is closed to this user",
                    file.display()
                );
                Some(SpawnError::PermissionDenied { program, uid, why })
            }
        },
        libc::ENOEXEC => not_executable(&why_no_format(file)),
        libc::E2BIG => {
            let bytes = arguments
                .iter()
                .chain(environment)
                .map(|s| s.as_bytes_with_nul().len())
                .sum();
            Some(SpawnError::ArgumentsTooLong { bytes })
        }
        libc::ELOOP => not_executable("its symbolic links lead in a circle"),
        libc::ETXTBSY => not_executable("it is open for writing"),
        libc::ENAMETOOLONG => None,
        _ => Some(SpawnError::sys(
            "execve",
            std::io::Error::from_raw_os_error(errno),
            format!("run {program:?}"),
        )),
    }
}

fn head(file: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(file) {
        let _ = file.take(64 * 1024).read_to_end(&mut bytes);
    }
    bytes
}

fn missing_interpreter(program: String, file: &Path) -> SpawnError {
    let bytes = head(file);
    if let Some(line) = bytes.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let windows = line.ends_with('\r');
        let interpreter = line
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned();
        let advice = if windows {
            "the line ends in a carriage return: save the script with Unix line ends".to_owned()
        } else {
            "install it in the image or correct the script's first line".to_owned()
        };
        return SpawnError::InterpreterNotFound {
            program,
            interpreter,
            advice,
        };
    }
    if let Some(interpreter) = elf_interpreter(&bytes) {
        let advice = if interpreter.contains("musl") {
            "the program was built for Alpine (musl): use such a base image or build it for this one"
        } else {
            "the program was built for another base image (glibc): use such a one or link it statically"
        };
        return SpawnError::InterpreterNotFound {
            program,
            interpreter,
            advice: advice.to_owned(),
        };
    }
    SpawnError::NotExecutable {
        program,
        why: "the kernel finds no program to run it with".to_owned(),
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0u8; 8];
    wide[..N].copy_from_slice(bytes.get(at..at + N)?);
    Some(u64::from_le_bytes(wide))
}

/// The `PT_INTERP` of a 64-bit little-endian ELF file.
fn elf_interpreter(bytes: &[u8]) -> Option<String> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(number::<8>(bytes, 32)?).ok()?;
    let size = usize::try_from(number::<2>(bytes, 54)?).ok()?;
    let count = usize::try_from(number::<2>(bytes, 56)?).ok()?;
    (0..count).find_map(|index| {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number::<4>(bytes, header)? != 3 {
            return None;
        }
        let start = usize::try_from(number::<8>(bytes, header + 8)?).ok()?;
        let length = usize::try_from(number::<8>(bytes, header + 32)?).ok()?;
        let name = bytes.get(start..start.checked_add(length)?)?;
        Some(
            String::from_utf8_lossy(name)
                .trim_end_matches('\0')
                .to_owned(),
        )
    })
}

fn why_no_format(file: &Path) -> String {
    let bytes = head(file);
    if bytes.is_empty() {
        return "the file is empty or not readable".to_owned();
    }
    if bytes.starts_with(b"\x7fELF") {
        let machine = number::<2>(&bytes, 18)
            .and_then(|m| u16::try_from(m).ok())
            .unwrap_or(0);
        if machine != MACHINE {
            let (theirs, ours) = (machine_name(machine), machine_name(MACHINE));
            return format!(
                "it is built for {theirs} and this host is {ours}; build the image for {ours} (docker build --platform linux/{ours})"
            );
        }
        return "it is a damaged ELF file".to_owned();
    }
    if bytes.starts_with(b"#!") {
        return "its first line (#!) names no program".to_owned();
    }
    if bytes.starts_with(b"MZ") {
        return "it is a Windows program".to_owned();
    }
    if bytes.starts_with(&[0xcf, 0xfa, 0xed, 0xfe]) || bytes.starts_with(&[0xca, 0xfe, 0xba, 0xbe])
    {
        return "it is a macOS program; build it for Linux".to_owned();
    }
    if bytes
        .iter()
        .take(512)
        .all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace())
    {
        return "it is a text file without a #! line; start it with one, for example #!/bin/sh"
            .to_owned();
    }
    "it is neither an ELF program nor a script with a #! line".to_owned()
}

/// As container platforms spell it.
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "386".to_owned(),
        8 => "mips".to_owned(),
        21 => "ppc64le".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm".to_owned(),
        62 => "amd64".to_owned(),
        183 => "arm64".to_owned(),
        243 => "riscv64".to_owned(),
        other => format!("ELF machine {other}"),
    }
}
