//! A strict reading of what an HTTP/1.1 client sends, before hyper reads it.
//!
//! hyper takes what most servers take: lines that end in a line feed alone, both length headers, the same length twice, other
//! codings before `chunked`, white space in chunk lines. None of it hurts behind hyper alone. But who stands before us may read
//! such a message in another way than we do, and then a stranger chooses where one request ends and the next begins. So every
//! byte passes here first: heads are let through whole and only when they can be read in one way; hyper never sees the others.
//!
//! Owns: where each message begins and ends, and that hyper can read its head. Deliberately not here: what a well-formed request
//! may not say (`examine`).
//!
//! Invariants:
//! 1. A head is passed on whole or not at all, and never after a refused one.
//! 2. Body bytes are passed on as they come; one that ends elsewhere than it says ends the connection.
//! 3. What follows a request that asks to switch protocols waits until that request has been answered.
//! 4. A head that comes in one piece costs no memory; one in many pieces is looked at once.

use memchr::{memchr, memrchr};

use crate::chunk::Chunk;
use crate::flaw::Flaw;

/// Decimal digits of a length: 18 can't overflow.
const LENGTH_DIGITS: usize = 18;

/// What may be passed on of the bytes shown, counted from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// So many; the rest has to be shown again, with what comes after it.
    Pass(usize),
    /// So many; then comes a head that is refused.
    BadHead(usize, Flaw),
    /// So many; then a body breaks.
    BadBody(usize, Flaw),
}

/// How far the reading of one connection is.
#[derive(Debug)]
pub(crate) struct Gate {
    place: Place,
    limits: Limits,
    /// Bytes of the unfinished head that were looked at.
    looked: usize,
    /// There was an empty line before this head.
    empty: bool,
    /// The message under way asks to switch protocols.
    asks: bool,
    heads: u64,
}

/// What one head may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: usize,
    pub(crate) fields: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    /// So many bytes of the body are left.
    Body(u64),
    Chunked(Chunk),
    /// After a request that asks to switch protocols.
    Asked,
    /// Another protocol is spoken.
    Switched,
    Refused,
}

/// How a message says where it ends.
#[derive(Debug, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Gate {
    pub(crate) const fn new(limits: Limits) -> Self {
        Self {
            place: Place::Head,
            limits,
            looked: 0,
            empty: false,
            asks: false,
            heads: 0,
        }
    }

    /// Heads that were passed on.
    pub(crate) const fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether what was passed on ends with a whole message.
    pub(crate) fn is_between(&self) -> bool {
        self.place == Place::Head
    }

    /// Whether it waits for the answer to a request that asks to switch protocols.
    pub(crate) fn is_asking(&self) -> bool {
        self.place == Place::Asked
    }

    /// That answer was given.
    pub(crate) const fn answered(&mut self, switched: bool) {
        self.place = if switched {
            Place::Switched
        } else {
            Place::Head
        };
    }

    /// Looks at the next bytes: those not passed on before, and what came after them.
    pub(crate) fn look(&mut self, bytes: &[u8]) -> Verdict {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.place {
                Place::Switched => return Verdict::Pass(bytes.len()),
                Place::Asked | Place::Refused => break,
                Place::Head => match self.head(rest) {
                    Ok(Some(length)) => at += length,
                    Ok(None) => break,
                    Err(flaw) => {
                        self.place = Place::Refused;
                        return Verdict::BadHead(at, flaw);
                    }
                },
                Place::Body(left) => {
                    let taken =
                        usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    at += taken;
                    match left - taken as u64 {
                        0 => self.end(),
                        left => self.place = Place::Body(left),
                    }
                }
                Place::Chunked(mut chunk) => {
                    let (taken, outcome) = chunk.advance(rest);
                    at += taken;
                    if let Err(flaw) = outcome {
                        self.place = Place::Refused;
                        return Verdict::BadBody(at, flaw);
                    }
                    if chunk == Chunk::Over {
                        self.end();
                    } else {
                        self.place = Place::Chunked(chunk);
                    }
                }
            }
        }
        Verdict::Pass(at)
    }

    /// The message has ended.
    const fn end(&mut self) {
        self.place = if self.asks { Place::Asked } else { Place::Head };
        self.asks = false;
        self.empty = false;
    }

    /// The length of the head that `bytes` begin with; `None` while its end isn't there.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Flaw> {
        let mut from = self.looked;
        while let Some(found) = memchr(b'\n', &bytes[from..]) {
            let feed = from + found;
            from = feed + 1;
            match bytes[..feed] {
                [.., b'\n', b'\r'] => {
                    self.looked = 0;
                    self.whole(&bytes[..from])?;
                    return Ok(Some(from));
                }
                // RFC 9112 §2.2: one was sent too many after the body before, by old clients.
                [b'\r'] if !self.empty => {
                    self.empty = true;
                    self.looked = 0;
                    return Ok(Some(from));
                }
                [b'\r'] => return Err(Flaw::EmptyLines),
                [.., b'\r'] => {}
                _ => return Err(Flaw::BareLineFeed),
            }
        }
        if bytes.len() > self.limits.bytes {
            return Err(Flaw::HeadTooLarge);
        }
        self.looked = bytes.len();
        Ok(None)
    }

    /// A head with its end.
    fn whole(&mut self, head: &[u8]) -> Result<(), Flaw> {
        if head.len() > self.limits.bytes {
            return Err(Flaw::HeadTooLarge);
        }
        let mut lines = Lines(head);
        let old = request_line(lines.next().unwrap_or_default())?;
        let mut framing = Framing::default();
        let mut fields = 0;
        for line in lines.take_while(|line| !line.is_empty()) {
            fields += 1;
            if fields > self.limits.fields {
                return Err(Flaw::TooManyFields);
            }
            framing.field(line)?;
        }
        let Framing {
            length,
            chunked,
            upgrade,
        } = framing;
        match (chunked, length) {
            (true, Some(_)) => return Err(Flaw::BothLengths),
            (true, None) if old => return Err(Flaw::OldCoding),
            _ => {}
        }
        self.heads += 1;
        // CONNECT asks for a tunnel by its method. We grant none; what follows is read once that was said.
        self.asks = upgrade || head.starts_with(b"CONNECT ");
        match length {
            _ if chunked => self.place = Place::Chunked(Chunk::FIRST),
            Some(length) if length > 0 => self.place = Place::Body(length),
            _ => self.end(),
        }
        Ok(())
    }
}

/// Lines that end in CR and LF; the caller has seen that all do.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let feed = memchr(b'\n', self.0)?;
        let line = &self.0[..feed.saturating_sub(1)];
        self.0 = &self.0[feed + 1..];
        Some(line)
    }
}

/// Whether the line says HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Flaw> {
    let (Some(first), Some(last)) = (memchr(b' ', line), memrchr(b' ', line)) else {
        return Err(Flaw::RequestLine);
    };
    let method = &line[..first];
    if first >= last || !is_token(method) || method == b"PRI" {
        return Err(Flaw::RequestLine);
    }
    if !is_target(&line[first + 1..last]) {
        return Err(Flaw::Target);
    }
    match &line[last + 1..] {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        version if version.starts_with(b"HTTP/") => Err(Flaw::Version),
        _ => Err(Flaw::RequestLine),
    }
}

impl Framing {
    fn field(&mut self, line: &[u8]) -> Result<(), Flaw> {
        if matches!(line, [b' ' | b'\t', ..]) {
            return Err(Flaw::Folded);
        }
        let colon = memchr(b':', line).ok_or(Flaw::FieldLine)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if !is_token(name) {
            return Err(Flaw::FieldLine);
        }
        if has_control(value) {
            return Err(Flaw::Control);
        }
        // Nearly all names differ in length from these.
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = number(trim(value)).ok_or(Flaw::LengthNotNumber)?;
                if self.length.replace(length).is_some() {
                    return Err(Flaw::LengthTwice);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked {
                    return Err(Flaw::LengthTwice);
                }
                if !trim(value).eq_ignore_ascii_case(b"chunked") {
                    return Err(Flaw::Coding);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }
}

/// RFC 9110 §5.6.2: what names and methods are made of.
const TOKEN: [bool; 256] = {
    let letters = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!#$%&'*+-.^_`|~";
    let mut table = [false; 256];
    let mut at = 0;
    while at < letters.len() {
        table[letters[at] as usize] = true;
        at += 1;
    }
    table
};

fn is_token(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(|byte| TOKEN[usize::from(*byte)])
}

/// Without a branch for each byte, so that it takes many at once.
fn has_control(value: &[u8]) -> bool {
    let control = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    value
        .iter()
        .fold(false, |found, byte| found | control(*byte))
}

/// A path, or an address that can be read as one. What isn't plain is left to the parser that hyper asks, too.
fn is_target(target: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~%?&=+:,;@!$'()*".contains(byte);
    match target {
        [b'/', rest @ ..] if rest.iter().all(plain) => true,
        // A fragment is the client's own business: hyper would drop it, others send it on.
        _ => memchr(b'#', target).is_none() && http::Uri::try_from(target).is_ok(),
    }
}

fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = value.iter().position(|byte| !blank(byte));
    let to = value.iter().rposition(|byte| !blank(byte));
    from.zip(to).map_or(&[], |(from, to)| &value[from..=to])
}

/// A length: decimal digits and nothing else.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > LENGTH_DIGITS {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        Some(number * 10 + u64::from(digit))
    })
}
