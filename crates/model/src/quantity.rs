//! Quantities with their units in the type: CPU in thousandths, memory in bytes (Kubernetes' spelling on the wire).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string that is not a quantity; the text says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a quantity: write {expected}")]
pub struct QuantityError {
    pub value: String,
    pub expected: &'static str,
}

/// CPU in thousandths of a core: `1`, `0.5`, `1000m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpu(pub u32);

/// Memory in bytes: `512Mi`, `1Gi`, `1G`, `1000000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemoryBytes(pub u64);

impl FromStr for MilliCpu {
    type Err = QuantityError;
    fn from_str(value: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            value: value.to_owned(),
            expected: "CPU as 1, 0.5 or 500m",
        };
        if let Some(milli) = value.strip_suffix('m') {
            return milli.parse().map(Self).map_err(|_| error());
        }
        let (whole, fraction) = value.split_once('.').unwrap_or((value, "0"));
        if fraction.is_empty()
            || fraction.len() > 3
            || !fraction.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(error());
        }
        let whole: u32 = whole.parse().map_err(|_| error())?;
        let fraction: u32 = format!("{fraction:0<3}").parse().map_err(|_| error())?;
        whole
            .checked_mul(1000)
            .and_then(|w| w.checked_add(fraction))
            .map(Self)
            .ok_or_else(error)
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            write!(f, "{}", self.0 / 1000)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}

impl FromStr for MemoryBytes {
    type Err = QuantityError;
    fn from_str(value: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            value: value.to_owned(),
            expected: "memory as 512Mi, 1Gi, 1G or a number of bytes",
        };
        let split = value
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(value.len());
        let number: u64 = value[..split].parse().map_err(|_| error())?;
        let unit: u64 = match &value[split..] {
            "" => 1,
            "k" | "K" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            _ => return Err(error()),
        };
        number.checked_mul(unit).map(Self).ok_or_else(error)
    }
}

/// All there can be, rather than less than there is.
impl std::iter::Sum for MemoryBytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        Self(all.fold(0, |sum, one| sum.saturating_add(one.0)))
    }
}

impl fmt::Display for MemoryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b != 0 && b.is_multiple_of(1 << 30) => write!(f, "{}Gi", b >> 30),
            b if b != 0 && b.is_multiple_of(1 << 20) => write!(f, "{}Mi", b >> 20),
            b => write!(f, "{b}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_in_every_spelling() {
        for (text, milli) in [
            ("1", 1000),
            ("0.08", 80),
            ("1000m", 1000),
            ("2.5", 2500),
            ("0.333", 333),
        ] {
            assert_eq!(text.parse(), Ok(MilliCpu(milli)), "{text}");
        }
        for bad in ["", "1.", "one", "0.0001", "-1", "5000000"] {
            assert!(bad.parse::<MilliCpu>().is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_in_every_spelling() {
        for (text, bytes) in [
            ("512Mi", 512 << 20),
            ("1Gi", 1 << 30),
            ("1G", 1_000_000_000),
            ("7", 7),
        ] {
            assert_eq!(text.parse(), Ok(MemoryBytes(bytes)), "{text}");
        }
        for bad in ["", "Mi", "1Ti5", "1.5Gi", "99999999999999Gi"] {
            assert!(bad.parse::<MemoryBytes>().is_err(), "{bad}");
        }
        assert_eq!(MemoryBytes(1 << 30).to_string(), "1Gi");
    }
}
