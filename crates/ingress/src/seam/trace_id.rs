//! A trace's id, as 32 hexadecimal digits: kept with each request's record without memory of its own.

use std::fmt;

/// 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 32]);

impl TraceId {
    pub(crate) fn new(high: u64, low: u64) -> Self {
        let mut id = [0; 32];
        id[..16].copy_from_slice(&digits(high));
        id[16..].copy_from_slice(&digits(low));
        Self(id)
    }

    /// What has been found to be 32 such digits; `None` for anything of another length.
    pub(crate) fn of(text: &str) -> Option<Self> {
        text.as_bytes().try_into().ok().map(Self)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for TraceId {
    type Err = &'static str;

    /// # Errors
    /// It isn't 32 lower-case hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let id = Self::of(text).filter(|_| text.bytes().all(hex));
        id.ok_or("must be 32 lower-case hexadecimal digits")
    }
}

/// Sixteen hexadecimal digits.
pub(crate) fn digits(mut bits: u64) -> [u8; 16] {
    let mut text = [b'0'; 16];
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(bits & 15) as usize];
        bits >>= 4;
    }
    text
}
