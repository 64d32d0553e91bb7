//! Printing results: data on stdout in the format asked for, everything else on stderr.

mod fields;
mod table;

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::client::Failure;

/// `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
    /// Dotted path into each item: `value(status.url)`.
    Value(String),
}

impl std::str::FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            _ => text
                .strip_prefix("value(")
                .and_then(|t| t.strip_suffix(')'))
                .map(|path| Self::Value(path.to_owned()))
                .ok_or_else(|| {
                    "must be json, yaml, table or value(PATH), for example value(uri)".to_owned()
                }),
        }
    }
}

/// Why stdout took a line no more: the first time.
static REFUSED: OnceLock<std::io::Error> = OnceLock::new();

/// Writes one line to stdout. What is being done is done to its end even where that fails; [`outcome`] tells.
pub(crate) fn line(text: &str) {
    written(writeln!(std::io::stdout(), "{text}"));
}

/// Takes note of how something was written to stdout.
pub(crate) fn written(result: std::io::Result<()>) {
    if let Err(error) = result {
        drop(REFUSED.set(error));
    }
}

/// Whether stdout takes no more lines: a command without an end of its own ends then.
pub(crate) fn is_unread() -> bool {
    REFUSED.get().is_some()
}

/// Whether all that was printed is where it was to go. A reader that went away (`| head`) has what it wanted.
///
/// # Errors
/// Something is missing there: the disk is full, say.
pub(crate) fn outcome() -> Result<(), Failure> {
    match REFUSED.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::failed(format!(
            "write to standard output: {error}; what was printed is not complete"
        ))),
        _ => Ok(()),
    }
}

/// Writes one line to stderr: progress, hints.
pub(crate) fn note(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Long enough that nobody is told who doesn't wait, short enough that nobody wonders.
const SILENCE: Duration = Duration::from_secs(1);

/// The outcome of `work`; says once what is waited for when it takes longer than a moment.
pub(crate) async fn waited<T>(what: &str, work: impl Future<Output = T>) -> T {
    told_after(SILENCE, &format!("waiting for {what}"), note, work).await
}

async fn told_after<T>(
    silence: Duration,
    text: &str,
    tell: impl FnOnce(&str),
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        outcome = &mut work => outcome,
        () = tokio::time::sleep(silence) => {
            tell(text);
            work.await
        }
    }
}

/// Asks on the terminal, the answer in the same line; anything but yes is no.
///
/// # Errors
/// Nothing can be read.
pub(crate) fn ask(question: &str) -> Result<bool, Failure> {
    let mut err = std::io::stderr();
    drop(write!(err, "{question} (y/N)? ").and_then(|()| err.flush()));
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| Failure::failed(format!("read the answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A column of a table: its head and how to get the cell from an item.
pub(crate) type Column<'a> = (&'a str, &'a dyn Fn(&Value) -> String);

/// Prints a listing.
///
/// # Errors
/// YAML that can't be written (never seen with JSON values).
pub(crate) fn items(
    format: &Format,
    items: &[Value],
    columns: &[Column<'_>],
) -> Result<(), Failure> {
    remarked(format, items, columns, &|_| String::new())
}

/// The same, with what is to be said of an item at the length it has: below its row on a terminal, in the last column elsewhere,
/// where a row is a line.
///
/// # Errors
/// As [`items`].
pub(crate) fn remarked(
    format: &Format,
    items: &[Value],
    columns: &[Column<'_>],
    remark: &dyn Fn(&Value) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table if items.is_empty() => {
            note("Listed 0 items.");
            Ok(())
        }
        Format::Table => {
            for text in table::lines(items, columns, remark, table::terminal()) {
                line(&text);
            }
            Ok(())
        }
        Format::Value(path) => {
            for item in items {
                line(&text_at(item, path));
            }
            if let Some(missing) = fields::missing(items, path) {
                note(&format!("note: {missing}"));
            }
            Ok(())
        }
        other => value(other, &Value::Array(items.to_vec())),
    }
}

/// Prints one value as JSON, YAML or by path.
///
/// # Errors
/// As [`items`].
pub(crate) fn value(format: &Format, value: &Value) -> Result<(), Failure> {
    match format {
        Format::Value(path) => {
            line(&text_at(value, path));
            if let Some(missing) = fields::missing(std::slice::from_ref(value), path) {
                note(&format!("note: {missing}"));
            }
        }
        Format::Yaml => {
            let text = serde_saphyr::to_string(value)
                .map_err(|e| Failure::failed(format!("write YAML: {e}")))?;
            line(text.trim_end());
        }
        Format::Json | Format::Table => {
            line(
                &serde_json::to_string_pretty(value)
                    .map_err(|e| Failure::failed(format!("write JSON: {e}")))?,
            );
        }
    }
    Ok(())
}

/// The text at a dotted path (`status.url`, `traffic.0.percent`); empty where there is nothing.
pub(crate) fn text_at(value: &Value, path: &str) -> String {
    let at = path.split('.').fold(value, step);
    match at {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One part of a path further.
fn step<'a>(at: &'a Value, part: &str) -> &'a Value {
    match part.parse::<usize>() {
        Ok(index) if at.is_array() => &at[index],
        _ => &at[part],
    }
}

/// A time of the API (RFC 3339, UTC) for people: to the second, as gcloud lists it. What is no time stays as it is.
pub(crate) fn moment(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// A size for people: kB below a megabyte, then MB with one decimal, rounded down.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 1_000_000 {
        format!("{} kB", bytes / 1000)
    } else {
        format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_finds_its_way() {
        let json = serde_json::json!({"a": {"b": ["x", {"c": 7}]}});
        assert_eq!(text_at(&json, "a.b.0"), "x");
        assert_eq!(text_at(&json, "a.b.1.c"), "7");
        assert_eq!(text_at(&json, "a.z.1"), "");
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_waits_is_told() {
        for (takes, told) in [(500, 0), (5_000, 1)] {
            let said = std::cell::RefCell::new(Vec::new());
            let work = tokio::time::sleep(Duration::from_millis(takes));
            let tell = |text: &str| said.borrow_mut().push(text.to_owned());
            told_after(SILENCE, "waiting for it", tell, work).await;
            assert_eq!(said.into_inner(), vec!["waiting for it"; told]);
        }
    }

    #[test]
    fn formats_are_read_and_others_refused() {
        assert_eq!("value(uri)".parse(), Ok(Format::Value("uri".to_owned())));
        assert!("xml".parse::<Format>().is_err());
    }
}
