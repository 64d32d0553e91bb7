//! Starts and stops per second, and what they leave behind.
//!
//! Ours: through the keeper, as the server does it, with a driver of this program in the server's place: start, until the app
//! answers over HTTP, stop, until nothing is left of it. The peers run the same program, which ends at once there: they need not
//! reach it nor stop it. As many loops side by side for everybody.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{InstanceSpec, Kernel, Limits, ProcessSpec, RootfsSpec};
use utsuwa_model::quantity::{MemoryBytes, MilliCpu};
use utsuwa_runtime::client::SandboxDriver;
use utsuwa_runtime::{Driver, InstanceEvent};

use super::kernel::Counts;
use super::peers::{App, Peer, load_into_podman};
use super::server::Server;
use super::stats::{Series, table};
use super::{Settings, programs};

/// Loops side by side for each processor: while one waits for the kernel, the other works.
const LOOPS_PER_CPU: usize = 2;
/// Before counting: after so much work the pool is as large as it gets, and after so much rest full again.
const WARM_UP: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_secs(12);
/// The kernel frees namespaces in the background, and the pool lets go of one sandbox in ten seconds.
const BACK: Duration = Duration::from_secs(40);
/// How long the peers run.
const PEERS: Duration = Duration::from_secs(20);
/// Longest wait for an app to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ids of the users inside. The server is not there any more and gives none away.
const UID_BASE: u32 = 0x3000_0000;
const PORT: u16 = 8080;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let loops = cpus * LOOPS_PER_CPU;
    let mut rows = Vec::new();
    let mut row = |name: &str, cycles: usize, took: Duration, p50: f64| {
        #[expect(clippy::cast_precision_loss, reason = "a rate with one decimal")]
        let rate = cycles as f64 / took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate with one decimal")]
        let each = rate / cpus as f64;
        rows.push(vec![
            name.to_owned(),
            format!("{rate:.1}"),
            format!("{each:.1}"),
            format!("{p50:.1}"),
            cycles.to_string(),
            format!("{:.0}", took.as_secs_f64()),
        ]);
    };
    let (ours, took, said) = ours(settings, loops)?;
    let mut report = format!("\n## Starts and stops per second\n{said}\n");
    // Shown at once: a later failure must not hide what was measured.
    crate::say(&report);
    row(
        "utsuwa: start, answer, stop",
        ours.all.len(),
        took,
        ours.all.ms(50),
    );
    let app = ending(programs::hello(settings)?);
    for peer in Peer::ALL {
        if !peer.available() {
            continue;
        }
        match peers(settings, peer, &app, loops) {
            Ok((series, took)) => row(peer.name(), series.len(), took, series.ms(50)),
            Err(error) => crate::say(&format!("{} can't run: {error:#}", peer.name())),
        }
    }
    let head = ["", "per s", "per s and CPU", "p50 ms", "n", "s"];
    let table = format!(
        "{}of a cycle of ours, p50: start {:.1} ms, answer {:.1} ms, stop {:.1} ms\n",
        table(&head, &rows),
        ours.start.ms(50),
        ours.answer.ms(50),
        ours.stop.ms(50),
    );
    crate::say(&table);
    report.push_str(&table);
    Ok(report)
}

/// hello, made to end as soon as it started.
fn ending(mut app: App) -> App {
    app.env.push("HELLO_START=exit:0".to_owned());
    app.env.push(format!("PORT={PORT}"));
    app
}

#[derive(Debug, Default)]
struct Cycles {
    all: Series,
    start: Series,
    answer: Series,
    stop: Series,
}

impl Cycles {
    fn add(&mut self, other: &Self) {
        self.all.append(&other.all);
        self.start.append(&other.start);
        self.answer.append(&other.answer);
        self.stop.append(&other.stop);
    }
}

fn ours(settings: &Settings, loops: usize) -> anyhow::Result<(Cycles, Duration, String)> {
    let mut server = Server::start(settings, "rate", &[])?;
    server.deploy("rate", "utsuwa.local/hello", "6s", "128Mi")?;
    server.until_asleep(std::iter::once("rate"))?;
    server.kill_only_the_server()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let id = utsuwa_runtime::keeper::data_id(&server.data)?;
    let layers = layers(&server.data)?;
    let driver = runtime.block_on(async {
        let socket = utsuwa_runtime::keeper::socket_path(&id);
        let driver = SandboxDriver::connect(&socket, &id, "bench", None).await?;
        let rootfs = RootfsSpec {
            layers: layers.clone(),
            uid_base: UID_BASE,
        };
        driver.prepare(rootfs).await?;
        anyhow::Ok(driver)
    })?;
    let churn = Arc::new(Churn {
        driver,
        layers,
        next: AtomicU64::new(1),
    });
    runtime.spawn(acknowledge(Arc::clone(&churn)));
    runtime.block_on(cycles(&churn, loops, WARM_UP))?;
    std::thread::sleep(REST);
    let before = Counts::take(settings, &server)?;
    let (done, took) =
        runtime.block_on(cycles(&churn, loops, Duration::from_secs(settings.seconds)))?;
    let after = before.until_back(settings, &server, BACK)?;
    let verdict = if after.exceeds(&before) {
        "LEFT BEHIND"
    } else {
        "nothing left behind"
    };
    let said = format!(
        "{} starts and stops in {:.1} s, {loops} side by side; {verdict}: before {before}; after {after}",
        done.all.len(),
        took.as_secs_f64(),
    );
    Ok((done, took, said))
}

/// Of the only image in the store.
fn layers(data: &Path) -> anyhow::Result<Vec<String>> {
    let folder = data.join("images/layers");
    let names = std::fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .flatten()
        .map(|entry| format!("sha256:{}", entry.file_name().to_string_lossy()));
    Ok(names.collect())
}

struct Churn {
    driver: SandboxDriver,
    layers: Vec<String>,
    next: AtomicU64,
}

/// As the server does once an end is written down.
async fn acknowledge(churn: Arc<Churn>) {
    let mut events = churn.driver.events();
    loop {
        match events.recv().await {
            Ok(InstanceEvent::Exited { id, .. }) => {
                // What is not acknowledged is seen among what is left behind.
                drop(churn.driver.acknowledge(&id).await);
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// `loops` side by side for `duration`; what they did, and how long it took to the end of the last.
async fn cycles(
    churn: &Arc<Churn>,
    loops: usize,
    duration: Duration,
) -> anyhow::Result<(Cycles, Duration)> {
    let began = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..loops {
        let churn = Arc::clone(churn);
        running.spawn(async move {
            let mut done = Cycles::default();
            while began.elapsed() < duration {
                one(&churn, &mut done).await?;
            }
            anyhow::Ok(done)
        });
    }
    let mut all = Cycles::default();
    while let Some(done) = running.join_next().await {
        all.add(&done??);
    }
    Ok((all, began.elapsed()))
}

async fn one(churn: &Churn, done: &mut Cycles) -> anyhow::Result<()> {
    let number = churn.next.fetch_add(1, Ordering::Relaxed);
    let id: InstanceId = format!("{number:032x}").parse()?;
    let began = Instant::now();
    churn
        .driver
        .start(InstanceSpec {
            id: id.clone(),
            revision: "demo/asia-northeast1/rate/rate-00001-abc".parse()?,
            rootfs: RootfsSpec {
                layers: churn.layers.clone(),
                uid_base: UID_BASE,
            },
            process: ProcessSpec {
                args: vec!["/hello".to_owned()],
                env: vec![format!("PORT={PORT}")],
                cwd: String::new(),
                user: String::new(),
            },
            limits: Limits {
                cpu: MilliCpu(1000),
                memory: MemoryBytes(128 << 20),
                pids: 64,
            },
            port: PORT,
            volumes: Vec::new(),
            host_dirs: Vec::new(),
            kernel: Kernel::Host,
            group: None,
            zygote: None,
        })
        .await
        .with_context(|| format!("start {number}"))?;
    let started = began.elapsed();
    answered(&churn.driver, &id)
        .await
        .with_context(|| format!("reach {number}"))?;
    let reached = began.elapsed();
    churn
        .driver
        .stop(id, PATIENCE)
        .await
        .with_context(|| format!("stop {number}"))?;
    let all = began.elapsed();
    done.start.push(started);
    done.answer.push(reached.saturating_sub(started));
    done.stop.push(all.saturating_sub(reached));
    done.all.push(all);
    Ok(())
}

/// Asks until the app answers 200, as the ingress does: a socket in the instance's network, given back while nobody listens.
async fn answered(driver: &SandboxDriver, id: &InstanceId) -> anyhow::Result<()> {
    const EVERY: Duration = Duration::from_micros(150);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (socket, address) = driver.socket(id).await?;
        let kept = socket.try_clone()?;
        let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        match socket.connect(address).await {
            Ok(mut stream) => {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    .await?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await?;
                if answer.starts_with(b"HTTP/1.1 200 ") {
                    return Ok(());
                }
                bail!("answered {}", String::from_utf8_lossy(&answer));
            }
            Err(_refused) if Instant::now() < deadline => driver.give_back(id, kept),
            Err(error) => return Err(error).context("nothing listens"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The same program by a peer, `loops` side by side.
fn peers(
    settings: &Settings,
    peer: Peer,
    app: &App,
    loops: usize,
) -> anyhow::Result<(Series, Duration)> {
    if peer == Peer::Podman {
        load_into_podman(app)?;
    }
    let began = Instant::now();
    let mut all = Series::default();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let running: Vec<_> = (0..loops)
            .map(|number| {
                scope.spawn(move || -> anyhow::Result<Series> {
                    let name = format!("utsuwa-rate-{}-{number}", std::process::id());
                    let mut command = peer.to_the_end(app, &settings.work, &name)?;
                    let mut series = Series::default();
                    while began.elapsed() < PEERS {
                        let started = Instant::now();
                        let ended = command.output()?;
                        if !ended.status.success() {
                            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
                            bail!("{}: {}", ended.status, said.trim());
                        }
                        series.push(started.elapsed());
                    }
                    Ok(series)
                })
            })
            .collect();
        for running in running {
            let series = running
                .join()
                .map_err(|_| anyhow::anyhow!("a loop panicked"))??;
            all.append(&series);
        }
        Ok(())
    })?;
    Ok((all, began.elapsed()))
}
