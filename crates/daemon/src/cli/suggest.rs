//! "Did you mean …?": the nearest of the names there are.

use clap::error::{ContextKind, ContextValue, ErrorKind};

pub(crate) use utsuwa_model::nearest::nearest;

use crate::client::{Api, Failure};
use crate::output::text_at;

/// The failure of a command about `service`; if there is none of that name, with the name that was probably meant.
pub(crate) async fn service(api: &Api, service: &str, failure: Failure) -> Failure {
    if !failure.is_not_found() {
        return failure;
    }
    if let Some(region) = elsewhere(api, service).await {
        return failure.hint(in_region(service, &region));
    }
    match services(api).await {
        Ok(names) => failure.hint(hint(service, &names, "services", api)),
        Err(_) => failure,
    }
}

/// Another region of the project that has a service of exactly this name.
pub(crate) async fn elsewhere(api: &Api, service: &str) -> Option<String> {
    let path = format!("/run/v2/projects/{}/locations", api.project);
    let regions = api.list(&path, "locations").await.ok()?;
    for region in regions.iter().map(|r| super::short(&text_at(r, "name"))) {
        let there = api.in_region(&region);
        if region != api.region && api.get(&there.service(service)).await.is_ok() {
            return Some(region);
        }
    }
    None
}

/// What to say about a service that is in `region` and not in the one that was asked.
pub(crate) fn in_region(service: &str, region: &str) -> String {
    format!("{service} is in region {region}: say --region {region}")
}

/// The names of all services of the project and region.
pub(crate) async fn services(api: &Api) -> Result<Vec<String>, Failure> {
    let path = format!("/run/v2/{}/services", api.parent());
    let all = api.list(&path, "services").await?;
    Ok(all
        .iter()
        .map(|service| super::short(&text_at(service, "name")))
        .collect())
}

/// What to say about `wrong` when there are only `names`.
pub(crate) fn hint(wrong: &str, names: &[String], what: &str, api: &Api) -> String {
    let place = format!("project {} region {}", api.project, api.region);
    match nearest(wrong, names.iter().map(String::as_str)) {
        Some(name) => format!("did you mean {name}?"),
        None if names.is_empty() => {
            format!("there are no {what} in {place}; --project and --region choose another place")
        }
        None => format!("`utsuwa {what} list` shows what there is in {place}"),
    }
}

/// What others call what has another name here: the group where it is typed (none: at the top), the words, and what to do.
const ELSEWHERE: &[(&str, &[&str], &str)] = &[
    (
        "",
        &["status", "ps"],
        "`utsuwa services list` shows the services, `utsuwa services describe NAME --why` what runs of one and why",
    ),
    (
        "",
        &["run", "launch"],
        "`utsuwa deploy NAME --image REF` makes a service of an image",
    ),
    (
        "",
        &["start", "serve"],
        "`utsuwa up` starts the server; a service starts when it is called",
    ),
    (
        "",
        &["stop"],
        "`utsuwa down` stops the server, `utsuwa services delete NAME` removes a service",
    ),
    (
        "services",
        &["update", "create"],
        "`utsuwa deploy NAME` makes a service or changes one; what its flags don't name stays. `utsuwa services update-traffic NAME` \
         changes where requests go",
    ),
    (
        "services",
        &["replace"],
        "the API takes whole services: eval \"$(utsuwa env)\" and gcloud run services replace FILE",
    ),
    (
        "services",
        &["logs"],
        "`utsuwa logs NAME` shows what its instances wrote",
    ),
    (
        "services",
        &[
            "add-iam-policy-binding",
            "get-iam-policy",
            "remove-iam-policy-binding",
            "set-iam-policy",
        ],
        "`utsuwa deploy NAME --allow-unauthenticated` opens a service, --no-allow-unauthenticated closes it; the API takes policies: \
         eval \"$(utsuwa env)\" and gcloud run services add-iam-policy-binding",
    ),
    (
        "domains",
        &["delete", "remove", "rm"],
        "`utsuwa domains unmap DOMAIN` lets a domain lead nowhere; its service stays",
    ),
    (
        "domains",
        &["create", "add"],
        "`utsuwa domains map DOMAIN --service NAME` lets a domain lead to a service",
    ),
    (
        "images",
        &["delete", "remove", "rm", "prune"],
        "images go by themselves, a while after no revision uses them any more; `utsuwa images list` says which are in use",
    ),
];

/// What Google has and this server doesn't yet: the words at the top, and what there is meanwhile.
const NOT_BUILT: &[(&[&str], &str)] = &[
    (
        &["jobs", "executions", "tasks", "worker-pools"],
        "services are what runs here: `utsuwa deploy NAME --image REF`",
    ),
    (
        &["secrets"],
        "a secret is given as a variable: `utsuwa deploy NAME --set-env-vars NAME=VALUE`",
    ),
    (
        &["builds", "functions"],
        "nothing is built from source: build the image yourself, `utsuwa deploy NAME --image REF`",
    ),
    (
        &["pubsub", "eventarc", "scheduler", "triggers"],
        "nothing sends events: whatever can make an HTTP request can call a service's address",
    ),
];

/// The failure for a command that is not built, that has another name here, or was typed without its group, as `utsuwa update-traffic`. `words` are
/// those of the command line.
pub(crate) fn misplaced(
    error: &clap::Error,
    program: &clap::Command,
    words: impl Iterator<Item = String>,
) -> Option<Failure> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let group = entered(program, words.skip(1).take_while(|typed| typed != word));
    let typed = match group {
        "" => format!("utsuwa {word}"),
        group => format!("utsuwa {group} {word}"),
    };
    let not_built = NOT_BUILT
        .iter()
        .find(|(names, _)| group.is_empty() && names.contains(&word.as_str()));
    if let Some((_, instead)) = not_built {
        return Some(
            Failure::usage(format!("{typed}: not built in this server yet")).hint(*instead),
        );
    }
    let failure = Failure::usage(format!("there is no command {typed}"));
    let known = ELSEWHERE
        .iter()
        .find(|(place, names, _)| *place == group && names.contains(&word.as_str()));
    if let Some((_, _, what)) = known {
        return Some(failure.hint(*what));
    }
    // What another group has of that name does something else.
    let groups = program.get_subcommands().filter(|_| group.is_empty());
    let found: Vec<String> = groups
        .filter(|group| group.find_subcommand(word).is_some())
        .map(|group| format!("`utsuwa {} {word}`", group.get_name()))
        .collect();
    if !found.is_empty() {
        return Some(failure.hint(format!("did you mean {}?", found.join(" or "))));
    }
    misspelt(word, group, program).map(|what| failure.hint(what))
}

/// What to do instead of what `word` is a slip of. A slip of a command there is, or its beginning, is clap's to tell.
fn misspelt(word: &str, group: &str, program: &clap::Command) -> Option<&'static str> {
    let at = program.find_subcommand(group).unwrap_or(program);
    let real: Vec<&str> = at.get_subcommands().map(clap::Command::get_name).collect();
    if real.iter().any(|name| name.starts_with(word)) {
        return None;
    }
    let places = ELSEWHERE.iter().filter(|(place, ..)| *place == group);
    let of_others = places.flat_map(|(_, names, what)| names.iter().map(|name| (*name, *what)));
    // Of two letters every other word is a slip.
    let of_others: Vec<(&str, &str)> = of_others.filter(|(name, _)| name.len() > 3).collect();
    let names = of_others.iter().map(|(name, _)| *name);
    let meant = nearest(word, names.chain(real))?;
    let (_, what) = of_others.iter().find(|(name, _)| *name == meant)?;
    Some(what)
}

/// The group that `words` lead to; empty: none.
fn entered(program: &clap::Command, words: impl Iterator<Item = String>) -> &str {
    let mut at = program;
    for word in words {
        // An option's value that is a group's name by chance costs a hint, no more.
        at = at.find_subcommand(&word).unwrap_or(at);
    }
    match at.get_name() == program.get_name() {
        true => "",
        false => at.get_name(),
    }
}

/// Shows the command's own usage, as its help does. What stands there otherwise has every option that is set, by a variable such as
/// UTSUWA_API too, as if it had to be given.
pub(crate) fn with_plain_usage(
    mut error: clap::Error,
    mut program: clap::Command,
    words: impl Iterator<Item = String>,
) -> clap::Error {
    if error.get(ContextKind::Usage).is_none() {
        return error;
    }
    program.build();
    for word in words.skip(1) {
        // An option's value that is a command's name by chance costs a wrong usage line, no more.
        if let Some(deeper) = program.find_subcommand(&word).cloned() {
            program = deeper;
        }
    }
    let usage = program.render_usage();
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::Cli;
    use super::*;

    #[test]
    fn a_command_without_its_group_finds_it() {
        let hint = |line: &str| {
            let words = || line.split(' ').map(str::to_owned);
            let error = Cli::try_parse_from(words()).unwrap_err();
            misplaced(&error, &Cli::command(), words())?.hint
        };
        assert_eq!(
            hint("utsuwa update-traffic hello").as_deref(),
            Some("did you mean `utsuwa services update-traffic`?")
        );
        let list = hint("utsuwa list").unwrap();
        assert!(list.contains("`utsuwa services list` or `utsuwa revisions list`"));
        assert_eq!(hint("utsuwa nonsense"), None);
        assert_eq!(hint("utsuwa services lst"), None);
        // A slip leads where the word leads; one of a command there is, is clap's.
        assert_eq!(hint("utsuwa stauts"), hint("utsuwa status"));
        assert!(hint("utsuwa stauts").unwrap().contains("services list"));
        assert_eq!(
            hint("utsuwa domains delte www.example.test"),
            hint("utsuwa domains delete www.example.test")
        );
        for of_clap in [
            "utsuwa serv",
            "utsuwa deplyo",
            "utsuwa trsut",
            "utsuwa services upd",
        ] {
            assert_eq!(hint(of_clap), None, "{of_clap}");
        }
    }

    /// Deleting a service for a domain that was to go would be a bad hint.
    #[test]
    fn a_word_of_other_tools_is_answered_within_its_group() {
        for (line, message, meant) in [
            (
                "utsuwa domains delete www.example.test",
                "there is no command utsuwa domains delete",
                "utsuwa domains unmap",
            ),
            (
                "utsuwa --api http://x images rm a",
                "there is no command utsuwa images rm",
                "by themselves",
            ),
            (
                "utsuwa status",
                "there is no command utsuwa status",
                "utsuwa services list",
            ),
            (
                "utsuwa ps",
                "there is no command utsuwa ps",
                "utsuwa services list",
            ),
            (
                "utsuwa services update web --memory 1Gi",
                "there is no command utsuwa services update",
                "`utsuwa deploy NAME`",
            ),
            (
                "utsuwa jobs list",
                "utsuwa jobs: not built in this server yet",
                "utsuwa deploy",
            ),
            (
                "utsuwa secrets list --format json",
                "utsuwa secrets: not built in this server yet",
                "--set-env-vars",
            ),
        ] {
            let words = || line.split(' ').map(str::to_owned);
            let error = Cli::try_parse_from(words()).unwrap_err();
            let failure = misplaced(&error, &Cli::command(), words()).unwrap();
            assert_eq!(failure.message, message);
            let hint = failure.hint.unwrap();
            assert!(
                hint.contains(meant) && !hint.contains("services delete"),
                "{hint}"
            );
        }
    }

    #[test]
    fn what_is_there_is_not_called_missing() {
        let program = Cli::command();
        for name in NOT_BUILT.iter().flat_map(|(names, _)| *names) {
            assert!(program.find_subcommand(name).is_none(), "{name}");
        }
        for (group, names, _) in ELSEWHERE {
            let at = match *group {
                "" => &program,
                group => program.find_subcommand(group).unwrap(),
            };
            for name in *names {
                assert!(at.find_subcommand(name).is_none(), "{group} {name}");
            }
        }
    }

    #[test]
    fn usage_names_what_is_needed_and_not_what_is_set() {
        for (line, usage) in [
            (
                "utsuwa --api http://x deploy",
                "Usage: utsuwa deploy [OPTIONS] <NAME>\n",
            ),
            (
                "utsuwa services describe --api http://x",
                "Usage: utsuwa services describe [OPTIONS] <NAME>\n",
            ),
            (
                "utsuwa --api http://x --nonsense",
                "Usage: utsuwa [OPTIONS] <COMMAND>\n",
            ),
        ] {
            let words = || line.split(' ').map(str::to_owned);
            let error = Cli::try_parse_from(words()).unwrap_err();
            let text = with_plain_usage(error, Cli::command(), words()).to_string();
            assert!(text.contains(usage), "{text}");
            assert!(!text.contains("--api <URL>"), "{text}");
        }
    }
}
