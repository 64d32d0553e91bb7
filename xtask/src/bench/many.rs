//! Many services: 1,000 at zero against 10; 20 woken at once; 200 requests at once to one that sleeps.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::rest::{mib, pss_kib};
use super::server::Server;
use super::stats::{Series, table};
use super::{Settings, cold, http};

/// Deploys under way at once while a server is filled; what is measured afterwards is one after the other.
const DEPLOYERS: usize = 4;

/// Rounds of the three measurements; each begins with everything asleep.
const ROUNDS: usize = 8;
/// Samples a round: pages listed, services deployed, and first requests, which the ten services of the small server limit.
const LISTS: usize = 25;
const WHOLE: usize = 5;
const EACH: usize = 10;
const SETTLE: Duration = Duration::from_millis(50);

/// Both servers run side by side and are asked in turn, so that what else happens on the machine happens to both.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let mut few = Subject::start(settings, "few", EACH)?;
    let mut many = Subject::start(settings, "many", settings.many)?;
    for _ in 0..ROUNDS {
        few.until_asleep()?;
        many.until_asleep()?;
        in_turn(&mut few, &mut many, LISTS, |subject, _| subject.list())?;
        in_turn(&mut few, &mut many, WHOLE, |subject, _| {
            subject.list_default()
        })?;
        in_turn(&mut few, &mut many, EACH, Subject::deploy)?;
        few.forget_deployed()?;
        many.forget_deployed()?;
        in_turn(&mut few, &mut many, EACH, Subject::first)?;
    }
    let row = |what: &str, of: fn(&Subject) -> &Series| {
        let (a, b) = (of(&few), of(&many));
        let pair = |percent| (a.ms(percent), b.ms(percent));
        let (p50, p95) = (pair(50), pair(95));
        vec![
            what.to_owned(),
            a.len().to_string(),
            format!("{:.2} / {:.2}", p50.0, p95.0),
            format!("{:.2} / {:.2}", p50.1, p95.1),
            format!("{:.2}×", p50.1 / p50.0),
        ]
    };
    let memory = (few.memory()?, many.memory()?);
    let rows = vec![
        row("list (one page of 10)", |s| &s.list),
        row(
            "list (a page as large as it comes: 10 against 100 services)",
            |s| &s.page,
        ),
        row("deploy until it serves", |s| &s.deploy),
        row("first request to a sleeping service", |s| &s.first),
        vec![
            "server memory (PSS, MiB)".to_owned(),
            "1".to_owned(),
            format!("{:.2}", memory.0),
            format!("{:.2}", memory.1),
            format!("{:.2}×", memory.1 / memory.0),
        ],
    ];
    Ok(format!(
        "\n## {} services at zero against 10, both servers side by side (ms, p50 / p95; ratio of p50)\n{}",
        settings.many,
        table(&["", "n", "10", &settings.many.to_string(), "ratio"], &rows)
    ))
}

/// Asks both, `times` each; who is first changes every time.
fn in_turn(
    few: &mut Subject,
    many: &mut Subject,
    times: usize,
    ask: impl Fn(&mut Subject, usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for i in 0..times {
        // What the one before left to do (a sandbox to make again) isn't this one's.
        std::thread::sleep(SETTLE);
        let (one, other) = if i % 2 == 0 {
            (&mut *few, &mut *many)
        } else {
            (&mut *many, &mut *few)
        };
        ask(one, i)?;
        std::thread::sleep(SETTLE);
        ask(other, i)?;
    }
    Ok(())
}

/// One of the two servers, and what was measured of it.
struct Subject {
    server: Server,
    names: Vec<String>,
    list: Series,
    page: Series,
    deploy: Series,
    first: Series,
}

impl Subject {
    fn start(settings: &Settings, name: &str, count: usize) -> anyhow::Result<Self> {
        let server = Server::start(settings, name, &[])?;
        let names: Vec<String> = (0..count).map(|i| format!("many-{i}")).collect();
        let (started, before) = (Instant::now(), pss_kib(server.pid())?);
        deploy_all(&server, &names)?;
        crate::say(&format!(
            "{count} services deployed in {:.1} s, {DEPLOYERS} at once; the server has {:.0} MiB (PSS), {:.0} before",
            started.elapsed().as_secs_f64(),
            mib(pss_kib(server.pid())?),
            mib(before),
        ));
        Ok(Self {
            server,
            names,
            list: Series::default(),
            page: Series::default(),
            deploy: Series::default(),
            first: Series::default(),
        })
    }

    /// The last ones deployed are the last to sleep; looking at all of ten thousand would take longer than they do.
    fn until_asleep(&self) -> anyhow::Result<()> {
        let last = self.names.iter().rev().take(100);
        self.server.until_asleep(last.map(String::as_str))?;
        self.server
            .until_asleep(self.names.iter().take(EACH).map(String::as_str))
    }

    fn list(&mut self) -> anyhow::Result<()> {
        let took = self.list_with("?pageSize=10")?;
        self.list.push(took);
        Ok(())
    }

    fn list_default(&mut self) -> anyhow::Result<()> {
        let took = self.list_with("")?;
        self.page.push(took);
        Ok(())
    }

    fn list_with(&self, query: &str) -> anyhow::Result<Duration> {
        let path = format!("/run/v2/projects/demo/locations/asia-northeast1/services{query}");
        let started = Instant::now();
        let (status, _) = http::get(self.server.api, "localhost", &path)?;
        if status != 200 {
            bail!("list: {status}");
        }
        Ok(started.elapsed())
    }

    fn deploy(&mut self, i: usize) -> anyhow::Result<()> {
        let name = format!("more-{i}");
        let took = self
            .server
            .deploy(&name, "utsuwa.local/hello", "6s", "512Mi")?;
        self.deploy.push(took);
        Ok(())
    }

    /// Deletes what [`Self::deploy`] made, so that ten services stay ten.
    fn forget_deployed(&self) -> anyhow::Result<()> {
        (0..EACH).try_for_each(|i| self.server.delete(&format!("more-{i}")))
    }

    fn first(&mut self, i: usize) -> anyhow::Result<()> {
        self.first.push(self.server.call(&self.names[i], "/")?);
        Ok(())
    }

    fn memory(&self) -> anyhow::Result<f64> {
        Ok(mib(pss_kib(self.server.pid())?))
    }
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
