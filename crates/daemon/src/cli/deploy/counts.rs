//! Flags whose zero says nothing on the wire: the API takes 0 for "not said" and puts its default there, so a 0 that was typed would
//! become 80 requests, 100 instances or 5 minutes without a word.

/// Longest a request may take, as on Cloud Run.
const TIMEOUT_SECS: u64 = 3600;
/// Most requests in flight per instance, as on Cloud Run.
const CONCURRENCY: u32 = 1000;

/// A count of 1 or more; 0, the wire's word for it, when `default` is written.
pub(super) fn one_or_default(text: &str) -> Result<u32, String> {
    if text == "default" {
        return Ok(0);
    }
    match text.parse::<u32>() {
        Ok(0) => Err("at least 1 is needed; `default` goes back to the default".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("must be a whole number, 1 or more, or `default`".to_owned()),
    }
}

/// Requests in flight per instance.
pub(super) fn concurrency(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if (1..=CONCURRENCY).contains(&count) => Ok(count),
        _ if text == "default" => Ok(0),
        _ => Err(format!("must be 1 to {CONCURRENCY}, or `default`")),
    }
}

/// Seconds that a request may take.
pub(super) fn timeout(text: &str) -> Result<u64, String> {
    match crate::config::duration(text)?.as_secs() {
        0 => Err("at least 1 s is needed".to_owned()),
        long if long > TIMEOUT_SECS => Err(format!(
            "{long} s are too long: at most {TIMEOUT_SECS} s ({} min)",
            TIMEOUT_SECS / 60
        )),
        seconds => Ok(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_is_refused_where_the_wire_would_take_it_for_the_default() {
        assert_eq!(one_or_default("1"), Ok(1));
        assert_eq!(one_or_default("default"), Ok(0));
        assert!(one_or_default("0").unwrap_err().contains("at least 1"));
        for wrong in ["-1", "many", "", "1.5"] {
            assert!(one_or_default(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_concurrency_names_both_ends() {
        assert_eq!(concurrency("1000"), Ok(1000));
        assert_eq!(concurrency("default"), Ok(0));
        for wrong in ["0", "1001", "many", "99999999999"] {
            assert!(concurrency(wrong).unwrap_err().contains("1 to 1000"));
        }
    }

    #[test]
    fn a_timeout_says_what_is_possible() {
        assert_eq!(timeout("90"), Ok(90));
        assert_eq!(timeout("1h"), Ok(3600));
        let long = timeout("2h").unwrap_err();
        assert!(long.ends_with("at most 3600 s (60 min)"), "{long}");
        assert!(timeout("0").is_err());
        assert!(timeout("soon").is_err());
    }
}
