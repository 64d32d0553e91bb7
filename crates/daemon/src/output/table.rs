//! How a listing looks: whole words within a terminal, whole rows elsewhere.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde_json::Value;

use super::Column;

/// Remarks stand this far in below their row.
const INDENT: usize = 4;
/// A last column that is narrower is no help: its text would be a tower of words.
const NARROWEST: usize = 30;
/// Around the text of a column.
const PADDING: usize = 2;

/// Columns of the terminal on stdout; `None`: there is none.
pub(super) fn terminal() -> Option<usize> {
    Table::new().width().map(usize::from)
}

/// The lines of a listing, `width` columns wide where that is given.
pub(super) fn lines(
    items: &[Value],
    columns: &[Column<'_>],
    remark: &dyn Fn(&Value) -> String,
    width: Option<usize>,
) -> Vec<String> {
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| columns.iter().map(|(_, cell)| cell(item)).collect())
        .collect();
    let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
    let remarks: Vec<String> = items.iter().map(remark).collect();
    let Some(width) = width else {
        return table(&heads, &joined(rows, &remarks), None);
    };
    if remarks.iter().all(String::is_empty) {
        return table(&heads, &rows, Some(width));
    }
    // Nothing wraps in it, so that each item has one line.
    let mut lines = Vec::new();
    for (number, row) in table(&heads, &rows, None).into_iter().enumerate() {
        lines.push(row);
        let below = number.checked_sub(1).and_then(|item| remarks.get(item));
        let below = below.filter(|text| !text.is_empty());
        lines.extend(below.into_iter().flat_map(|text| indented(text, width)));
    }
    lines
}

/// Each row with its remark in the last column.
fn joined(mut rows: Vec<Vec<String>>, remarks: &[String]) -> Vec<Vec<String>> {
    for (row, remark) in rows.iter_mut().zip(remarks) {
        if let Some(last) = row.last_mut().filter(|_| !remark.is_empty()) {
            last.push_str(": ");
            last.push_str(remark);
        }
    }
    rows
}

fn table(heads: &[&str], rows: &[Vec<String>], width: Option<usize>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads);
    for row in rows {
        table.add_row(row);
    }
    if let Some(last) = width.and_then(|width| last_column(heads, rows, width)) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        for (number, column) in table.column_iter_mut().enumerate() {
            column.set_constraint(match number + 1 == heads.len() {
                true => ColumnConstraint::UpperBoundary(Width::Fixed(last)),
                false => ColumnConstraint::ContentWidth,
            });
        }
        table.set_width(
            width
                .and_then(|w| u16::try_from(w).ok())
                .unwrap_or(u16::MAX),
        );
    }
    table.trim_fmt().lines().map(str::to_owned).collect()
}

/// How wide the last column has to be for the table to fit; `None`: it fits, or can't sensibly.
fn last_column(heads: &[&str], rows: &[Vec<String>], width: usize) -> Option<u16> {
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(heads.get(column).map_or(0, |head| head.chars().count())) + PADDING
    };
    let last = heads.len().checked_sub(1)?;
    let left = width.checked_sub((0..last).map(widest).sum())?;
    let fits = widest(last) <= left;
    (!fits && left >= NARROWEST).then(|| u16::try_from(left).unwrap_or(u16::MAX))
}

/// `text` at whole words, below a row.
fn indented(text: &str, width: usize) -> Vec<String> {
    let room = width.saturating_sub(INDENT).max(NARROWEST);
    let mut lines: Vec<String> = Vec::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let more = word.chars().count();
        match lines.last_mut().filter(|_| length + 1 + more <= room) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
                length += 1 + more;
            }
            None => {
                lines.push(format!("{:INDENT$}{word}", ""));
                length = more;
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WHY: &str = "Image 'registry.example.com/team/api:1.4' not found. Its registry knows no such repository or tag: check how both are spelt, \
                       and that it was pushed.";

    fn listed(width: Option<usize>) -> Vec<String> {
        let items = [
            json!({"name": "good", "state": "ready"}),
            json!({"name": "bad", "state": "serves nothing", "why": WHY}),
        ];
        let text = |key: &'static str| move |item: &Value| super::super::text_at(item, key);
        let (name, state, why) = (text("name"), text("state"), text("why"));
        lines(
            &items,
            &[("SERVICE", &name), ("STATE", &state)],
            &why,
            width,
        )
    }

    #[test]
    fn a_row_is_a_line_with_everything_away_from_a_terminal() {
        let lines = listed(None);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[2].ends_with(&format!("serves nothing: {WHY}")));
    }

    #[test]
    fn a_terminal_gets_whole_words_that_fit() {
        for width in [40, 80, 200] {
            let lines = listed(Some(width));
            assert!(
                lines.iter().all(|line| line.chars().count() <= width),
                "{lines:?}"
            );
            let said: Vec<&str> = lines[3..].iter().map(|line| line.trim()).collect();
            assert_eq!(said.join(" "), WHY);
        }
    }

    #[test]
    fn a_long_last_column_wraps_where_there_is_room_for_it() {
        let items = [json!({"option": "domain", "meaning": WHY})];
        let text = |key: &'static str| move |item: &Value| super::super::text_at(item, key);
        let (option, meaning) = (text("option"), text("meaning"));
        let columns: [Column<'_>; 2] = [("OPTION", &option), ("MEANING", &meaning)];
        let lines = lines(&items, &columns, &|_| String::new(), Some(70));
        assert!(lines.len() > 3, "{lines:?}");
        assert!(
            lines.iter().all(|line| line.chars().count() <= 70),
            "{lines:?}"
        );
        let words: Vec<&str> = lines[1..]
            .iter()
            .flat_map(|l| l.split_whitespace())
            .collect();
        assert_eq!(words[1..].join(" "), WHY);
    }
}
