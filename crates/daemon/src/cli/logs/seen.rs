//! Which lines of a log were printed, over several connections.
//!
//! Invariant: a line that a connection brings again is known by the number it has in its stream; what the first connection left
//! out (`--tail`) was written before the time from which it called lines new, and is not asked for again. The app's streams come in the order of their numbers; lines of Utsuwa's own don't, since a request is placed where it began.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::output::text_at;

#[derive(Debug)]
pub(super) struct Seen {
    /// Lines written from then on were new to the first connection.
    new_from: Timestamp,
    /// The first line's time.
    oldest: Timestamp,
    /// Lines of the past that may still come: as long as there are any, the first connection left nothing out.
    past: usize,
    again: bool,
    /// The last number of each stream of each container: instance, container, stream.
    last: BTreeMap<(String, String, String), u64>,
    /// The numbers of Utsuwa's own lines, of all instances together: first and last of each range.
    ours: BTreeMap<u64, u64>,
}

impl Seen {
    /// Of a first connection that brings `tail` lines of the past, and those written from `new_from` on.
    pub(super) const fn new(new_from: Timestamp, tail: usize) -> Self {
        Self {
            new_from,
            oldest: new_from,
            past: tail,
            again: false,
            last: BTreeMap::new(),
            ours: BTreeMap::new(),
        }
    }

    /// Nothing that was written before it is wanted. A connection that broke off within its past left the rest of it to come.
    pub(super) const fn floor(&self) -> Timestamp {
        if self.past > 0 {
            self.oldest
        } else {
            self.new_from
        }
    }

    /// What comes from now on may have been printed.
    pub(super) const fn connection_ended(&mut self) {
        self.again = true;
    }

    /// Takes in a line that came. `false`: it is not to be printed.
    pub(super) fn is_new(&mut self, record: &Value) -> bool {
        let stream = text_at(record, "stream");
        let sequence = record["sequence"].as_u64().unwrap_or(0);
        // What was dropped before all others: told once, with no place in the order.
        if sequence == 0 {
            return !self.again;
        }
        let at: Option<Timestamp> = text_at(record, "at").parse().ok();
        if !self.again
            && let Some(at) = at
            && at < self.new_from
        {
            self.oldest = self.oldest.min(at);
            self.past = self.past.saturating_sub(1);
        }
        if stream == "utsuwa" {
            return self.is_new_of_ours(sequence);
        }
        let key = (
            text_at(record, "instance"),
            text_at(record, "container"),
            stream,
        );
        let new = match self.last.get(&key) {
            Some(last) => sequence > *last,
            None => !self.again || at.is_none_or(|at| at >= self.floor()),
        };
        if new {
            self.last.insert(key, sequence);
        }
        new
    }

    /// Adds a number to the ranges. `false`: it is in one.
    fn is_new_of_ours(&mut self, number: u64) -> bool {
        let before = self.ours.range(..=number).next_back();
        let before = before.map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= number) {
            return false;
        }
        let first = match before {
            Some((first, last)) if last + 1 == number => first,
            _ => number,
        };
        let last = self.ours.remove(&(number + 1)).unwrap_or(number);
        self.ours.insert(first, last);
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: u32) -> Timestamp {
        let text = format!("2026-11-25T20:00:{second:02}Z");
        text.parse().unwrap()
    }

    fn new(seen: &mut Seen, instance: &str, stream: &str, sequence: u64, second: u32) -> bool {
        seen.is_new(&json!({
            "at": at(second).to_string(),
            "instance": instance,
            "stream": stream,
            "sequence": sequence,
        }))
    }

    #[test]
    fn containers_count_by_themselves() {
        let mut seen = Seen::new(at(0), 200);
        for container in ["side", "app"] {
            let line = json!({
                "at": at(1).to_string(), "instance": "a", "container": container, "stream": "stdout", "sequence": 1,
            });
            assert!(seen.is_new(&line), "{container}");
            assert!(!seen.is_new(&line), "{container}, again");
        }
    }

    #[test]
    fn every_line_once_whatever_is_brought_again() {
        let mut seen = Seen::new(at(30), 200);
        // The marker of what was dropped, then the tail: the second of two lines of a, and one of b.
        assert!(new(&mut seen, "", "utsuwa", 0, 0));
        assert!(new(&mut seen, "a", "stdout", 2, 10));
        assert!(new(&mut seen, "b", "stdout", 1, 11));
        assert!(new(&mut seen, "a", "utsuwa", 7, 12));
        assert!(new(&mut seen, "b", "utsuwa", 8, 12), "numbered together");
        assert_eq!(seen.floor(), at(10));
        assert!(new(&mut seen, "a", "utsuwa", 5, 13), "in any order");
        seen.connection_ended();
        for (instance, stream, sequence, second, want) in [
            ("", "utsuwa", 0, 0, false),
            ("old", "stdout", 9, 5, false),
            ("a", "stdout", 1, 9, false),
            ("a", "stdout", 2, 10, false),
            ("a", "stdout", 3, 31, true),
            ("a", "stdout", 3, 31, false),
            ("a", "stderr", 1, 31, true),
            ("c", "stdout", 1, 32, true),
            ("c", "utsuwa", 8, 12, false),
            ("c", "utsuwa", 10, 33, true),
            // It began before the one above and ended after it.
            ("c", "utsuwa", 9, 34, true),
            ("c", "utsuwa", 9, 34, false),
            ("c", "utsuwa", 10, 34, false),
        ] {
            assert_eq!(
                new(&mut seen, instance, stream, sequence, second),
                want,
                "{instance} {stream} {sequence}"
            );
        }
        assert_eq!(seen.ours, BTreeMap::from([(5, 5), (7, 10)]), "few ranges");
    }

    #[test]
    fn an_empty_past_begins_with_the_connection() {
        let mut seen = Seen::new(at(30), 200);
        assert!(new(&mut seen, "a", "stdout", 1, 33));
        seen.connection_ended();
        // On its way when the connection broke.
        assert!(new(&mut seen, "b", "stdout", 1, 32));
        assert!(!new(&mut seen, "gone", "stdout", 4, 29));
    }

    #[test]
    fn what_the_tail_left_out_stays_out() {
        let mut seen = Seen::new(at(30), 1);
        assert!(new(&mut seen, "a", "stdout", 7, 20));
        // A request that began long before.
        assert!(new(&mut seen, "a", "utsuwa", 3, 5));
        assert_eq!(seen.floor(), at(30));
        seen.connection_ended();
        assert!(!new(&mut seen, "b", "stdout", 4, 19), "left out");
        assert!(!new(&mut seen, "a", "stdout", 6, 19), "left out");
        assert!(new(&mut seen, "c", "stdout", 1, 30), "all of a new one");
    }
}
