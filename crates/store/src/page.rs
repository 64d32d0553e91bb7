//! Pages of a list. The token names the last row that was given out, so that rows made or removed meanwhile neither repeat nor
//! hide others; it also names the list, because a token of another list would skip rows silently.

use crate::StoreError;

/// Which part of a list is wanted. `size` 0 means everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub size: usize,
    pub token: Option<String>,
}

impl Page {
    /// The whole list.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }
}

/// One page and the token of the next, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    pub items: Vec<T>,
    pub next: Option<String>,
}

/// Where a page begins: after the row with this time and key (rows are newest first, then by key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct After {
    pub(crate) time: i64,
    pub(crate) key: String,
}

impl After {
    /// Before every row.
    pub(crate) fn start() -> Self {
        Self {
            time: i64::MAX,
            key: String::new(),
        }
    }

    /// What `page`'s token says about the list named `list`.
    pub(crate) fn of(page: &Page, list: &str) -> Result<Self, StoreError> {
        let Some(token) = page.token.as_deref().filter(|t| !t.is_empty()) else {
            return Ok(Self::start());
        };
        let text = unhex(token).ok_or(StoreError::BadPageToken)?;
        let mut parts = text.splitn(3, '\n');
        match (parts.next(), parts.next().map(str::parse), parts.next()) {
            (Some(of), Some(Ok(time)), Some(key)) if of == list => Ok(Self {
                time,
                key: key.to_owned(),
            }),
            _ => Err(StoreError::BadPageToken),
        }
    }

    fn token(&self, list: &str) -> String {
        format!("{list}\n{}\n{}", self.time, self.key)
            .bytes()
            .map(|b| format!("{b:02x}"))
            .collect()
    }
}

/// How many rows to ask for: one more than wanted tells whether there is a next page.
pub(crate) fn limit(page: &Page) -> i64 {
    if page.size == 0 {
        -1
    } else {
        i64::try_from(page.size).map_or(-1, |n| n.saturating_add(1))
    }
}

/// Reads a page from `rows` and makes the token. The row asked for too many is not read: to know that it is there is enough,
/// and a page of a long list then costs what the whole of a short one does.
pub(crate) fn fill<T>(
    rows: &mut rusqlite::Rows<'_>,
    page: &Page,
    list: &str,
    read: impl Fn(&rusqlite::Row<'_>) -> Result<(After, T), StoreError>,
) -> Result<Listing<T>, StoreError> {
    let (mut items, mut last) = (Vec::with_capacity(page.size.min(1000)), None);
    while let Some(row) = rows.next()? {
        if page.size != 0 && items.len() == page.size {
            let next = last.map(|last: After| last.token(list));
            return Ok(Listing { items, next });
        }
        let (after, item) = read(row)?;
        items.push(item);
        last = Some(after);
    }
    Ok(Listing { items, next: None })
}

fn unhex(token: &str) -> Option<String> {
    if !token.len().is_multiple_of(2) || !token.is_ascii() {
        return None;
    }
    let bytes = (0..token.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&token[i..i + 2], 16));
    String::from_utf8(bytes.collect::<Result<Vec<u8>, _>>().ok()?).ok()
}
