//! How the logs of instances lie on disk; shared by the keeper, which writes them, and the reader.
//!
//! `LOGS/PROJECT/REGION/SERVICE/INSTANCE.STREAM.START` (for one of several containers `INSTANCE.STREAM-CONTAINER.START`) holds the raw bytes that the instance wrote to the stream, from
//! offset START on. `….START.idx` says when: entries of (end offset, microseconds since the epoch), both little-endian 64
//! bits; bytes below the first end offset that is greater than theirs were written at its time. A negative time says that
//! the stream has ended there. `INSTANCE.STREAM.dropped` counts what was deleted from the stream's beginning, and
//! `dropped` in the service's directory counts instances whose logs are gone altogether.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utsuwa_model::{InstanceId, ServiceKey};

/// Which of the two an instance wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// As in file names.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::Stdout => "out",
            Self::Stderr => "err",
        }
    }
}

/// One stream of one instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    pub instance: InstanceId,
    /// Which of its containers; empty in an instance of one.
    pub container: String,
    pub stream: Stream,
}

impl StreamKey {
    /// What the names of all its files begin with.
    fn stem(&self) -> String {
        let (instance, stream) = (&self.instance, self.stream.short());
        if self.container.is_empty() {
            format!("{instance}.{stream}")
        } else {
            // Names of containers have no dots.
            format!("{instance}.{stream}-{}", self.container)
        }
    }

    pub(crate) fn segment(&self, directory: &Path, start: u64) -> PathBuf {
        directory.join(format!("{}.{start}", self.stem()))
    }

    pub(crate) fn index(&self, directory: &Path, start: u64) -> PathBuf {
        directory.join(format!("{}.{start}.idx", self.stem()))
    }

    pub(crate) fn marker(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.dropped", self.stem()))
    }
}

/// Name of the marker of a whole service.
pub(crate) const SERVICE_MARKER: &str = "dropped";
/// Bytes of an index entry.
pub(crate) const INDEX_ENTRY: usize = 16;

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    pub bytes: u64,
    pub lines: u64,
    /// Streams of ended instances that are gone altogether (service marker only).
    #[serde(default)]
    pub streams: u64,
}

impl Dropped {
    pub(crate) fn read(path: &Path) -> Self {
        fs::read(path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(&temporary, path)
    }
}

/// A segment found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) key: StreamKey,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) modified: std::time::SystemTime,
}

/// Where the logs of a service lie below `root`.
#[must_use]
pub fn service_directory(root: &Path, service: &ServiceKey) -> PathBuf {
    root.join(service.project.as_str())
        .join(service.region.as_str())
        .join(service.service.as_str())
}

/// Where logs lie that are being deleted. No project is called so.
const REMOVED: &str = ".removed";

/// Logs of deleted services that were put aside below `root`.
pub(crate) fn removed(root: &Path) -> Vec<PathBuf> {
    entries(&root.join(REMOVED))
        .into_iter()
        .map(|(path, _)| path)
        .collect()
}

/// Takes the folder of a service out of the readers' sight, to where [`removed`] finds it. Answers whether there was one.
pub(crate) fn put_aside(root: &Path, service: &ServiceKey) -> io::Result<bool> {
    let directory = service_directory(root, service);
    if fs::symlink_metadata(&directory).is_err() {
        return Ok(false);
    }
    let aside = root.join(REMOVED);
    match fs::DirBuilder::new().mode(0o700).create(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let free = (0u32..)
        .map(|number| aside.join(number.to_string()))
        .find(|path| fs::symlink_metadata(path).is_err())
        .ok_or(io::ErrorKind::AlreadyExists)?;
    fs::rename(&directory, free)?;
    // Of the region and the project, if this was the last.
    for parent in directory.ancestors().skip(1).take(2) {
        if fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(true)
}

/// The services that something is kept of below `root`, whether they exist or not.
///
/// # Errors
/// `root` can't be read; one that isn't there has none.
pub fn services(root: &Path) -> io::Result<Vec<ServiceKey>> {
    match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let mut found = Vec::new();
    for (path, project) in entries(root) {
        for (path, region) in entries(&path) {
            for (_, service) in entries(&path) {
                // What is no name of ours is not ours to judge.
                found.extend(format!("{project}/{region}/{service}").parse());
            }
        }
    }
    Ok(found)
}

/// The newest time at which something in `directory` was changed; `None` when there is nothing. A time that is yet to come is one
/// of a clock that was ahead: what is written now has that of now, so it doesn't count.
///
/// # Errors
/// It can't be read.
pub fn newest_change(directory: &Path) -> io::Result<Option<std::time::SystemTime>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut newest = None;
    for entry in entries {
        let changed = entry?.metadata()?.modified()?;
        // Asked now: what is written while we look is no future.
        if changed <= std::time::SystemTime::now() {
            newest = newest.max(Some(changed));
        }
    }
    Ok(newest)
}

fn entries(directory: &Path) -> Vec<(PathBuf, String)> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            (
                entry.path(),
                entry.file_name().to_string_lossy().into_owned(),
            )
        })
        .collect()
}

/// `INSTANCE.STREAM.START` taken apart; `None` for anything else.
pub(crate) fn parse_segment(name: &str) -> Option<(StreamKey, u64)> {
    let mut parts = name.split('.');
    let instance = parts.next()?.parse().ok()?;
    let stream = parts.next()?;
    let (stream, container) = stream.split_once('-').unwrap_or((stream, ""));
    let stream = match stream {
        "out" => Stream::Stdout,
        "err" => Stream::Stderr,
        _ => return None,
    };
    let start = parts.next()?.parse().ok()?;
    let key = StreamKey {
        instance,
        container: container.to_owned(),
        stream,
    };
    parts.next().is_none().then_some((key, start))
}

/// All segments of a service, in no order. A missing directory has none.
pub(crate) fn segments(directory: &Path) -> io::Result<Vec<Segment>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some((key, start)) = entry.file_name().to_str().and_then(parse_segment) else {
            continue;
        };
        // Deleted between listing and looking: dropped by the budget.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        found.push(Segment {
            key,
            start,
            length: metadata.len(),
            modified: metadata.modified()?,
        });
    }
    Ok(found)
}

/// Newlines in `bytes`.
pub(crate) fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}
