//! The page of the command line, from what the program itself says.

use std::path::Path;
use std::process::{Command, Stdio};

/// What every command takes; said once.
const SHARED: &str = "\nServer:\n";

pub(super) fn page(program: &Path) -> Result<String, String> {
    let whole = help(program, &[])?;
    let mut page = format!(
        "# Command line\n\n\
         Made by `cargo xtask docs --utsuwa PROGRAM` from the program's own `--help`; don't edit.\n\n\
         Data goes to stdout, everything else to stderr. Exit status: 0 done, 1 the request failed, 2 usage or configuration, 3 the\n\
         server could not be reached. Every listing takes `--format json|yaml|table|value(PATH)`. The options under *Server* may be\n\
         given with any command and are left out below.\n\n\
         ## utsuwa\n\n```text\n{}\n```\n",
        whole.trim_end()
    );
    for command in commands(&whole) {
        add(program, &[command.as_str()], &mut page)?;
    }
    Ok(page)
}

fn add(program: &Path, words: &[&str], page: &mut String) -> Result<(), String> {
    let text = help(program, words)?;
    let own = text.split(SHARED).next().unwrap_or(&text);
    page.push_str(&format!(
        "\n## utsuwa {}\n\n```text\n{}\n```\n",
        words.join(" "),
        own.trim_end()
    ));
    for command in commands(&text) {
        let deeper: Vec<&str> = words.iter().copied().chain([command.as_str()]).collect();
        add(program, &deeper, page)?;
    }
    Ok(())
}

/// Width and environment are fixed, so that the page doesn't depend on who makes it.
fn help(program: &Path, words: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(words)
        .arg("--help")
        .env_clear()
        .env("COLUMNS", "100")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("run {}: {e}", program.display()))?;
    if !output.status.success() {
        return Err(format!(
            "{} {} --help: {}",
            program.display(),
            words.join(" "),
            output.status
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .map(|l| format!("{}\n", l.trim_end()))
        .collect())
}

/// The names in the list `Commands:`, without `help`.
fn commands(help: &str) -> Vec<String> {
    let mut lines = help.lines().skip_while(|l| *l != "Commands:").skip(1);
    let mut found = Vec::new();
    for line in lines.by_ref().take_while(|l| !l.is_empty()) {
        // A name stands at two spaces; what stands deeper goes on with the line above.
        if let Some(rest) = line.strip_prefix("  ")
            && !rest.starts_with(' ')
            && let Some(name) = rest.split_whitespace().next()
            && name != "help"
        {
            found.push(name.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn commands_are_found() {
        let help = "What.\n\nCommands:\n  up    Start\n        the server\n  down  Stop\n  help  Print this\n\nOptions:\n  -h\n";
        assert_eq!(super::commands(help), ["up", "down"]);
        assert!(super::commands("Usage: x\n").is_empty());
    }
}
