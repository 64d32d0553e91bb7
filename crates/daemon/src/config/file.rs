//! The configuration file: from TOML to the texts of options, each with its line. What can't be read is told with its line, too.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::DeValue;

use super::options::{OPTIONS, OptionDoc, find};
use super::{ConfigError, Problem};

pub(super) fn split_list(option: &OptionDoc, value: &str) -> Vec<String> {
    if option.list {
        value
            .split(',')
            .map(str::trim)
            .filter(|v| !v.is_empty())
            .map(str::to_owned)
            .collect()
    } else {
        vec![value.to_owned()]
    }
}

/// An option of a file: its values and its line.
type Given = (&'static OptionDoc, Vec<String>, usize);

/// The options in a TOML file, and what is wrong with it apart from their values.
pub(super) fn read(path: &Path) -> Result<(Vec<Given>, Vec<Problem>), ConfigError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError(vec![format!("{shown}: read the configuration file: {e}")]))?;
    // What can't be read as TOML hides none of the rest.
    let (document, broken) = toml::de::DeTable::parse_recoverable(&text);
    // One slip may break several rules of TOML; the first word about a line is the one that helps.
    let mut told: BTreeMap<usize, &str> = BTreeMap::new();
    for error in &broken {
        let line = error.span().map_or(1, |span| line_of(&text, span.start));
        told.entry(line).or_insert_with(|| error.message());
    }
    let mut problems: Vec<Problem> = Vec::new();
    let mut wrong = |line: usize, why: String| {
        problems.push((Some(line), format!("{shown}, line {line}: {why}")));
    };
    for (line, message) in &told {
        wrong(*line, format!("is not TOML: {message}"));
    }
    let mut values: Vec<Given> = Vec::new();
    for (key, value) in document.get_ref() {
        let line = line_of(&text, key.span().start);
        // What was made of a line that is no TOML is neither a name nor a value.
        if told.contains_key(&line) {
            continue;
        }
        let name = key.get_ref().as_ref();
        let Some(option) = find(name) else {
            let meant = crate::cli::nearest(name, OPTIONS.iter().map(|o| o.name));
            let meant = meant.map_or_else(String::new, |name| format!("did you mean {name}? "));
            let why = format!("{name}: no such option; {meant}`utsuwa config show` lists them");
            wrong(line, why);
            continue;
        };
        // TOML knows only one spelling.
        let twice = |(given, _, _): &&Given| given.name == option.name;
        if let Some((_, _, other)) = values.iter().find(twice) {
            let (first, last) = (line.min(*other), line.max(*other));
            let name = option.name;
            let why = format!("{name}: is given in line {first}, too; remove one of the two");
            wrong(last, why);
            continue;
        }
        match scalars(option, value.get_ref()) {
            Some(list) => values.push((option, list, line)),
            None => {
                let must = match option.list {
                    true => "a list of strings",
                    false => "a string, number or boolean",
                };
                wrong(line, format!("{name}: must be {must}"));
            }
        }
    }
    if let Some((line, message)) = told.first_key_value()
        && values.is_empty()
        && told.len() > SLIPS
    {
        let more = problems.len() - 1;
        let why = format!(
            "{shown}: is no configuration file: line {line} is not TOML: {message} (and {more} more problems)"
        );
        problems = vec![(Some(*line), why)];
    }
    Ok((values, problems))
}

/// More, with no option between them, are no slips: it is a file of another kind.
const SLIPS: usize = 4;

pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.get(..at)
        .map_or(1, |before| before.matches('\n').count() + 1)
}

fn scalars(option: &OptionDoc, value: &DeValue<'_>) -> Option<Vec<String>> {
    let scalar = |v: &DeValue<'_>| match v {
        DeValue::String(s) => Some(s.to_string()),
        DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix())
            .ok()
            .map(|i| i.to_string()),
        DeValue::Boolean(b) => Some(b.to_string()),
        _ => None,
    };
    match value {
        DeValue::Array(items) if option.list => {
            items.iter().map(|item| scalar(item.get_ref())).collect()
        }
        DeValue::Array(_) => None,
        single if option.list => scalar(single).map(|s| split_list(option, &s)),
        single => scalar(single).map(|s| vec![s]),
    }
}
