//! Starts prepared ahead, side by side with the bare process and with a start as always.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};

use super::Settings;
use super::cold::image_of;
use super::http;
use super::peers::{App, Peer};
use super::programs::apps;
use super::server::Server;
use super::stats::{Series, table};

/// Before each start, of everybody.
const SETTLE: Duration = Duration::from_millis(50);
/// Services that are asleep at the same time: each has some tens of megabytes parked.
const TOGETHER: usize = 10;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let mut report = String::from("\n## Starts prepared ahead (ms)\n");
    for app in apps(settings, &mut report)?
        .iter()
        .filter(|app| !app.is_static)
    {
        report.push_str(&one(settings, app)?);
    }
    Ok(report)
}

/// In turns, so that all have the same hour.
fn one(settings: &Settings, app: &App) -> anyhow::Result<String> {
    let server = Server::start(settings, "zygote", &[])?;
    let image = image_of(app, &server)?;
    let together = TOGETHER.min(settings.rounds);
    let deploy = |kind: &str, ahead: bool| -> anyhow::Result<Vec<String>> {
        let names: Vec<String> = (0..together).map(|i| format!("{kind}-{i}")).collect();
        for name in &names {
            server.deploy_template(name, &template(&image, ahead))?;
            server.call(name, app.path)?;
        }
        Ok(names)
    };
    let (plain, ahead) = (deploy("plain", false)?, deploy("ahead", true)?);
    let (mut bare, mut cold, mut zygote) =
        (Series::default(), Series::default(), Series::default());
    for _ in 0..settings.rounds.div_ceil(together) {
        server.until_asleep(plain.iter().chain(&ahead).map(String::as_str))?;
        until_parked(&server, &ahead)?;
        for (plain, ahead) in plain.iter().zip(&ahead) {
            std::thread::sleep(SETTLE);
            bare.push(Peer::Bare.start(app, &settings.work)?);
            std::thread::sleep(SETTLE);
            cold.push(server.call(plain, app.path)?);
            std::thread::sleep(SETTLE);
            zygote.push(server.call(ahead, app.path)?);
        }
    }
    let base = bare.ms(50);
    let row = |name: &str, samples: &Series| {
        vec![
            name.to_owned(),
            format!("{:.2}", samples.ms(50)),
            format!("{:.2}", samples.ms(95)),
            format!("{:.2}", samples.ms(99)),
            format!("{:.3}×", samples.ms(50) / base),
            samples.len().to_string(),
        ]
    };
    let rows = [
        row("bare process", &bare),
        row("utsuwa, as always", &cold),
        row("utsuwa, prepared ahead", &zygote),
    ];
    let head = ["", "p50", "p95", "p99", "p50 ÷ bare", "n"];
    Ok(format!("\n### {}\n{}", app.name, table(&head, &rows)))
}

fn template(image: &str, ahead: bool) -> Value {
    json!({
        "annotations": {"autoscaling.knative.dev/window": "6s", "utsuwa.local/zygote": ahead.to_string()},
        "containers": [{"image": image, "resources": {"limits": {"memory": "512Mi", "cpu": "1"}, "cpuIdle": true, "startupCpuBoost": true}}],
    })
}

/// Until each has one that waits.
fn until_parked(server: &Server, names: &[String]) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for name in names {
        let path =
            format!("/utsuwa/v1/projects/demo/locations/asia-northeast1/services/{name}:explain");
        loop {
            let explained = http::get(server.api, "localhost", &path)?.1;
            if explained.contains("zygote: 1 of 1 parked") {
                break;
            }
            if Instant::now() > deadline {
                bail!("nothing is parked for {name}: {explained}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}
