//! Stories: every `tests/scripts/*.txt` holds a scenario, a line `---`, and the story the decisions must tell.
//! `UPDATE=1 cargo test -p utsuwa-decide --test scripts` writes the stories anew; read the difference before committing it.
//!
//! A scenario is a list of lines (`#` starts a comment):
//! `startup 300ms`, `service 100ms`, `idle 15m`, `concurrency 80`, `min 1`, `max 2`, `percent 50`, `service-min 1`,
//! `service-max 4`, `manual 3`, `annotation NAME VALUE` set the stage (before `at`: from the start);
//! `tiers` has the story tell of freezing too, `cpu always` and `swap none` change what can be frozen and given back;
//! `at TIME arrivals N/s`, `at TIME burst N`, `at TIME unroute|route|crash`, `at TIME manual N` happen; `until TIME` ends it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![expect(
    clippy::disallowed_methods,
    reason = "the harness reads the script files; deciding itself does not"
)]

mod simulator;

use std::path::Path;
use std::time::Duration;

use simulator::Simulator;
use utsuwa_decide::settings::{parse_duration, scaling_settings};
use utsuwa_model::service::{Container, RevisionTemplate, ScalingMode, ServiceScaling};

struct Stage {
    template: RevisionTemplate,
    service: ServiceScaling,
    percent: u32,
    idle: Duration,
    startup: Duration,
    work: Duration,
    tiers: bool,
    swap: bool,
}

impl Stage {
    fn new() -> Self {
        Self {
            template: RevisionTemplate {
                containers: vec![Container::default()],
                ..RevisionTemplate::default()
            },
            service: ServiceScaling::default(),
            percent: 100,
            idle: Duration::from_secs(900),
            startup: Duration::from_millis(100),
            work: Duration::from_millis(100),
            tiers: false,
            swap: true,
        }
    }

    fn set(&mut self, words: &[&str]) {
        match words {
            ["startup", time] => self.startup = parse_duration(time).unwrap(),
            ["service", time] => self.work = parse_duration(time).unwrap(),
            ["idle", time] => self.idle = parse_duration(time).unwrap(),
            ["concurrency", n] => self.template.concurrency = Some(n.parse().unwrap()),
            ["min", n] => self.template.min_instances = Some(n.parse().unwrap()),
            ["max", n] => self.template.max_instances = Some(n.parse().unwrap()),
            ["percent", n] => self.percent = n.parse().unwrap(),
            ["service-min", n] => self.service.min = Some(n.parse().unwrap()),
            ["service-max", n] => self.service.max = Some(n.parse().unwrap()),
            ["manual", n] => {
                self.service.mode = ScalingMode::Manual;
                self.service.manual = Some(n.parse().unwrap());
            }
            ["tiers"] => self.tiers = true,
            ["cpu", "always"] => self.template.cpu_idle = Some(false),
            ["swap", "none"] => self.swap = false,
            ["annotation", name, value] => {
                self.template
                    .annotations
                    .insert((*name).to_owned(), (*value).to_owned());
            }
            _ => panic!("no such line: {words:?}"),
        }
    }

    fn settings(&self) -> utsuwa_model::scaling::ScalingSettings {
        scaling_settings(&self.template, &self.service, self.percent, self.idle)
    }
}

fn play(scenario: &str) -> String {
    let mut stage = Stage::new();
    let lines: Vec<Vec<&str>> = scenario
        .lines()
        .map(|line| {
            line.split('#')
                .next()
                .unwrap_or("")
                .split_whitespace()
                .collect::<Vec<_>>()
        })
        .filter(|words| !words.is_empty())
        .collect();
    for words in lines
        .iter()
        .filter(|words| !matches!(words[0], "at" | "until"))
    {
        stage.set(words);
    }
    let mut simulator = Simulator::new(stage.settings(), stage.startup, stage.work, 1);
    simulator.tell_tiers = stage.tiers;
    simulator.throttled = !stage.template.keeps_cpu();
    simulator.no_swap = (!stage.swap).then(|| "this host has no swap".to_owned());
    let mut until = None;
    for words in &lines {
        match &words[..] {
            ["until", time] => until = parse_duration(time),
            ["at", time, what @ ..] => {
                let at = parse_duration(time).unwrap_or_else(|| panic!("not a time: {time}"));
                match what {
                    ["arrivals", rate] => {
                        simulator.arrivals(at, rate.strip_suffix("/s").unwrap().parse().unwrap())
                    }
                    ["burst", n] => simulator.burst(at, n.parse().unwrap()),
                    ["unroute"] => simulator.route(at, false),
                    ["route"] => simulator.route(at, true),
                    ["crash"] => simulator.crash(at),
                    other => {
                        stage.set(other);
                        simulator.change(at, stage.settings());
                    }
                }
            }
            _ => {}
        }
    }
    simulator
        .run(until.expect("a scenario ends with `until`"))
        .unwrap_or_else(|broken| panic!("{broken:?}"));
    let mut story = simulator.story.join("\n");
    story.push('\n');
    story.push_str(&simulator.summary());
    story.push('\n');
    story
}

#[test]
fn every_script_tells_its_story() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 8, "the scripts are there");
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (scenario, expected) = text.split_once("---\n").unwrap_or((&text, ""));
        let story = play(scenario);
        if update {
            std::fs::write(&file, format!("{scenario}---\n{story}")).unwrap();
        } else if story != expected {
            wrong.push(format!(
                "{}\n--- expected\n{expected}--- told\n{story}",
                file.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
