//! The query part of a v1 request.

use utsuwa_store::Page;

use super::selector::Selector;
use crate::ApiError;

/// Most items of one page, whatever is asked for.
const MOST: usize = 1000;

/// Options of all methods; what has no effect here (`fieldSelector`, `includeUninitialized`, `$`-options) is accepted.
#[derive(Debug, Default)]
pub(super) struct Query {
    pub(super) selector: Selector,
    pub(super) page: Page,
    /// `dryRun=all`: check everything, write nothing.
    pub(super) dry_run: bool,
}

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let mut read = Self::default();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|p| !p.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)
                .ok_or_else(|| ApiError::invalid(name, "is not valid text in a URL"))?;
            match name {
                "labelSelector" => read.selector = Selector::parse(&value)?,
                "limit" | "pageSize" if !value.is_empty() => {
                    let size: usize = value.parse().map_err(|_| {
                        ApiError::invalid(name, format!("{value:?} is not a whole number from 0"))
                    })?;
                    read.page.size = size.min(MOST);
                }
                "continue" | "pageToken" => read.page.token = Some(value).filter(|v| !v.is_empty()),
                "dryRun" if value.eq_ignore_ascii_case("all") => read.dry_run = true,
                "dryRun" if !value.is_empty() => {
                    return Err(ApiError::invalid(
                        "dryRun",
                        format!("{value:?} is not known: write all"),
                    ));
                }
                "watch" if value.eq_ignore_ascii_case("true") => {
                    return Err(ApiError::unimplemented(
                        "watch is not supported: read again, or wait for the operation.",
                    ));
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                out.push(u8::from_str_radix(text.get(at + 1..at + 3)?, 16).ok()?);
                at += 2;
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).ok()
}
