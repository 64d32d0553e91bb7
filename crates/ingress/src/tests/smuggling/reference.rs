//! The strictest reading of an HTTP/1.1 connection, written to be read: no state between pieces, no speed, nothing shared with
//! the gate. What it does not find in the bytes, no app may get.

use super::corpus::Seen;
use super::recorder::find;

/// The requests in `bytes`, up to the first that is unfinished or can be doubted.
pub(crate) fn requests(mut bytes: &[u8]) -> Vec<Seen> {
    let mut all = Vec::new();
    loop {
        bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        let Some((seen, rest)) = one(bytes) else {
            return all;
        };
        all.push(seen);
        bytes = rest;
    }
}

fn one(bytes: &[u8]) -> Option<(Seen, &[u8])> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = &bytes[..end];
    let mut rest = &bytes[end + 4..];
    let mut lines = Vec::new();
    let mut left = head;
    while let Some(end) = find(left, b"\r\n") {
        lines.push(&left[..end]);
        left = &left[end + 2..];
    }
    lines.push(left);
    let control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    if lines.iter().any(|line| line.iter().any(control)) {
        return None;
    }
    let words: Vec<&[u8]> = lines[0].split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return None;
    };
    if method.is_empty()
        || !method.iter().all(|byte| is_token(*byte))
        || target.is_empty()
        || target.contains(&b'\t')
    {
        return None;
    }
    let old = match version {
        b"HTTP/1.0" => true,
        b"HTTP/1.1" => false,
        _ => return None,
    };
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    for line in &lines[1..] {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = &line[..colon];
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return None;
        }
        let value = line[colon + 1..].trim_ascii();
        match name.to_ascii_lowercase().as_slice() {
            b"content-length" => lengths.push(value),
            b"transfer-encoding" => codings.push(value.to_ascii_lowercase()),
            _ => {}
        }
    }
    let body = match (&lengths[..], &codings[..]) {
        ([], []) => Vec::new(),
        ([length], []) if length.iter().all(u8::is_ascii_digit) => {
            let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
            let body = rest.get(..length)?.to_vec();
            rest = &rest[length..];
            body
        }
        ([], [coding]) if coding == b"chunked" && !old => {
            let (body, after) = chunks(rest)?;
            rest = after;
            body
        }
        _ => return None,
    };
    let seen = Seen {
        method: String::from_utf8(method.to_vec()).ok()?,
        target: String::from_utf8_lossy(target).into_owned(),
        body,
    };
    Some((seen, rest))
}

fn chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = find(bytes, b"\r\n")?;
        let line = &bytes[..end];
        bytes = &bytes[end + 2..];
        let digits = line.split(|byte| *byte == b';').next()?;
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) || line.contains(&b'\n') {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        body.extend(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
    loop {
        let end = find(bytes, b"\r\n")?;
        let line = &bytes[..end];
        bytes = &bytes[end + 2..];
        if line.is_empty() {
            return Some((body, bytes));
        }
        if line.contains(&b'\n') || line.contains(&b'\r') || line[0] == b' ' || line[0] == b'\t' {
            return None;
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
