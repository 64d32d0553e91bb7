//! A DNS query on the wire: enough of RFC 1035 to read one question and to answer it with addresses.
//!
//! Owns: bytes. Doesn't: follow compression pointers, since a query's only question has nothing to point to.

use std::net::IpAddr;

const HEADER: usize = 12;
const LONGEST_NAME: usize = 255;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const FLAG_RESPONSE: u8 = 0x80;
/// Seconds. Short: what a name leads to changes with the server's settings only, but a wrong answer should not stay.
const TIME_TO_LIVE: u32 = 5;

/// Outcome of a query (RFC 1035 §4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseCode {
    NoError = 0,
    ServerFailure = 2,
    NameError = 3,
    NotImplemented = 4,
}

/// The parsed head of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// Lowercase, without the final dot. Bytes that aren't printable ASCII appear as `?`, which is no name of ours.
    pub(super) name: String,
    kind: u16,
    class: u16,
    /// Where the question ends in the message.
    end: usize,
    operation: u8,
}

impl Query {
    /// `None` for anything but a query with exactly one question.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let header = message.get(..HEADER)?;
        if header[2] & FLAG_RESPONSE != 0 || word(message, 4)? != 1 {
            return None;
        }
        let mut name = String::new();
        let mut at = HEADER;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            // The two upper bits mark a pointer or an extension.
            if length > 63 || at + length - HEADER > LONGEST_NAME {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(message.get(at..at + length)?.iter().map(|byte| match byte {
                b'.' => '?',
                byte if byte.is_ascii_graphic() => char::from(byte.to_ascii_lowercase()),
                _ => '?',
            }));
            at += length;
        }
        let (kind, class) = (word(message, at)?, word(message, at + 2)?);
        Some(Self {
            name,
            kind,
            class,
            end: at + 4,
            operation: (header[2] >> 3) & 15,
        })
    }

    /// An ordinary lookup in the internet class.
    pub(super) fn is_standard(&self) -> bool {
        self.operation == 0 && matches!(self.class, CLASS_IN | TYPE_ANY)
    }

    /// An answer of our own to `message` (from which this was parsed).
    pub(super) fn reply(
        &self,
        message: &[u8],
        code: ResponseCode,
        addresses: &[IpAddr],
    ) -> Vec<u8> {
        let mut reply = message[..self.end].to_vec();
        // Response, same operation, authoritative, recursion wanted as asked; recursion available.
        reply[2] = FLAG_RESPONSE | (message[2] & 0x79) | 0x04;
        reply[3] = 0x80 | code as u8;
        reply[6..HEADER].fill(0);
        let mut count: u16 = 0;
        for address in addresses {
            let (kind, length, data) = match address {
                IpAddr::V4(v4) => (TYPE_A, 4_u16, v4.octets().to_vec()),
                IpAddr::V6(v6) => (TYPE_AAAA, 16, v6.octets().to_vec()),
            };
            if self.kind != kind && self.kind != TYPE_ANY {
                continue;
            }
            count += 1;
            // The name: a pointer to the question behind the header.
            reply.extend_from_slice(&[0xc0, 12]);
            reply.extend_from_slice(&kind.to_be_bytes());
            reply.extend_from_slice(&CLASS_IN.to_be_bytes());
            reply.extend_from_slice(&TIME_TO_LIVE.to_be_bytes());
            reply.extend_from_slice(&length.to_be_bytes());
            reply.extend_from_slice(&data);
        }
        reply[6..8].copy_from_slice(&count.to_be_bytes());
        reply
    }

    /// Whether `answer` answers `message` when that was sent with `id`.
    pub(super) fn is_answered_by(&self, message: &[u8], id: u16, answer: &[u8]) -> bool {
        word(answer, 0) == Some(id)
            && answer
                .get(2)
                .is_some_and(|flags| flags & FLAG_RESPONSE != 0)
            && word(answer, 4) == Some(1)
            && answer
                .get(HEADER..self.end)
                .is_some_and(|question| question.eq_ignore_ascii_case(&message[HEADER..self.end]))
    }
}

/// Whether an answer says that the resolver could or would not find out.
pub(super) fn gave_up(answer: &[u8]) -> bool {
    const REFUSED: u8 = 5;
    answer
        .get(3)
        .is_some_and(|flags| matches!(flags & 15, 2 | REFUSED))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
