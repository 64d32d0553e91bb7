//! Numbers, times and records in headers.

use super::super::error::UnpackError;
use super::Record;

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

pub(super) fn number(field: &[u8]) -> Result<u64, UnpackError> {
    u64::try_from(signed_number(field)?)
        .map_err(|_error| UnpackError::format("a header has a negative number"))
}

/// Octal digits, or base 256 when the first bit is set.
pub(super) fn signed_number(field: &[u8]) -> Result<i64, UnpackError> {
    let bad = || UnpackError::format("a header has a field that is no number");
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = if index == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
            if index >= 12 {
                return Err(bad());
            }
        }
        return i64::try_from(value).map_err(|_error| bad());
    }
    let text: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| !matches!(byte, 0 | b' '))
        .collect();
    let mut value = 0_i64;
    for digit in text {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(bad());
        }
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(bad)?;
    }
    Ok(value)
}

pub(super) fn decimal(value: &[u8]) -> Result<u64, UnpackError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| UnpackError::format("an extended header has a value that is no number"))
}

/// `[-]SECONDS[.FRACTION]`.
pub(super) fn decimal_time(value: &[u8]) -> Result<(i64, i64), UnpackError> {
    let bad = || UnpackError::format("an extended header has a time that is no number");
    let text = std::str::from_utf8(value).map_err(|_error| bad())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut whole: i64 = seconds.parse().map_err(|_error| bad())?;
    let digits: String = fraction.chars().take(9).collect();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let mut nanos: i64 = if digits.is_empty() {
        0
    } else {
        format!("{digits:0<9}").parse().map_err(|_error| bad())?
    };
    if seconds.starts_with('-') && nanos > 0 {
        whole = whole.checked_sub(1).ok_or_else(bad)?;
        nanos = 1_000_000_000 - nanos;
    }
    Ok((whole, nanos))
}

/// Records of the form `LENGTH KEY=VALUE\n`, where the length counts the whole record.
pub(super) fn parse_pax(mut content: &[u8]) -> Result<Vec<Record>, UnpackError> {
    let bad = || UnpackError::format("an extended header is not made of records");
    let mut records = Vec::new();
    while !content.is_empty() {
        let space = content
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or_else(bad)?;
        let length = usize::try_from(decimal(&content[..space])?).map_err(|_error| bad())?;
        let record = content.get(space + 1..length).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(bad)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        content = &content[length..];
    }
    Ok(records)
}
