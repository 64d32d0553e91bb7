//! Repository chores: `cargo xtask laws` checks the dependency law and the size law.

mod laws;

use std::process::ExitCode;

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let result = match command.as_str() {
        "laws" => laws::check(),
        other => Err(vec![format!("{other:?}: no such chore; there is: laws")]),
    };
    match result {
        Ok(report) => {
            say(&report);
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for problem in &problems {
                say(&format!("law broken: {problem}"));
            }
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a chore talks to the person who runs it")]
fn say(text: &str) {
    println!("{text}");
}
