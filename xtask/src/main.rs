//! Repository chores: `cargo xtask laws` checks the laws a machine can check; `cargo xtask docs` makes and checks the documents;
//! `cargo xtask bench` measures the promises.

mod bench;
mod docs;
mod laws;

use std::process::ExitCode;

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let result = match command.as_str() {
        "laws" => laws::check(),
        "docs" => docs::main(&std::env::args().skip(2).collect::<Vec<_>>()),
        "bench" => bench::main(&std::env::args().skip(2).collect::<Vec<_>>())
            .map_err(|e| vec![format!("{e:#}")]),
        other => Err(vec![format!(
            "{other:?}: no such chore; there are laws, docs and bench"
        )]),
    };
    match result {
        Ok(report) => {
            say(&report);
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for problem in &problems {
                say(&format!("{command}: {problem}"));
            }
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "a chore talks to the person who runs it"
)]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
