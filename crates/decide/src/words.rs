//! Numbers and times as people read them in a `because`.

use std::time::Duration;

/// At most two decimals, none that say nothing: `37.2`, `48`, `0.05`.
#[must_use]
pub fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `15m`, `1m30s`, `6s`, `1.5s`, `250ms`, `80µs`.
#[must_use]
pub fn time(value: Duration) -> String {
    let micros = value.as_micros();
    if micros < 1_000 {
        return format!("{micros}µs");
    }
    if micros < 1_000_000 {
        return format!("{}ms", number(value.as_secs_f64() * 1e3));
    }
    let seconds = value.as_secs();
    if seconds < 60 {
        return format!("{}s", number(value.as_secs_f64()));
    }
    let mut text = String::new();
    for (unit, size) in [("h", 3600), ("m", 60), ("s", 1)] {
        let count = if unit == "h" {
            seconds / size
        } else {
            seconds / size % 60
        };
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

/// `1 request`, `2 requests`.
#[must_use]
pub fn many(count: u32, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_exact() {
        for (millis, text) in [
            (900_000, "15m"),
            (90_000, "1m30s"),
            (6_000, "6s"),
            (1_500, "1.5s"),
            (250, "250ms"),
            (3_600_000, "1h"),
        ] {
            assert_eq!(time(Duration::from_millis(millis)), text);
        }
        assert_eq!(time(Duration::ZERO), "0µs");
        assert_eq!(
            (number(37.2), number(48.0), number(0.051)),
            ("37.2".into(), "48".into(), "0.05".into())
        );
        assert_eq!(
            (many(1, "request"), many(0, "request")),
            ("1 request".into(), "0 requests".into())
        );
    }
}
