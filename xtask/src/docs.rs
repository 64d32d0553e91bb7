//! `cargo xtask docs`: writes the reference pages from what they describe, and checks the pages people write by hand against it.
//!
//! Owns: `docs/reference/` (configuration from the option table, command line from the program's own `--help`), and the checks
//! of `docs/compat.md` (names every field and method of our protos) and `docs/errors/` (quotes only what the code says).
//!
//! Deliberately not here: whether a page is well written.
//!
//! Invariants:
//! 1. The same sources make the same pages, whatever terminal and environment.
//! 2. `--check` writes nothing.
//!
//! Fails with every stale or wrong page at once, each with the command that mends it.

mod compat;
mod errors;
mod help;
mod options;

use std::path::{Path, PathBuf};

/// `docs [--check] [--utsuwa PROGRAM]`. Without a program the page of the command line is left alone.
pub(crate) fn main(args: &[String]) -> Result<String, Vec<String>> {
    let mut check_only = false;
    let mut program = None;
    let mut rest = args.iter();
    while let Some(flag) = rest.next() {
        match flag.as_str() {
            "--check" => check_only = true,
            "--utsuwa" => match rest.next() {
                Some(path) => program = Some(PathBuf::from(path)),
                None => return Err(vec!["--utsuwa needs the path of a program".to_owned()]),
            },
            other => {
                return Err(vec![format!(
                    "{other}: no such flag; there are --check and --utsuwa PROGRAM"
                )]);
            }
        }
    }
    let root = root();
    let mut problems = Vec::new();
    let mut done = Vec::new();
    let mut pages = vec![(
        "docs/reference/configuration.md",
        options::page(&root),
        "cargo xtask docs",
    )];
    match &program {
        Some(program) => pages.push((
            "docs/reference/command-line.md",
            help::page(program),
            "cargo xtask docs --utsuwa PROGRAM",
        )),
        None => done.push(
            "docs/reference/command-line.md: left alone, no --utsuwa PROGRAM given".to_owned(),
        ),
    }
    for (path, text, mend) in pages {
        match text {
            Ok(text) => page(
                &root,
                path,
                &text,
                check_only,
                mend,
                &mut problems,
                &mut done,
            ),
            Err(why) => problems.push(format!("{path}: {why}")),
        }
    }
    compat::check(&root, &mut problems);
    errors::check(&root, &mut problems);
    if problems.is_empty() {
        Ok(done.join("\n"))
    } else {
        Err(problems)
    }
}

/// Writes a page, or compares it.
fn page(
    root: &Path,
    path: &str,
    text: &str,
    check_only: bool,
    mend: &str,
    problems: &mut Vec<String>,
    done: &mut Vec<String>,
) {
    let file = root.join(path);
    let current = std::fs::read_to_string(&file).unwrap_or_default();
    if current == text {
        done.push(format!("{path}: up to date"));
    } else if check_only {
        problems.push(format!("{path}: is stale; make it anew with: {mend}"));
    } else {
        match std::fs::write(&file, text) {
            Ok(()) => done.push(format!("{path}: written")),
            Err(error) => problems.push(format!("{path}: write the page: {error}")),
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

/// All files below `folder` that end in `.ending`, in a fixed order.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn pages_agree_with_the_code() {
        assert_eq!(super::main(&["--check".to_owned()]).err(), None);
    }
}
