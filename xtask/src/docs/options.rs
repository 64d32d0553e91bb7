//! The page of the configuration, from the option table in `crates/daemon/src/config/options.rs` and the flags that
//! `crates/daemon/src/cli/mod.rs` joins to it. Both are read as text: a chore must not need the whole server compiled.

use std::path::Path;

const TABLE: &str = "crates/daemon/src/config/options.rs";
const FLAGS: &str = "crates/daemon/src/cli/mod.rs";

/// One row of the option table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: String,
    default: String,
    meaning: String,
    list: bool,
}

pub(super) fn page(root: &Path) -> Result<String, String> {
    let table = read(root, TABLE)?;
    let cli = read(root, FLAGS)?;
    let rows = rows(&table)?;
    let since = between(&table, "since: \"", "\"").unwrap_or("0.1");
    let mut page = format!(
        "# Configuration\n\n\
         Made by `cargo xtask docs` from the option table of the program; don't edit.\n\n\
         An option is taken from, later ones winning: its default, one TOML file (`--config FILE`, or `/etc/utsuwa/config.toml` if\n\
         it exists), the environment, a flag of `utsuwa up`. Everything is checked before any socket opens, and all problems are\n\
         told at once: `utsuwa config check`. `utsuwa config show` prints every value and where it came from.\n\n\
         In the file, keys are the option's name (`listen-api = \"localhost:8787\"`); lists are arrays of strings. In the\n\
         environment, lists are separated by commas; as a flag, an option that is a list is given once per item.\n\n\
         All options exist since version {since}.\n\n\
         | Option | Default | Environment | Flag | Meaning |\n\
         | --- | --- | --- | --- | --- |\n"
    );
    for row in &rows {
        let default = if row.default.is_empty() {
            "none".to_owned()
        } else {
            format!("`{}`", row.default)
        };
        let variable = format!("UTSUWA_{}", row.name.to_uppercase().replace('-', "_"));
        let flag = match flag(&cli, &row.name) {
            Some(flag) => format!("`--{flag}`"),
            None => "none".to_owned(),
        };
        let kind = if row.list { " A list." } else { "" };
        page.push_str(&format!(
            "| `{}` | {default} | `{variable}` | {flag} | {}{kind} |\n",
            row.name,
            row.meaning.replace('|', "\\|")
        ));
    }
    page.push_str(
        "\n`project`, `region` and `domain` are kept in the data directory at its first start. Another value later is refused.\n\
         The server reads its configuration once, at its start: after a change, restart it (no request is refused by that).\n",
    );
    Ok(page)
}

fn read(root: &Path, path: &str) -> Result<String, String> {
    std::fs::read_to_string(root.join(path)).map_err(|e| format!("read {path}: {e}"))
}

/// The calls of `one` and `many` behind the table's beginning.
fn rows(source: &str) -> Result<Vec<Row>, String> {
    let start = source
        .find("OPTIONS: &[OptionDoc] = &[")
        .ok_or_else(|| format!("{TABLE}: the table OPTIONS is not there any more"))?;
    let (_, body) = source.split_at(start);
    let body = body.split("\n];").next().unwrap_or(body);
    let mut rows = Vec::new();
    for line in body.lines().skip(1).map(str::trim) {
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        let list = line.starts_with("many(");
        let texts = literals(line);
        match (list || line.starts_with("one("), texts.as_slice()) {
            (true, [name, default, meaning]) => rows.push(Row {
                name: name.clone(),
                default: default.clone(),
                meaning: meaning.clone(),
                list,
            }),
            _ => {
                return Err(format!(
                    "{TABLE}: this row can't be read; write one(\"name\", \"default\", \"meaning\") on a line: {line}"
                ));
            }
        }
    }
    if rows.is_empty() {
        return Err(format!("{TABLE}: the table is empty"));
    }
    Ok(rows)
}

/// The string literals of a line.
fn literals(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut current: Option<String> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (&mut current, letter) {
            (None, '"') => current = Some(String::new()),
            (None, _) => {}
            (Some(_), '"') => found.extend(current.take()),
            (Some(text), '\\') => text.extend(letters.next()),
            (Some(text), other) => text.push(other),
        }
    }
    found
}

/// The flag that sets an option: clap's name of the field that `ServerArgs::given` reads for it.
fn flag(cli: &str, option: &str) -> Option<String> {
    for holder in ["self", "client"] {
        let field = between(cli, &format!("(\"{option}\", &{holder}."), ")");
        if let Some(field) = field {
            return Some(field.replace('_', "-"));
        }
    }
    None
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split(after).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_unreadable_ones_refused() {
        let table = "pub(crate) const OPTIONS: &[OptionDoc] = &[\n    one(\"a-b\", \"1\", \"Says \\\"x\\\".\"),\n    many(\"c\", \"\", \"More.\"),\n];\n";
        let read = rows(table).ok();
        let names: Vec<_> = read
            .iter()
            .flatten()
            .map(|r| (r.name.as_str(), r.list, r.meaning.as_str()))
            .collect();
        assert_eq!(names, [("a-b", false, "Says \"x\"."), ("c", true, "More.")]);
        assert!(rows("OPTIONS: &[OptionDoc] = &[\n  OptionDoc { name: \"x\" },\n];").is_err());
        assert!(rows("nothing").is_err());
    }

    #[test]
    fn flags_are_those_of_the_command_line() {
        let cli = "one(\"data-dir\", &self.data_dir); (\"image-rewrites\", &self.image_rewrite), one(\"project\", &client.project)";
        assert_eq!(flag(cli, "data-dir").as_deref(), Some("data-dir"));
        assert_eq!(
            flag(cli, "image-rewrites").as_deref(),
            Some("image-rewrite")
        );
        assert_eq!(flag(cli, "project").as_deref(), Some("project"));
        assert_eq!(flag(cli, "log-budget"), None);
    }
}
