//! Percentiles and tables.

use std::time::Duration;

/// Samples of one series.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series(Vec<Duration>);

impl Series {
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub(crate) fn append(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// The value below which `percent` of the samples lie, in milliseconds; NaN without samples.
    pub(crate) fn ms(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let Some(last) = sorted.len().checked_sub(1) else {
            return f64::NAN;
        };
        sorted[(sorted.len() * percent / 100).min(last)].as_secs_f64() * 1000.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// By how many milliseconds each sample exceeds the one of `other` taken in the same turn: the median of these differences, and
    /// between what it lies with 95 % certainty (by the order of the differences, whatever their distribution; never less than the
    /// two extremes of a short series). None unless both took the same turns.
    pub(crate) fn exceeds(&self, other: &Self) -> Option<Difference> {
        if self.len() == 0 || self.len() != other.len() {
            return None;
        }
        let mut sorted: Vec<f64> = self
            .0
            .iter()
            .zip(&other.0)
            .map(|(mine, its)| (mine.as_secs_f64() - its.as_secs_f64()) * 1000.0)
            .collect();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        // The median's rank varies as a fair coin's heads do: by 0.98 √n to each side, 19 times of 20.
        let aside = count.isqrt() + 1;
        Some(Difference {
            median: sorted[count / 2],
            least: sorted[(count / 2).saturating_sub(aside)],
            most: sorted[(count / 2 + aside).min(count - 1)],
        })
    }
}

/// The median of paired differences and its 95 % interval, all in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Difference {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// A table with aligned columns.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|r| r.get(column))
            .map(|c| c.chars().count())
            .chain([head[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(ms: impl IntoIterator<Item = u64>) -> Series {
        Series(ms.into_iter().map(Duration::from_millis).collect())
    }

    #[test]
    fn differences_are_those_of_the_same_turn() {
        // The machine gets slower by the turn; who takes turns with us does, too.
        let bare = series((0..100).map(|i| 300 + 10 * i));
        let ours = series((0..100).map(|i| 300 + 10 * i + i % 11));
        let found = ours.exceeds(&bare).expect("same turns");
        assert!((4.0..=6.0).contains(&found.median), "{found:?}");
        assert!(found.least >= 3.0 && found.most <= 7.0, "{found:?}");
        assert!(found.least < found.median && found.median < found.most);
    }

    #[test]
    fn few_turns_say_little() {
        let found = series([1, 9]).exceeds(&series([0, 0])).expect("same turns");
        assert_eq!((found.least, found.most), (1.0, 9.0));
        assert_eq!(series([1, 2]).exceeds(&series([1])), None);
        assert_eq!(series([]).exceeds(&series([])), None);
    }
}
