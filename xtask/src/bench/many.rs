//! Many services: 1,000 at zero against 10; 20 woken at once; 200 requests at once to one that sleeps.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::rest::{mib, pss_kib};
use super::server::Server;
use super::stats::{Series, table};
use super::{Settings, cold, http};

/// Deploys under way at once while a server is filled; what is measured afterwards is one after the other.
const DEPLOYERS: usize = 4;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let few = with_services(settings, 10)?;
    let many = with_services(settings, settings.many)?;
    let row = |what: &str, a: f64, b: f64| {
        vec![
            what.to_owned(),
            format!("{a:.2}"),
            format!("{b:.2}"),
            format!("{:.2}×", b / a),
        ]
    };
    let rows = vec![
        row("list (one page of 10)", few.list, many.list),
        row("deploy until it serves", few.deploy, many.deploy),
        row("first request to a sleeping service", few.first, many.first),
        row("server memory (PSS, MiB)", few.memory, many.memory),
    ];
    Ok(format!(
        "\n## {} services at zero against 10 (ms, p50)\n{}",
        settings.many,
        table(&["", "10", &settings.many.to_string(), "ratio"], &rows)
    ))
}

struct Figures {
    list: f64,
    deploy: f64,
    first: f64,
    memory: f64,
}

fn with_services(settings: &Settings, count: usize) -> anyhow::Result<Figures> {
    let server = Server::start(settings, "many", &[])?;
    let names: Vec<String> = (0..count).map(|i| format!("many-{i}")).collect();
    let (started, before) = (Instant::now(), pss_kib(server.pid())?);
    deploy_all(&server, &names)?;
    crate::say(&format!(
        "{count} services deployed in {:.1} s, {DEPLOYERS} at once; the server has {:.0} MiB (PSS), {:.0} before",
        started.elapsed().as_secs_f64(),
        mib(pss_kib(server.pid())?),
        mib(before),
    ));
    server.until_asleep(names.iter().rev().take(100).map(String::as_str))?;
    let (mut list, mut deploy, mut first) =
        (Series::default(), Series::default(), Series::default());
    for _ in 0..20 {
        let started = Instant::now();
        let (status, _) = http::get(
            server.api,
            "localhost",
            "/run/v2/projects/demo/locations/asia-northeast1/services?pageSize=10",
        )?;
        if status != 200 {
            bail!("list: {status}");
        }
        list.push(started.elapsed());
    }
    for i in 0..10 {
        deploy.push(server.deploy(&format!("more-{i}"), "utsuwa.local/hello", "6s", "512Mi")?);
    }
    for name in names.iter().take(10) {
        first.push(server.call(name, "/")?);
    }
    Ok(Figures {
        list: list.ms(50),
        deploy: deploy.ms(50),
        first: first.ms(50),
        memory: mib(pss_kib(server.pid())?),
    })
}

/// Several at once: ten thousand one after the other would take most of the time waiting.
fn deploy_all(server: &Server, names: &[String]) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..DEPLOYERS)
            .map(|first| {
                scope.spawn(move || -> anyhow::Result<()> {
                    for name in names.iter().skip(first).step_by(DEPLOYERS) {
                        server.deploy(name, "utsuwa.local/hello", "6s", "512Mi")?;
                    }
                    Ok(())
                })
            })
            .collect();
        for running in running {
            running
                .join()
                .map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        Ok(())
    })
}

pub(crate) fn twenty(settings: &Settings) -> anyhow::Result<String> {
    let server = Server::start(settings, "twenty", &[])?;
    let names: Vec<String> = (0..20).map(|i| format!("wake-{i}")).collect();
    for name in &names {
        server.deploy(name, "utsuwa.local/hello", "6s", "512Mi")?;
        cold::warm_up(&server, name, "/")?;
    }
    server.until_asleep(names.iter().map(String::as_str))?;
    let started = Instant::now();
    let each: Vec<Duration> = std::thread::scope(|scope| {
        let calls: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| server.call(name, "/")))
            .collect();
        calls
            .into_iter()
            .map(|call| {
                call.join()
                    .map_err(|_| anyhow::anyhow!("a caller panicked"))?
            })
            .collect::<anyhow::Result<_>>()
    })?;
    let last = started.elapsed();
    let mut series = Series::default();
    each.into_iter().for_each(|d| series.push(d));

    let (answers, instances) = two_hundred(&server)?;
    Ok(format!(
        "\n## 20 sleeping services woken at once\nlast answer after {:.1} ms (Knative on the reference machine: 6,600); p50 {:.1} ms\n\
         \n## 200 requests at once to a sleeping service, concurrency 80, max 2\n{answers} answered 200, at most {instances} instances\n",
        last.as_secs_f64() * 1000.0,
        series.ms(50)
    ))
}

fn two_hundred(server: &Server) -> anyhow::Result<(usize, usize)> {
    let template = serde_json::json!({
        "annotations": {"autoscaling.knative.dev/window": "6s"},
        "maxInstanceRequestConcurrency": 80, "scaling": {"maxInstanceCount": 2},
        "containers": [{"image": "utsuwa.local/hello"}]});
    server.deploy_template("burst", &template)?;
    server.until_asleep(std::iter::once("burst"))?;
    let mut most = 0;
    let answered = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..200)
            .map(|_| scope.spawn(|| server.call("burst", "/sleep?ms=200").is_ok()))
            .collect();
        while !calls.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            most = most.max(server.instances("burst").map_or(0, |all| all.len()));
        }
        calls
            .into_iter()
            .filter_map(|c| c.join().ok())
            .filter(|ok| *ok)
            .count()
    });
    Ok((answered, most))
}
