//! Reading JSON with its path, so that every problem names the field it is in. Tolerant where `gcloud` and YAML are loose:
//! numbers and booleans may be strings, `null` is absent.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use utsuwa_model::Violations;

/// A JSON object, where it stands, and where problems are noted.
#[derive(Debug)]
pub(super) struct Object<'a> {
    map: &'a Map<String, Value>,
    path: String,
    found: &'a RefCell<Violations>,
    seen: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Object<'a> {
    /// The object that `value` is; noted as a problem if it is something else.
    pub(super) fn new(
        value: &'a Value,
        path: String,
        found: &'a RefCell<Violations>,
    ) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self {
                map,
                path,
                found,
                seen: RefCell::default(),
            }),
            _ => {
                found.borrow_mut().add(path, "must be an object");
                None
            }
        }
    }

    /// Where `key` stands.
    pub(super) fn at(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Notes a problem with `key`.
    pub(super) fn wrong(&self, key: &str, problem: impl Into<String>) {
        self.found.borrow_mut().add(self.at(key), problem);
    }

    /// The value of `key` unless absent or `null`.
    pub(super) fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.seen.borrow_mut().insert(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn text(&self, key: &'static str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            _ => {
                self.wrong(key, "must be text");
                None
            }
        }
    }

    /// Text that is there and not empty.
    pub(super) fn word(&self, key: &'static str) -> Option<String> {
        self.text(key).filter(|t| !t.is_empty())
    }

    pub(super) fn flag(&self, key: &'static str) -> Option<bool> {
        let value = self.get(key)?;
        let flag = match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) => parse_flag(text),
            _ => None,
        };
        if flag.is_none() {
            self.wrong(key, "must be true or false");
        }
        flag
    }

    /// A whole number from 0 to `most`.
    pub(super) fn number(&self, key: &'static str, most: u32) -> Option<u32> {
        let value = self.get(key)?;
        let number = match value {
            Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) => match u32::try_from(number) {
                Ok(number) if number <= most => Some(number),
                _ => {
                    self.wrong(key, format!("expected 0 <= {number} <= {most}"));
                    None
                }
            },
            None => {
                self.wrong(key, "must be a whole number");
                None
            }
        }
    }

    pub(super) fn object(&self, key: &'static str) -> Option<Object<'a>> {
        Object::new(self.get(key)?, self.at(key), self.found)
    }

    pub(super) fn objects(&self, key: &'static str) -> Vec<Object<'a>> {
        let items = self.list(key).iter().enumerate();
        items
            .filter_map(|(i, item)| Object::new(item, format!("{}[{i}]", self.at(key)), self.found))
            .collect()
    }

    pub(super) fn texts(&self, key: &'static str) -> Vec<String> {
        let mut all = Vec::new();
        for (index, item) in self.list(key).iter().enumerate() {
            match scalar(item) {
                Some(text) => all.push(text),
                None => self.wrong(&format!("{key}[{index}]"), "must be text"),
            }
        }
        all
    }

    /// A map of text to text, such as labels.
    pub(super) fn map(&self, key: &'static str) -> BTreeMap<String, String> {
        let Some(value) = self.get(key) else {
            return BTreeMap::new();
        };
        let Value::Object(map) = value else {
            self.wrong(key, "must be an object");
            return BTreeMap::new();
        };
        let mut all = BTreeMap::new();
        for (name, value) in map {
            match scalar(value) {
                Some(text) => drop(all.insert(name.clone(), text)),
                None => self.wrong(&format!("{key}[{name}]"), "must be text"),
            }
        }
        all
    }

    fn list(&self, key: &'static str) -> &'a [Value] {
        match self.get(key) {
            None => &[],
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.wrong(key, "must be a list");
                &[]
            }
        }
    }

    /// Marks keys that have no effect here and may stand.
    pub(super) fn allow(&self, keys: &[&'static str]) {
        self.seen.borrow_mut().extend(keys);
    }

    /// Notes every key that nobody asked for and that says something. Nothing is dropped silently.
    pub(super) fn forbid_rest(&self) {
        let seen = self.seen.borrow();
        for (key, value) in self.map {
            if !seen.contains(key.as_str()) && !is_nothing(value) {
                self.wrong(key, format!("must not set the field(s): {key}. It is unknown, or not built in this server yet"));
            }
        }
    }
}

/// `"True"`, `"false"` and the like.
pub(super) fn parse_flag(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null => Some(String::new()),
        _ => None,
    }
}

/// `3.0` is a whole number, too.
fn whole(number: f64) -> Option<i64> {
    if number.fract() == 0.0 {
        format!("{number:.0}").parse().ok()
    } else {
        None
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}
