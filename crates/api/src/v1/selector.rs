//! Label selectors: `k=v`, `k==v`, `k!=v`, `k in (a,b)`, `k notin (a,b)`, `k`, `!k`, joined by commas that all must hold.

use std::collections::BTreeMap;

use crate::ApiError;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

/// A parsed selector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<(String, Test)>);

impl Selector {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let mut tests = Vec::new();
        for part in split(text) {
            let part = part.trim();
            if !part.is_empty() {
                let test = test(part).ok_or_else(|| {
                    ApiError::invalid(
                        "labelSelector",
                        format!(
                            "{part:?} is not a requirement: write k=v, k!=v, k in (a,b), k or !k"
                        ),
                    )
                })?;
                tests.push(test);
            }
        }
        Ok(Self(tests))
    }

    /// The one value that `key` must have, if the selector says so.
    pub(super) fn equals(&self, key: &str) -> Option<&str> {
        self.0.iter().find_map(|(k, test)| match test {
            Test::In(values) if k == key && values.len() == 1 => values.first().map(String::as_str),
            _ => None,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, test)| {
            let value = labels.get(key);
            match test {
                Test::In(values) => value.is_some_and(|v| values.contains(v)),
                Test::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
            }
        })
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn test(part: &str) -> Option<(String, Test)> {
    let found = |key: &str, test| key_is_fine(key).then(|| (key.trim().to_owned(), test));
    if let Some((key, value)) = part.split_once("!=") {
        return found(key, Test::NotIn(vec![value.trim().to_owned()]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return found(key, Test::In(vec![value.trim().to_owned()]));
    }
    if let Some(list) = part.strip_suffix(')') {
        let (head, values) = list.split_once('(')?;
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        let (key, operator) = head.trim().rsplit_once(char::is_whitespace)?;
        return match operator {
            "in" => found(key, Test::In(values)),
            "notin" => found(key, Test::NotIn(values)),
            _ => None,
        };
    }
    match part.strip_prefix('!') {
        Some(key) => found(key, Test::Missing),
        None => found(part, Test::Exists),
    }
}

fn key_is_fine(key: &str) -> bool {
    let key = key.trim();
    !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_all_hold_or_not() {
        let labels: BTreeMap<String, String> = [
            ("app".to_owned(), "a".to_owned()),
            ("client.knative.dev/nonce".to_owned(), "x".to_owned()),
        ]
        .into();
        for (text, expected) in [
            ("", true),
            ("app=a", true),
            ("app = a , client.knative.dev/nonce == x", true),
            ("app=b", false),
            ("app!=b,app", true),
            ("app in (b, a)", true),
            ("app notin (b,a)", false),
            ("!app", false),
            ("!other", true),
            ("other!=1", true),
        ] {
            assert_eq!(
                Selector::parse(text).expect("fine").matches(&labels),
                expected,
                "{text}"
            );
        }
        for bad in ["=a", "a b", "app in b", "a in (b", "%=1"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
        let selector = Selector::parse("client.knative.dev/nonce = x").expect("fine");
        assert_eq!(selector.equals("client.knative.dev/nonce"), Some("x"));
    }
}
