//! How a test says that it can't run here: by name, counted at the end of `make test`. Included with `#[path]` wherever tests
//! may be left out, for a runner shows nothing of what a test prints that passes.
#![allow(
    clippy::allow_attributes,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    dead_code,
    unused_imports,
    unused_macros,
    reason = "tests; each place uses a part of it"
)]

use std::io::Write;

/// Says that `test` is left out, and why; notes it in the file that `UTSUWA_TEST_SKIPPED` names.
pub(crate) fn skip(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
    if let Some(path) = std::env::var_os("UTSUWA_TEST_SKIPPED") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        // One write: tests of several processes share the file.
        let line = format!("{test}: {why}\n");
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// The path of the function in which a closure was made.
pub(crate) fn place_of<F>(_closure: &F) -> &'static str {
    let mut path = std::any::type_name::<F>();
    while let Some(outer) = path.strip_suffix("::{{closure}}") {
        path = outer;
    }
    path
}

/// The test in which it stands.
macro_rules! here {
    () => {
        $crate::skip::place_of(&|| ())
    };
}
pub(crate) use here;

#[test]
fn a_test_knows_its_name() {
    assert!(
        here!().ends_with("::skip::a_test_knows_its_name"),
        "{}",
        here!()
    );
}
