//! `docs/errors/`: one page per failure. A page quotes what the program really says, so each quoted line must be found in the
//! sources; `…` stands for what differs from case to case.

use std::path::Path;

const FOLDER: &str = "docs/errors";
const HEADINGS: [&str; 3] = ["## What you see", "## Why", "## What to do"];
/// Shorter pieces are found everywhere and prove nothing.
const LEAST: usize = 8;

pub(super) fn check(root: &Path, problems: &mut Vec<String>) {
    let index = std::fs::read_to_string(root.join(FOLDER).join("README.md")).unwrap_or_default();
    let mut code = String::new();
    for file in super::files(&root.join("crates"), "rs") {
        code.push_str(&said(&std::fs::read_to_string(&file).unwrap_or_default()));
        code.push('\n');
    }
    let pages: Vec<_> = super::files(&root.join(FOLDER), "md")
        .into_iter()
        .filter(|p| p.file_name().is_some_and(|n| n != "README.md"))
        .collect();
    if pages.is_empty() {
        problems.push(format!("{FOLDER}: holds no pages"));
    }
    for path in pages {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let page = std::fs::read_to_string(&path).unwrap_or_default();
        if !index.contains(&format!("({name})")) {
            problems.push(format!("{FOLDER}/README.md: does not lead to {name}"));
        }
        for heading in HEADINGS {
            if !page.contains(heading) {
                problems.push(format!("{FOLDER}/{name}: has no heading {heading:?}"));
            }
        }
        let quoted = quoted(&page);
        if quoted.is_empty() {
            problems.push(format!("{FOLDER}/{name}: quotes nothing"));
        }
        for piece in quoted.iter().filter(|piece| !stands_in(&code, piece)) {
            problems.push(format!(
                "{FOLDER}/{name}: nothing in crates/ says {piece:?}; quote the real text, with … for what differs"
            ));
        }
    }
}

/// The fixed pieces of the first code block under "What you see".
fn quoted(page: &str) -> Vec<String> {
    let block = page
        .split_once(HEADINGS[0])
        .and_then(|(_, rest)| rest.split("```").nth(1))
        .unwrap_or_default();
    block
        .lines()
        .skip(1)
        .flat_map(|line| {
            ["error: ", "hint: "]
                .iter()
                .find_map(|mark| line.strip_prefix(mark))
                .unwrap_or(line)
                .split('…')
        })
        .map(|piece| piece.trim().to_owned())
        .filter(|piece| piece.chars().count() >= LEAST)
        .collect()
}

/// Whether the code says a piece: as it is, or joined by `: ` from the texts of an error and its causes.
fn stands_in(code: &str, piece: &str) -> bool {
    code.contains(piece)
        || piece
            .split(": ")
            .map(|part| part.trim().trim_end_matches(':'))
            .filter(|part| part.chars().count() >= LEAST)
            .all(|part| code.contains(part))
}

/// Rust text with its continued string literals joined and quotes unescaped.
fn said(source: &str) -> String {
    let mut out = String::new();
    let mut joining = false;
    for line in source.lines() {
        let line = if joining { line.trim_start() } else { line };
        joining = line.ends_with('\\');
        out.push_str(line.trim_end_matches('\\'));
        if !joining {
            out.push('\n');
        }
    }
    out.replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_found_in_continued_literals() {
        let code =
            said("bail!(\n    \"this program needs \\\n     root: {why}; say \\\"please\\\"\"\n)");
        let page = "# X\n\n## What you see\n\n```text\nerror: start: this program needs root: … say \"please\"\n```\n\n## Why\n";
        let pieces = quoted(page);
        assert_eq!(
            pieces,
            ["start: this program needs root:", "say \"please\""]
        );
        assert!(pieces.iter().all(|p| stands_in(&code, p)), "{code}");
        assert!(!stands_in(&code, "this program needs root: another text"));
    }
}
