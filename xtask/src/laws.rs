//! The laws that a machine can check: who may depend on whom, what the pure crates may not contain, how long files may be,
//! and where `unsafe` may stand. The pages people read have a check of their own (`docs`).

use std::path::{Path, PathBuf};

/// Crate → the crates of ours it may depend on (ARCHITECTURE.md).
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("wire", &[]),
    ("decide", &["model"]),
    ("store", &["model"]),
    ("runtime", &["model"]),
    ("ingress", &["model", "decide"]),
    ("control", &["model", "decide", "store", "runtime"]),
    ("api", &["model", "decide", "store", "wire"]),
    (
        "daemon",
        &[
            "model", "decide", "wire", "store", "runtime", "ingress", "control", "api",
        ],
    ),
];

/// Crates that only think (law 1), and what they may build on.
const PURE: &[(&str, &[&str])] = &[
    ("model", &["serde", "serde_json", "thiserror"]),
    ("decide", &["utsuwa-model", "serde"]),
];

/// Words that give away a clock, chance, I/O or unordered maps.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "SystemTime",
    "Instant::now",
    "HashMap",
    "HashSet",
    "async fn",
    "rand::",
];

/// Files longer than this are refused; a file may say why it must be longer in a line `size-waiver: REASON`.
const MAX_LINES: usize = 1000;

pub(crate) fn check() -> Result<String, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default();
    let mut problems = Vec::new();
    dependencies(&root, &mut problems);
    let files = sources(&root);
    for file in &files {
        source(&root, file, &mut problems);
    }
    if problems.is_empty() {
        Ok(format!(
            "laws hold: {} crates, {} files",
            MAY_DEPEND_ON.len(),
            files.len()
        ))
    } else {
        Err(problems)
    }
}

fn dependencies(root: &Path, problems: &mut Vec<String>) {
    let listed: Vec<String> = std::fs::read_dir(root.join("crates"))
        .map(|dir| {
            dir.filter_map(Result::ok)
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default();
    for name in &listed {
        if !MAY_DEPEND_ON.iter().any(|(known, _)| known == name) {
            problems.push(format!("crates/{name}: is not one of the nine crates; a tenth needs an ADR and a line in xtask/src/laws.rs"));
        }
    }
    for (name, allowed) in MAY_DEPEND_ON {
        let path = root.join("crates").join(name).join("Cargo.toml");
        let Some(table) = std::fs::read_to_string(&path)
            .ok()
            .and_then(|t| t.parse::<toml::Table>().ok())
        else {
            problems.push(format!("{}: can't be read", path.display()));
            continue;
        };
        if table
            .get("lints")
            .and_then(|l| l.get("workspace"))
            .and_then(toml::Value::as_bool)
            != Some(true)
        {
            problems.push(format!(
                "crates/{name}/Cargo.toml: must take the workspace's lints"
            ));
        }
        if table
            .get("features")
            .and_then(|f| f.get("default"))
            .and_then(toml::Value::as_array)
            .is_some_and(|on| on.iter().any(|f| f.as_str() == Some("missing-walls")))
        {
            problems.push(format!(
                "crates/{name}/Cargo.toml: missing-walls takes the sandbox apart and must never be a default"
            ));
        }
        let direct = direct(&table);
        for dependency in &direct {
            if let Some(ours) = dependency.strip_prefix("utsuwa-")
                && !allowed.contains(&ours)
            {
                problems.push(format!(
                    "crates/{name}/Cargo.toml: {name} must not depend on {ours}"
                ));
            }
        }
        if let Some((_, may)) = PURE.iter().find(|(pure, _)| pure == name) {
            for dependency in direct.iter().filter(|d| !may.contains(&d.as_str())) {
                problems.push(format!(
                    "crates/{name}/Cargo.toml: {name} is pure and must not depend on {dependency}"
                ));
            }
        }
    }
}

/// The packages that a manifest names as dependencies, for every target or for some. Those of tests and build scripts don't
/// end up in the crate.
fn direct(manifest: &toml::Table) -> Vec<String> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = targets
        .into_iter()
        .flat_map(toml::Table::values)
        .filter_map(toml::Value::as_table)
        .chain([manifest])
        .filter_map(|table| table.get("dependencies")?.as_table());
    let mut names: Vec<String> = tables
        .flatten()
        .map(|(name, wish)| {
            let renamed = wish.get("package").and_then(toml::Value::as_str);
            renamed.unwrap_or(name).to_owned()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

fn source(root: &Path, file: &Path, problems: &mut Vec<String>) {
    let shown = file
        .strip_prefix(root)
        .unwrap_or(file)
        .display()
        .to_string();
    let Ok(text) = std::fs::read_to_string(file) else {
        problems.push(format!("{shown}: can't be read"));
        return;
    };
    let lines = text.lines().count();
    if lines > MAX_LINES && !text.contains("size-waiver:") {
        problems.push(format!("{shown}: {lines} lines; split it (the limit is {MAX_LINES}) or say why in a line `size-waiver: …`"));
    }
    if !shown.starts_with("crates/runtime/") && !shown.starts_with("xtask/") {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("unsafe {")
                || code.contains("unsafe fn")
                || code.contains("unsafe impl")
            {
                problems.push(format!(
                    "{shown}:{}: unsafe belongs into crates/runtime only",
                    number + 1
                ));
            }
        }
    }
    let in_pure = PURE
        .iter()
        .any(|(name, _)| shown.starts_with(&format!("crates/{name}/src/")));
    if in_pure {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = IMPURE.iter().find(|w| code.contains(**w)) {
                problems.push(format!(
                    "{shown}:{}: {word} in a pure crate (law 1)",
                    number + 1
                ));
            }
        }
    }
}

fn sources(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root.join("crates"), root.join("xtask"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_dependency_is_found_wherever_it_is_named() {
        let manifest = r#"
            [dependencies]
            serde = "1"
            keeper = { package = "utsuwa-store", path = "../store" }
            [dev-dependencies]
            insta = "1"
            [target.'cfg(unix)'.dependencies]
            utsuwa-runtime.workspace = true
            serde = "1"
        "#;
        let manifest = manifest.parse().expect("TOML");
        assert_eq!(
            super::direct(&manifest),
            ["serde", "utsuwa-runtime", "utsuwa-store"]
        );
    }

    #[test]
    fn the_laws_hold_here() {
        assert_eq!(super::check().err(), None);
    }
}
