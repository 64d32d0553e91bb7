//! Messages in files: `tests/smuggling/*.txt`. Their heads say how they are written.

use std::path::Path;

/// One message and how it must be read.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// Takes the place of `###`.
    pub(crate) number: usize,
    /// Over HTTP/1.1: all of it. Over HTTP/2: the body.
    pub(crate) bytes: Vec<u8>,
    /// Over HTTP/2.
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) end: End,
}

/// A request as an app sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) body: Vec<u8>,
}

/// How a connection goes on after what the app has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Open,
    Closed,
    /// With this status, or with any that says no.
    Refused(Option<u16>),
}

/// The messages of one file.
pub(crate) fn read(file: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/smuggling")
        .join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines() {
        let Some((mark, rest)) = line.split_once(' ') else {
            continue;
        };
        if mark == "==" {
            cases.push(Case {
                name: rest.to_owned(),
                number: 100 + cases.len(),
                bytes: Vec::new(),
                fields: Vec::new(),
                seen: Vec::new(),
                end: End::Open,
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            continue;
        };
        let rest = rest.replace("###", &case.number.to_string());
        match mark {
            ">" => case.bytes.extend(unescape(&rest)),
            "-" => {
                let (name, value) = rest.split_once(" => ").unwrap_or_else(|| panic!("{line}"));
                case.fields.push((unescape(name), unescape(value)));
            }
            "=" => expect(case, &rest),
            _ => {}
        }
    }
    cases
}

fn expect(case: &mut Case, text: &str) {
    let mut words = text.splitn(3, ' ');
    let first = words.next().unwrap();
    match first {
        "open" => case.end = End::Open,
        "closed" => case.end = End::Closed,
        "refused" => case.end = End::Refused(words.next().map(|status| status.parse().unwrap())),
        method => case.seen.push(Seen {
            method: method.to_owned(),
            target: words.next().unwrap().to_owned(),
            body: unescape(words.next().unwrap_or_default()),
        }),
    }
}

pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.as_bytes());
        let (kind, after) = after.split_at(1);
        rest = after;
        match kind {
            "r" => bytes.push(b'\r'),
            "n" => bytes.push(b'\n'),
            "t" => bytes.push(b'\t'),
            "0" => bytes.push(0),
            "\\" => bytes.push(b'\\'),
            "x" => {
                let (digits, after) = rest.split_at(2);
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = after;
            }
            "(" => {
                let (inside, after) = rest.split_once(')').unwrap();
                let (what, times) = inside.split_once('*').unwrap();
                bytes.extend(what.repeat(times.parse().unwrap()).as_bytes());
                rest = after;
            }
            other => panic!("no such escape: {other:?} in {text:?}"),
        }
    }
    bytes.extend(rest.as_bytes());
    bytes
}
