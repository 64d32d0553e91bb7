//! Lists in flags, as gcloud takes them: `a,b`; `^@^a@b` with a delimiter of one's own, for parts that have a comma; and one flag
//! after the other.
//!
//! One difference: gcloud refuses `--args a,a`, which is a good command line of many programs.

use clap::Args;

use super::DeployArgs;
use crate::cli::ClientArgs;
use crate::client::Failure;

/// The parts of all values of `flag`. An empty value has none; a part may be empty, but for one after the last delimiter.
pub(super) fn parts(flag: &str, given: &[String]) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for text in given {
        all.extend(split(flag, text)?.into_iter().map(str::to_owned));
    }
    Ok(all)
}

fn split<'a>(flag: &str, text: &'a str) -> Result<Vec<&'a str>, Failure> {
    let (delimiter, rest) = match text.strip_prefix('^').and_then(|t| t.split_once('^')) {
        Some(("", _)) => {
            return Err(Failure::usage(format!(
                "{flag}: {text:?}: there is no delimiter between ^ and ^"
            ))
            .hint(format!("for example {flag}='^@^a@b,c' for a and b,c")));
        }
        Some(named) => named,
        None => (",", text),
    };
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    let rest = rest.strip_suffix(delimiter).unwrap_or(rest);
    Ok(rest.split(delimiter).collect())
}

/// The same of `NAME=VALUE`. Within one value the last of a name counts; a name in two flags is refused, for it is not known which is
/// meant.
pub(super) fn pairs(flag: &str, given: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut all: Vec<(String, String)> = Vec::new();
    for text in given {
        let before = all.len();
        for part in split(flag, text)? {
            let (name, value) = part
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| no_pair(flag, part))?;
            if all.iter().take(before).any(|(known, _)| known == name) {
                return Err(Failure::usage(format!("{flag}: names {name} twice")));
            }
            all.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(all)
}

fn no_pair(flag: &str, part: &str) -> Failure {
    Failure::usage(format!("{flag}: {part:?} must be NAME=VALUE")).hint(format!(
        "a value with a comma needs another delimiter, for example {flag}='^@^A=1,2@B=3'"
    ))
}

/// The refusal of `--args --no-traffic`. Values of these two may begin with a hyphen; but where one is spelt like a flag of ours, the
/// value before it was more likely forgotten, and the flag would be lost.
pub(crate) fn swallowed(words: impl Iterator<Item = String>) -> Option<Failure> {
    let ours = ClientArgs::augment_args(DeployArgs::augment_args(clap::Command::new("deploy")));
    let is_ours = |word: &str| {
        let long = word.strip_prefix("--").and_then(|w| w.split('=').next());
        let short = word.strip_prefix('-').and_then(|w| w.parse::<char>().ok());
        ours.get_arguments().any(|flag| {
            long.is_some() && flag.get_long() == long
                || short.is_some() && flag.get_short() == short
        })
    };
    let words: Vec<String> = words.collect();
    let taken = words
        .windows(2)
        .find(|pair| ["--args", "--command"].contains(&pair[0].as_str()) && is_ours(&pair[1]))?;
    let (flag, word) = (&taken[0], &taken[1]);
    Some(
        Failure::usage(format!(
            "{flag} has no value: {word}, which follows, is a flag of deploy; nothing was changed"
        ))
        .hint(format!("if it is meant for the container: {flag}={word}")),
    )
}

#[cfg(test)]
mod tests {
    use super::super::parsed as args;
    use super::*;

    /// What gcloud 528 makes of each.
    #[test]
    fn a_list_is_split_as_gcloud_does() {
        for (text, expected) in [
            ("", &[][..]),
            ("a,,b", &["a", "", "b"]),
            ("a,", &["a"]),
            (",", &[""]),
            ("^@^a@b,c", &["a", "b,c"]),
            ("^@^a@", &["a"]),
            ("^@^", &[]),
            ("^::^a:b::c", &["a:b", "c"]),
            ("^,^^a^,b", &["^a^", "b"]),
            ("a^b", &["a^b"]),
            ("^a", &["^a"]),
            (" a , b", &[" a ", " b"]),
        ] {
            let found = parts("--x", &[text.to_owned()]).unwrap();
            assert_eq!(found, expected, "{text:?}");
        }
        let refused = parts("--args", &["^^a".to_owned()]).unwrap_err();
        assert!(refused.message.contains("no delimiter"), "{refused}");
    }

    #[test]
    fn a_flag_may_be_given_again_and_its_value_begin_with_a_hyphen() {
        let given = args(&["--args", "-c,a", "--args=^@^echo a,b@x", "--command", "-v"]).unwrap();
        assert_eq!(
            parts("--args", &given.args).unwrap(),
            ["-c", "a", "echo a,b", "x"]
        );
        assert_eq!(given.command, ["-v"]);
        let given = args(&["--set-env-vars=A=1", "--set-env-vars=^;^B=2,3;C="]).unwrap();
        let own = |list: &[(&str, &str)]| {
            let own = list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
            own.collect::<Vec<_>>()
        };
        assert_eq!(
            pairs("--set-env-vars", &given.set_env_vars).unwrap(),
            own(&[("A", "1"), ("B", "2,3"), ("C", "")])
        );
        assert!(args(&["--set-env-vars=A=1", "--update-env-vars=B=2"]).is_err());
    }

    #[test]
    fn what_is_no_pair_is_refused_with_what_to_write() {
        let refused = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|g| (*g).to_owned()).collect();
            pairs("--set-env-vars", &given).unwrap_err()
        };
        let comma = refused(&["A=1,2"]);
        assert!(
            comma.message.contains("\"2\" must be NAME=VALUE"),
            "{comma}"
        );
        assert!(comma.hint.unwrap().contains("^@^"));
        assert!(refused(&["=1"]).message.contains("NAME=VALUE"));
        assert!(refused(&["A=1", "A=2"]).message.contains("A twice"));
        let last = pairs("--labels", &["a=1,a=2".to_owned()]).unwrap();
        assert_eq!(last.last().unwrap().1, "2");
    }

    #[test]
    fn a_flag_of_ours_is_not_taken_for_an_argument() {
        let found = |line: &str| {
            let words = line.split(' ').map(str::to_owned);
            swallowed(words).map(|failure| failure.hint.unwrap())
        };
        let hint = found("utsuwa deploy web --args --no-traffic").unwrap();
        assert!(hint.contains("--args=--no-traffic"), "{hint}");
        assert!(found("utsuwa deploy web --command --api=http://x").is_some());
        assert!(found("utsuwa deploy web --args -q").is_some());
        for fine in [
            "utsuwa deploy web --args --verbose --no-traffic",
            "utsuwa deploy web --args=--no-traffic",
            "utsuwa deploy web --args -c,--no-traffic",
            "utsuwa deploy web --args -v -q",
            "utsuwa deploy web --args=-q",
            "utsuwa deploy web --args -qq",
        ] {
            assert_eq!(found(fine), None, "{fine}");
        }
    }
}
