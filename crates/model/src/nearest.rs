//! Which of several names was meant by one that is none of them.

/// Nothing longer is a name that was mistyped: names have 63 letters at most.
const LONGEST: usize = 64;

/// The name that differs least from `wrong`, unless all differ too much to be meant.
#[must_use]
pub fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if wrong.len() > LONGEST {
        return None;
    }
    let length = wrong.chars().count();
    let meant = |name: &&str| {
        let begun = wrong.len() >= 3 && name.starts_with(wrong);
        begun || distance(wrong, name) <= length.max(name.chars().count()).div_ceil(4)
    };
    names
        .filter(meant)
        .min_by_key(|name| (distance(wrong, name), (*name).to_owned()))
}

/// How many letters must be put in, taken out or exchanged; two neighbours that changed places count once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found_and_nothing_else() {
        let names = ["hello", "orders", "orders-old", "a"];
        for (wrong, meant) in [
            ("helo", Some("hello")),
            ("hlelo", Some("hello")),
            ("order", Some("orders")),
            ("orders-odl", Some("orders-old")),
            ("hel", Some("hello")),
            ("payments", None),
            ("b", Some("a")),
            ("zz", None),
        ] {
            assert_eq!(nearest(wrong, names.into_iter()), meant, "{wrong}");
        }
        // The table of letters grows with the square of what somebody sent.
        let long = "a".repeat(65);
        assert_eq!(nearest(&long, [long.as_str()].into_iter()), None);
        assert!(nearest(&long[1..], [long.as_str()].into_iter()).is_some());
    }
}
