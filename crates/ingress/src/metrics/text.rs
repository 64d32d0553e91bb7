//! Prometheus' text format, version 0.0.4: all series of one metric together, each metric with its help and type.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BOUNDS_US, CLASSES, Meters, STATES, STEPS, Series, Times};

/// Writes all metrics of `series`.
pub(crate) fn write(out: &mut String, series: &[Series<'_>]) {
    counts(out, series);
    times(out, series);
    levels(out, series);
}

fn counts(out: &mut String, series: &[Series<'_>]) {
    head(
        out,
        "utsuwa_requests_total",
        "counter",
        "Requests that have ended, by the class of their status; refused ones are among them.",
    );
    for one in series
        .iter()
        .filter(|one| one.meters.shards.get().is_some())
    {
        for (place, class) in CLASSES.iter().enumerate() {
            let count = one.meters.sum(|shard| &shard.status[place]);
            // Two series too few for most apps, and every one that counts is there.
            if count > 0 || *class == "2xx" || *class == "5xx" {
                line(
                    out,
                    "utsuwa_requests_total",
                    &one.labels,
                    &format!("response_code_class=\"{class}\""),
                    count,
                );
            }
        }
    }
    head(
        out,
        "utsuwa_refused_requests_total",
        "counter",
        "Requests that the server answered itself, by the reason that X-Utsuwa-Answered-By names.",
    );
    for (one, rare) in rare(series) {
        for (reason, count) in rare.refusals.lock().iter() {
            line(
                out,
                "utsuwa_refused_requests_total",
                &one.labels,
                &format!("reason=\"{reason}\""),
                count,
            );
        }
    }
    for (name, help, place) in [
        ("utsuwa_request_bytes_total", "Bytes of request bodies.", 0),
        (
            "utsuwa_response_bytes_total",
            "Bytes of response bodies.",
            1,
        ),
    ] {
        head(out, name, "counter", help);
        for one in series
            .iter()
            .filter(|one| one.meters.shards.get().is_some())
        {
            let bytes = one.meters.sum(|shard| {
                if place == 0 {
                    &shard.request_bytes
                } else {
                    &shard.response_bytes
                }
            });
            line(out, name, &one.labels, "", bytes);
        }
    }
    seldom(out, series);
}

/// Of instances.
fn seldom(out: &mut String, series: &[Series<'_>]) {
    type Count = fn(&super::Rare) -> &AtomicU64;
    let all: [(&str, &str, Count); 3] = [
        (
            "utsuwa_wakes_total",
            "Times that requests found no instance, ready or starting, and asked for one; those who came meanwhile waited with them.",
            |rare| &rare.wakes,
        ),
        (
            "utsuwa_instance_starts_total",
            "Instances that were started.",
            |rare| &rare.starts,
        ),
        (
            "utsuwa_instance_start_failures_total",
            "Instances whose startup probe gave up.",
            |rare| &rare.failed_starts,
        ),
    ];
    for (name, help, count) in all {
        head(out, name, "counter", help);
        for (one, rare) in rare(series).filter(|(one, _)| one.levels.is_some()) {
            let count = count(rare).load(Ordering::Relaxed);
            line(out, name, &one.labels, "", count);
        }
    }
}

fn times(out: &mut String, series: &[Series<'_>]) {
    head(
        out,
        "utsuwa_request_duration_seconds",
        "histogram",
        "From a request's arrival to the last byte of its answer.",
    );
    for one in series
        .iter()
        .filter(|one| one.meters.shards.get().is_some())
    {
        let class = |place: usize| one.meters.sum(|shard| &shard.latency.classes[place]);
        let sum = one.meters.sum(|shard| &shard.latency.sum_us);
        histogram(
            out,
            "utsuwa_request_duration_seconds",
            &one.labels,
            class,
            sum,
        );
    }
    for (name, help) in [
        (
            "utsuwa_queue_duration_seconds",
            "How long requests that had to wait for an instance waited.",
        ),
        (
            "utsuwa_wake_duration_seconds",
            "From arrival to the first byte, of requests whose instance was started for them.",
        ),
    ] {
        head(out, name, "histogram", help);
        for (one, rare) in rare(series).filter(|(one, _)| one.levels.is_some()) {
            let of: &Times = if name.contains("queue") {
                &rare.queue
            } else {
                &rare.wake
            };
            let class = |place: usize| of.classes[place].load(Ordering::Relaxed);
            histogram(
                out,
                name,
                &one.labels,
                class,
                of.sum_us.load(Ordering::Relaxed),
            );
        }
    }
    head(
        out,
        "utsuwa_wake_step_seconds_total",
        "counter",
        "Where the time of utsuwa_wake_duration_seconds went.",
    );
    for (one, rare) in rare(series).filter(|(one, _)| one.levels.is_some()) {
        for (step, sum) in STEPS.iter().zip(&rare.steps_us) {
            let more = format!("step=\"{step}\"");
            line(
                out,
                "utsuwa_wake_step_seconds_total",
                &one.labels,
                &more,
                seconds(sum.load(Ordering::Relaxed)),
            );
        }
    }
}

fn levels(out: &mut String, series: &[Series<'_>]) {
    let with_levels = || series.iter().filter_map(|one| Some((one, one.levels?)));
    head(
        out,
        "utsuwa_requests_in_flight",
        "gauge",
        "Requests inside instances.",
    );
    for (one, levels) in with_levels() {
        line(
            out,
            "utsuwa_requests_in_flight",
            &one.labels,
            "",
            levels.in_flight,
        );
    }
    head(
        out,
        "utsuwa_requests_waiting",
        "gauge",
        "Requests that wait for an instance.",
    );
    for (one, levels) in with_levels() {
        line(
            out,
            "utsuwa_requests_waiting",
            &one.labels,
            "",
            levels.queued,
        );
    }
    head(
        out,
        "utsuwa_instances",
        "gauge",
        "Instances by state: resting ones may be frozen, leaving ones take no more requests.",
    );
    for (one, levels) in with_levels() {
        for (state, count) in STATES.iter().zip(levels.instances) {
            line(
                out,
                "utsuwa_instances",
                &one.labels,
                &format!("state=\"{state}\""),
                count,
            );
        }
    }
}

fn rare<'s, 'm>(
    series: &'s [Series<'m>],
) -> impl Iterator<Item = (&'s Series<'m>, &'m super::Rare)> {
    series.iter().filter_map(|one| {
        let meters: &'m Meters = one.meters;
        Some((one, &**meters.rare.get()?))
    })
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing into memory does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, more: &str, value: impl std::fmt::Display) {
    let comma = if labels.is_empty() || more.is_empty() {
        ""
    } else {
        ","
    };
    let _ = writeln!(out, "{name}{{{labels}{comma}{more}}} {value}");
}

fn histogram(
    out: &mut String,
    name: &str,
    labels: &str,
    class: impl Fn(usize) -> u64,
    sum_us: u64,
) {
    let bucket = format!("{name}_bucket");
    let mut count = 0;
    for (place, bound) in BOUNDS_US.iter().enumerate() {
        count += class(place);
        line(
            out,
            &bucket,
            labels,
            &format!("le=\"{}\"", seconds(*bound)),
            count,
        );
    }
    count += class(BOUNDS_US.len());
    line(out, &bucket, labels, "le=\"+Inf\"", count);
    line(out, &format!("{name}_sum"), labels, "", seconds(sum_us));
    line(out, &format!("{name}_count"), labels, "", count);
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum of times, exact for 285 years"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
