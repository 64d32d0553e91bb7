//! Path templates of `google.api.http`: `/v2/{name=projects/*/locations/*/services/*}:getIamPolicy`.
//!
//! Grammar: segments divided by `/`; a segment is a literal, `*` (one segment), `**` (the rest), or a variable
//! `{field.path}` (one segment) or `{field.path=SEGMENTS}`; a verb may follow the last segment after a colon.
//!
//! Invariants: a template without a verb never matches a path whose last segment contains a colon (that path asks for another
//! method); `**` stands last; values are percent-decoded, and a decoded value of `*` never contains `/`.

use std::fmt;

/// A template that can't be read. The text says where and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path template {template:?}: {why}")]
pub struct TemplateError {
    pub template: String,
    pub why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One,
    Rest,
}

/// Where a variable's value lies: segments `from..to`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    field: String,
    from: usize,
    to: usize,
}

/// A template, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    segments: Vec<Segment>,
    variables: Vec<Variable>,
    verb: Option<String>,
}

/// The values of a template's variables: field path and text.
pub type Bindings = Vec<(String, String)>;

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// When it breaks the grammar.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let error = |why| TemplateError {
            template: text.to_owned(),
            why,
        };
        let mut rest = text
            .strip_prefix('/')
            .ok_or_else(|| error("must start with /"))?;
        let mut template = Self {
            text: text.to_owned(),
            segments: Vec::new(),
            variables: Vec::new(),
            verb: None,
        };
        loop {
            if let Some(inside) = rest.strip_prefix('{') {
                let (body, after) = inside
                    .split_once('}')
                    .ok_or_else(|| error("a { is never closed"))?;
                let (field, pattern) = body.split_once('=').unwrap_or((body, "*"));
                if field.is_empty()
                    || !field
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
                {
                    return Err(error("a variable must be a field path"));
                }
                let from = template.segments.len();
                for part in pattern.split('/') {
                    template.segments.push(
                        segment(part)
                            .ok_or_else(|| error("a variable's segment is empty or malformed"))?,
                    );
                }
                template.variables.push(Variable {
                    field: field.to_owned(),
                    from,
                    to: template.segments.len(),
                });
                rest = after;
            } else {
                let end = rest.find(['/', ':']).unwrap_or(rest.len());
                template.segments.push(
                    segment(&rest[..end])
                        .ok_or_else(|| error("a segment is empty or malformed"))?,
                );
                rest = &rest[end..];
            }
            if rest.is_empty() {
                break;
            } else if let Some(verb) = rest.strip_prefix(':') {
                if verb.is_empty() || !verb.bytes().all(|b| b.is_ascii_alphanumeric()) {
                    return Err(error("the verb must be a word"));
                }
                template.verb = Some(verb.to_owned());
                break;
            }
            rest = rest
                .strip_prefix('/')
                .ok_or_else(|| error("after a variable must come / or :"))?;
        }
        if template
            .segments
            .iter()
            .rev()
            .skip(1)
            .any(|s| *s == Segment::Rest)
        {
            return Err(error("** must stand last"));
        }
        Ok(template)
    }

    /// The variables' values if `path` fits, percent-decoded; `None` if it doesn't fit or is badly encoded.
    #[must_use]
    pub fn matches(&self, path: &str) -> Option<Bindings> {
        let mut path = path.strip_prefix('/')?;
        let last = path.rfind('/').map_or(0, |at| at + 1);
        match (&self.verb, path[last..].rfind(':')) {
            (Some(verb), Some(at)) if path[last + at + 1..] == **verb => path = &path[..last + at],
            (None, None) => {}
            _ => return None,
        }
        let parts: Vec<&str> = path.split('/').collect();
        let open = self.segments.last() == Some(&Segment::Rest);
        if parts.len() < self.segments.len() || (!open && parts.len() > self.segments.len()) {
            return None;
        }
        let mut decoded = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            let text = percent_decode(part)?;
            match self.segments.get(index.min(self.segments.len() - 1))? {
                Segment::Literal(literal) if *literal != text => return None,
                Segment::One | Segment::Rest if text.is_empty() || text.contains('/') => {
                    return None;
                }
                _ => decoded.push(text),
            }
        }
        Some(
            self.variables
                .iter()
                .map(|v| {
                    let to = if open && v.to == self.segments.len() {
                        decoded.len()
                    } else {
                        v.to
                    };
                    (v.field.clone(), decoded[v.from..to].join("/"))
                })
                .collect(),
        )
    }

    /// The path with `bindings` put in: the reverse of [`Template::matches`]. `None` when a value is missing or doesn't fit.
    #[must_use]
    pub fn expand(&self, bindings: &Bindings) -> Option<String> {
        let mut path = String::new();
        let mut index = 0;
        while index < self.segments.len() {
            path.push('/');
            if let Some(variable) = self.variables.iter().find(|v| v.from == index) {
                let (_, value) = bindings
                    .iter()
                    .find(|(field, _)| *field == variable.field)?;
                path.push_str(
                    &value
                        .split('/')
                        .map(percent_encode)
                        .collect::<Vec<_>>()
                        .join("/"),
                );
                index = variable.to;
            } else if let Segment::Literal(literal) = &self.segments[index] {
                path.push_str(literal);
                index += 1;
            } else {
                return None;
            }
        }
        if let Some(verb) = &self.verb {
            path.push(':');
            path.push_str(verb);
        }
        (self.matches(&path).as_ref() == Some(bindings)).then_some(path)
    }

    /// The fields that the path gives.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(|v| v.field.as_str())
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn segment(text: &str) -> Option<Segment> {
    match text {
        "*" => Some(Segment::One),
        "**" => Some(Segment::Rest),
        "" => None,
        literal if literal.contains(['*', '{', '}', '=']) => None,
        literal => Some(Segment::Literal(literal.to_owned())),
    }
}

/// Decodes `%XX`; `None` when malformed or not UTF-8.
#[must_use]
pub fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let [high, low, after @ ..] = after else {
                return None;
            };
            let digit = |b: u8| {
                char::from(b)
                    .to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
            };
            bytes.push(digit(*high)? * 16 + digit(*low)?);
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Encodes what isn't unreserved (RFC 3986) for use as one path segment.
#[must_use]
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
