//! What happens while a command waits, on stderr: one changing line on a terminal, a line at each change elsewhere.
//!
//! Owns: how it looks, and reading a deploy's progress. Doesn't: wait, or decide when something is done.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::services::probe_limit;
use crate::client::Api;
use crate::output::{note, size};

/// Often enough to look alive, and a read of one row for the server.
const LOOK: Duration = Duration::from_millis(100);
/// Away from a terminal a step that goes on is told again after a second, then after twice as long each time, and every 16 s: who
/// waits sees soon that it moves, and logs of builds stay short.
const REPEAT: Duration = Duration::from_secs(1);
/// How often that is doubled.
const DOUBLED: u32 = 4;

/// Before the image's layers are known.
const RESOLVING: &str = "Resolving the image";

/// One line of progress.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    told: RefCell<Told>,
}

#[derive(Debug, Default)]
struct Told {
    step: String,
    text: String,
    remark: String,
    at: Option<Instant>,
    /// Lines about this step so far.
    lines: u32,
}

impl Told {
    /// Whether `text` of `step` is worth a line at `now`: another step is, the same one only now and then.
    fn is_news(&mut self, step: &str, text: &str, now: Instant) -> bool {
        let same = self.step == step;
        let pause = REPEAT * (1 << self.lines.saturating_sub(1).min(DOUBLED));
        let soon = self.at.is_some_and(|at| now.duration_since(at) < pause);
        if self.text == text || (same && soon) {
            return false;
        }
        self.lines = if same { self.lines + 1 } else { 1 };
        text.clone_into(&mut self.text);
        step.clone_into(&mut self.step);
        self.at = Some(now);
        true
    }
}

impl Progress {
    /// Shows what is told to it, until it is dropped.
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(LOOK);
            bar
        });
        Self {
            bar,
            told: RefCell::default(),
        }
    }

    /// Shows nothing but [`Progress::note`].
    pub(crate) fn hidden() -> Self {
        Self {
            bar: None,
            told: RefCell::default(),
        }
    }

    /// What is being done now. `step` names it as long as it is the same; `text` may change more often.
    pub(crate) fn show(&self, step: &str, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.told.borrow_mut().is_news(step, text, Instant::now()) => note(text),
            None => {}
        }
    }

    /// What is wrong while a step goes on: a line that stays, whole, as soon as it is another one than before. Answers whether it is
    /// the first.
    fn remark(&self, text: Option<&str>) -> bool {
        let Some(text) = text else {
            return false;
        };
        let mut told = self.told.borrow_mut();
        let first = told.remark.is_empty();
        if told.remark != text {
            text.clone_into(&mut told.remark);
            self.note(text);
        }
        first
    }

    /// A line that stays, above the changing one.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Shows how the deploy of `service` goes on, for as long as it is polled.
    pub(crate) async fn follow(&self, api: &Api, service: &str) {
        let path = api.explain(service);
        let mut pulled = false;
        loop {
            // Whether the server is there is the business of whoever waits for the operation.
            if let Ok(explained) = api.get(&path).await
                && let Some((step, text, remark)) = step(&explained)
            {
                pulled |= explained["pull"]["layers"].as_u64().unwrap_or(0) > 0;
                // Between the last layer and the first instance nothing new is to be said.
                if !(pulled && text == RESOLVING) {
                    self.show(&step, &text);
                }
                if self.remark(remark.as_deref()) {
                    let until = match is_pull(&explained) {
                        true => until_pulled(),
                        false => {
                            let template = api.get(&api.service(service)).await.ok();
                            until_started(
                                template.as_ref().and_then(|s| probe_limit(&s["template"])),
                            )
                        }
                    };
                    self.note(&goes_on(service, &until));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The step a deploy is in, the line that tells of it, and what is wrong meanwhile.
fn step(explained: &Value) -> Option<(String, String, Option<String>)> {
    // The conditions speak of an older generation: of another deploy.
    if explained["observedGeneration"] != explained["generation"] {
        return None;
    }
    let number = |key: &str| explained["pull"][key].as_u64().unwrap_or(0);
    let (layers, ready) = (number("layers"), number("layersReady"));
    if layers > 0 {
        let (done, total) = (number("doneBytes"), number("totalBytes"));
        let text = if done < total {
            format!(
                "Pulling the image: {} of {}, {ready} of {layers} layers done",
                size(done),
                size(total)
            )
        } else {
            format!("Unpacking the image: {ready} of {layers} layers done")
        };
        let step = text.split(':').next().unwrap_or_default();
        return Some((format!("{step} {ready}"), text, None));
    }
    let unknown = |kind: &str| {
        let all = explained["conditions"].as_array()?;
        let found = all.iter().find(|c| c["type"] == kind)?;
        (found["status"] == "Unknown").then(|| found["message"].as_str().unwrap_or_default())
    };
    let all = explained["conditions"].as_array()?;
    let resolving = |c: &Value| c["status"] == "Unknown" && c["reason"] == "ResolvingDigests";
    let text = match (unknown("ConfigurationsReady"), unknown("RoutesReady")) {
        // Nothing of it is on its way yet, or what was tried before failed and is tried again.
        (Some(_), _) if all.iter().any(resolving) => match explained["trouble"].as_str() {
            Some(why) => return Some(slow("The image can't be pulled yet, trying again", why)),
            None => RESOLVING,
        },
        // The first sentence is what is waited for, the others what is wrong with it.
        (Some(message), _) => match message.split_once(". ") {
            Some((step, why)) => return Some(slow(step, why)),
            None => message.trim_end_matches('.'),
        },
        (None, Some(_)) => "Routing traffic",
        (None, None) => return None,
    };
    Some((text.to_owned(), text.to_owned(), None))
}

/// Said once of a deploy that waits although something is wrong: how long that goes on, and what who waits can do.
fn goes_on(service: &str, until: &str) -> String {
    format!(
        "The deploy goes on trying {until}. Ctrl-C ends this command and not the deploy; a new `utsuwa deploy {service}` takes its place."
    )
}

/// How long a program that doesn't answer is waited for; `limit`: the seconds that its startup probe gives it.
fn until_started(limit: Option<u64>) -> String {
    match limit {
        Some(seconds) => format!("up to {seconds} s after the container's start"),
        None => "for some minutes".to_owned(),
    }
}

/// How long a registry that doesn't answer is asked: a try that is under way is let finish.
fn until_pulled() -> String {
    format!(
        "for at least {} s; a try that fails after that is the last",
        utsuwa_control::revision::IMAGE_PATIENCE.as_secs()
    )
}

/// Whether the image is what a deploy waits for.
fn is_pull(explained: &Value) -> bool {
    explained["trouble"].is_string()
}

fn slow(step: &str, why: &str) -> (String, String, Option<String>) {
    (step.to_owned(), step.to_owned(), Some(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn explained(configurations: (&str, &str), routes: &str, pull: &Value) -> Value {
        json!({"generation": 2, "observedGeneration": 2, "pull": pull, "conditions": [
            {"type": "ConfigurationsReady", "status": configurations.0, "message": configurations.1},
            {"type": "RoutesReady", "status": routes, "message": "Traffic is not yet migrated."},
        ]})
    }

    /// A log of a build gets a line per some seconds of an upload, and each step that follows.
    #[test]
    fn a_long_step_is_told_now_and_then() {
        let (mut told, began) = (Told::default(), Instant::now());
        let lines: Vec<u64> = (0..200_u64)
            .filter(|tick| {
                let now = began + LOOK * u32::try_from(*tick).unwrap();
                told.is_news("upload", &format!("Uploading: {tick} MB"), now)
            })
            .collect();
        assert_eq!(lines, [0, 10, 30, 70, 150]);
        assert!(told.is_news("unpack", "Unpacking", began + LOOK * 200));
        assert!(
            !told.is_news("unpack", "Unpacking", began + LOOK * 900),
            "nothing new"
        );
    }

    /// Who knows what is wrong shall not wait for the end of it in silence.
    #[test]
    fn a_deploy_that_waits_in_vain_says_once_how_long_and_what_to_do() {
        let progress = Progress::hidden();
        assert!(!progress.remark(None));
        assert!(progress.remark(Some("The container listens on 127.0.0.1:8080.")));
        assert!(!progress.remark(Some("The container listens on 127.0.0.1:8080.")));
        assert!(!progress.remark(Some("The container listens on 127.0.0.1:8081.")));
        let said = goes_on("web", &until_started(Some(240)));
        for part in [
            "up to 240 s",
            "Ctrl-C",
            "not the deploy",
            "utsuwa deploy web",
        ] {
            assert!(said.contains(part), "{said}");
        }
        let said = goes_on("web", &until_pulled());
        assert!(
            said.contains(
                "goes on trying for at least 10 s; a try that fails after that is the last. Ctrl-C"
            ),
            "{said}"
        );
    }

    #[test]
    fn each_step_of_a_deploy_has_its_line() {
        let text = |e: &Value| step(e).map(|(_, text, _)| text);
        let remark = |e: &Value| step(e).and_then(|(.., remark)| remark);
        let pending = ("Unknown", "Starting the first instance.");
        let pull = json!({"layers": 3, "layersReady": 1, "totalBytes": 30_000_000, "doneBytes": 12_000_000});
        assert_eq!(
            text(&explained(pending, "Unknown", &pull)).as_deref(),
            Some("Pulling the image: 12.0 MB of 30.0 MB, 1 of 3 layers done")
        );
        let pull = json!({"layers": 3, "layersReady": 2, "totalBytes": 7, "doneBytes": 7});
        assert_eq!(
            text(&explained(pending, "Unknown", &pull)).as_deref(),
            Some("Unpacking the image: 2 of 3 layers done")
        );
        assert_eq!(
            text(&explained(pending, "Unknown", &Value::Null)).as_deref(),
            Some("Starting the first instance")
        );
        assert_eq!(
            text(&explained(("True", ""), "Unknown", &Value::Null)).as_deref(),
            Some("Routing traffic")
        );
        assert_eq!(text(&explained(("True", ""), "True", &Value::Null)), None);
        let mut refused = explained(pending, "Unknown", &Value::Null);
        refused["conditions"][0]["reason"] = json!("ResolvingDigests");
        assert_eq!(text(&refused).as_deref(), Some(RESOLVING));
        refused["trouble"] = json!("r.test: connection refused");
        assert_eq!(
            text(&refused).as_deref(),
            Some("The image can't be pulled yet, trying again")
        );
        assert_eq!(
            remark(&refused).as_deref(),
            Some("r.test: connection refused")
        );
        let elsewhere = (
            "Unknown",
            "Waiting for the container to listen on port 8080. The container listens on 0.0.0.0:5000.",
        );
        let elsewhere = explained(elsewhere, "Unknown", &Value::Null);
        assert_eq!(
            text(&elsewhere).as_deref(),
            Some("Waiting for the container to listen on port 8080")
        );
        assert_eq!(
            remark(&elsewhere).as_deref(),
            Some("The container listens on 0.0.0.0:5000.")
        );
        let mut old = explained(pending, "Unknown", &Value::Null);
        old["observedGeneration"] = json!(1);
        assert_eq!(text(&old), None, "of another deploy");
    }
}
