//! Whole numbers of flags: what a wrong one is told, in place of the parser's own words.

use std::str::FromStr;

/// 0 or more.
pub(super) fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| "must be a whole number, 0 or more".to_owned())
}

/// As [`whole`], for a time.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "must be a whole number of seconds, 0 or more, without a unit".to_owned())
}

/// Where something listens.
pub(super) fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a port, 1 to 65535".to_owned()),
        Ok(port) => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    #[test]
    fn a_wrong_number_is_told_what_is_expected() {
        for (line, expected) in [
            ("deploy a --port 70000", "1 to 65535"),
            ("deploy a --port 0", "1 to 65535"),
            ("deploy a --port web", "1 to 65535"),
            ("deploy a --concurrency 1001", "1 to 1000"),
            ("deploy a --concurrency 0", "1 to 1000"),
            ("deploy a --min-instances few", "whole number, 0 or more"),
            ("deploy a --min=-1", "whole number, 0 or more"),
            ("logs a --tail abc", "whole number, 0 or more"),
            ("down --grace abc", "whole number of seconds"),
            ("down --grace 5s", "without a unit"),
        ] {
            let words = ["utsuwa"].into_iter().chain(line.split(' '));
            let said = Cli::try_parse_from(words).unwrap_err().to_string();
            assert!(said.contains(expected), "{line}: {said}");
            assert!(!said.contains("invalid digit"), "{line}: {said}");
        }
    }
}
