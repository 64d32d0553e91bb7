//! Every line that was written is in the log once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::work::Batch;
use crate::harness::{Server, until};

/// What the log has of one line: how often, and how long its message is.
type Found = BTreeMap<(usize, usize), (usize, usize)>;

pub(crate) fn check(server: &Server, batches: &[Batch]) {
    let last = batches.len() - 1;
    let found = until("the last batch in the log", Duration::from_secs(30), || {
        let read = read(&server.ok(&["logs", "writer", "--tail", "10000000", "--format", "json"]));
        (read.range((last, 0)..).count() == batches[last].lines).then_some(read)
    });
    let written: usize = batches.iter().map(|batch| batch.lines).sum();
    println!(
        "{} lines of {written} asked for in {} batches",
        found.len(),
        batches.len()
    );
    for (number, batch) in batches.iter().enumerate() {
        let lines: Vec<_> = found.range((number, 0)..(number + 1, 0)).collect();
        // A request that broke off may never have come to the writer; but then it wrote nothing of it.
        let expected = match (batch.answered, lines.len()) {
            (false, 0) => 0,
            _ => batch.lines,
        };
        assert_eq!(lines.len(), expected, "lines of batch {number}: {batch:?}");
        for ((_, line), (times, length)) in lines {
            assert_eq!(
                *times, 1,
                "batch {number}: line {line} was told {times} times"
            );
            assert!(
                batch.bytes == 0 || *length == batch.bytes,
                "batch {number}: line {line} has {length} bytes"
            );
        }
    }
}

/// The lines of all batches.
fn read(log: &str) -> Found {
    let mut found = Found::new();
    let records = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|record| record["stream"] == "stdout");
    for record in records {
        let text = record["text"].as_str().unwrap();
        // Whatever isn't one whole line of the writer's would not be read here.
        let message: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let message = message["message"].as_str().unwrap();
        let Some((batch, line)) = message
            .strip_prefix("batch-")
            .and_then(|m| m.split_once("- "))
        else {
            continue;
        };
        let line = line.trim_end_matches('.').parse().unwrap();
        let entry = found.entry((batch.parse().unwrap(), line)).or_default();
        *entry = (entry.0 + 1, message.len());
    }
    found
}
