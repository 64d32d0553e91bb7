//! The page of the command line says what the program says. Here, since only here there is a program to ask.

use std::path::Path;

#[path = "../../xtask/src/docs/help.rs"]
mod help;

const PAGE: &str = "docs/reference/command-line.md";

#[test]
fn the_page_of_the_command_line_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join(PAGE)).unwrap();
    let program = env!("CARGO_BIN_EXE_utsuwa");
    let said = help::page(Path::new(program)).unwrap();
    let (mut old, mut new) = (page.lines(), said.lines());
    let differs = std::iter::from_fn(|| match (old.next(), new.next()) {
        (None, None) => None,
        both => Some(both),
    })
    .find(|(old, new)| old != new);
    assert_eq!(
        differs, None,
        "{PAGE} is stale (left: what it says); make it anew with: cargo xtask docs --utsuwa {program}"
    );
}
