//! Where requests shall go: from flags to the list of targets.

use serde_json::{Value, json};

use crate::client::Failure;

pub(super) const LATEST: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST";
const REVISION: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION";

fn target(revision: &str) -> Value {
    if revision == "LATEST" {
        json!({"type": LATEST})
    } else {
        json!({"type": REVISION, "revision": revision})
    }
}

/// The new list of targets: percentages first, then tags.
pub(in crate::cli) fn new_traffic(
    old: Vec<Value>,
    to: Option<&str>,
    latest: bool,
    tags: Option<&str>,
) -> Result<Vec<Value>, Failure> {
    let (old_tags, old_shares): (Vec<Value>, Vec<Value>) = old
        .into_iter()
        .partition(|t| t["tag"].is_string() && t["percent"].is_null());
    let mut shares = old_shares;
    if latest {
        shares = vec![json!({"type": LATEST, "percent": 100})];
    }
    if let Some(list) = to {
        let mut named = Vec::new();
        let mut sum = 0;
        for part in list.split(',') {
            let (revision, percent) = part
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("{part:?}: must be REVISION=PERCENT")))?;
            let percent: u32 = percent.parse().map_err(|_| {
                Failure::usage(format!("{part:?}: the percentage must be a whole number"))
            })?;
            sum += percent;
            let mut share = target(revision);
            share["percent"] = json!(percent);
            named.push(share);
        }
        if sum > 100 {
            return Err(Failure::usage(format!(
                "the percentages add up to {sum}; they must not exceed 100"
            )));
        }
        shares = spread(shares, named, 100 - sum)?;
    }
    let tag_targets = match tags {
        None => old_tags,
        Some(list) => list
            .split(',')
            .filter(|p| !p.is_empty())
            .map(|part| {
                let (tag, revision) = part
                    .split_once('=')
                    .ok_or_else(|| Failure::usage(format!("{part:?}: must be TAG=REVISION")))?;
                let mut tagged = target(revision);
                tagged["tag"] = json!(tag);
                Ok(tagged)
            })
            .collect::<Result<_, Failure>>()?,
    };
    shares.extend(tag_targets);
    Ok(shares)
}

/// Gives `left` percent to those of `old` that `named` doesn't name, in proportion; the largest takes what rounding leaves.
fn spread(old: Vec<Value>, named: Vec<Value>, left: u32) -> Result<Vec<Value>, Failure> {
    let same = |a: &Value, b: &Value| a["type"] == b["type"] && a["revision"] == b["revision"];
    let mut rest: Vec<(Value, u64)> = old
        .into_iter()
        .filter(|o| !named.iter().any(|n| same(o, n)))
        .map(|o| {
            let percent = o["percent"].as_u64().unwrap_or(0);
            (o, percent)
        })
        .filter(|(_, percent)| *percent > 0)
        .collect();
    let total: u64 = rest.iter().map(|(_, p)| p).sum();
    if left > 0 && total == 0 {
        return Err(Failure::usage(format!(
            "{left} percent go nowhere: name revisions whose percentages add up to 100"
        )));
    }
    let mut given = 0;
    for (_, percent) in &mut rest {
        *percent = *percent * u64::from(left) / total.max(1);
        given += *percent;
    }
    if let Some((_, most)) = rest.iter_mut().max_by_key(|(_, p)| *p) {
        *most += u64::from(left) - given;
    }
    Ok(named
        .into_iter()
        .chain(rest.into_iter().map(|(mut target, percent)| {
            target["percent"] = json!(percent);
            target
        }))
        .filter(|t| t["percent"].as_u64() != Some(0) || t["tag"].is_string())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_goes_on_in_proportion() {
        let old = vec![
            json!({"type": LATEST, "percent": 60}),
            json!({"type": REVISION, "revision": "a", "percent": 40}),
        ];
        let new = new_traffic(old, Some("b=10"), false, None).expect("valid");
        let percents: Vec<u64> = new.iter().filter_map(|t| t["percent"].as_u64()).collect();
        assert_eq!(percents, [10, 54, 36]);
        assert!(new_traffic(vec![], Some("b=10"), false, None).is_err());
        assert!(new_traffic(vec![], Some("a=60,b=50"), false, None).is_err());
    }

    #[test]
    fn tags_are_kept_unless_set() {
        let old = vec![
            json!({"type": LATEST, "percent": 100}),
            json!({"type": REVISION, "revision": "a", "tag": "old"}),
        ];
        assert_eq!(
            new_traffic(old.clone(), None, true, None)
                .expect("valid")
                .len(),
            2
        );
        let set = new_traffic(old, None, false, Some("new=LATEST")).expect("valid");
        assert_eq!(set[1], json!({"type": LATEST, "tag": "new"}));
    }
}
