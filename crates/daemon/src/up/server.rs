//! The unprivileged server: joins store, runtime, loops, ingress and API, and keeps them until told to end.
//!
//! It ends as `leave` says; instances go on (the keeper has them).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_control::{Control, ControlSettings, Seams};
use utsuwa_ingress::{Ingress, IngressSettings};
use utsuwa_runtime::Driver;
use utsuwa_runtime::client::SandboxDriver;
use utsuwa_runtime::network::dns::{Resolver, ServerZone};
use utsuwa_runtime::network::{EgressRule, Forwards};
use utsuwa_store::{Settings, Store};

use super::certificates::{Registrar, Secured};
use super::connect::Dialer;
use super::descriptors;
use super::door::{Bell, Door};
use super::doors::{self, Doors};
use super::environment::Machine;
use super::given::OwnCertificates;
use super::images::{self, Images};
use super::insight::{Insight, Running};
use super::instance_logs::InstanceLogs;
use super::internal::{Directory, Inside, Until};
use super::journal::Journal;
use super::kept::Kept;
use super::leave::{Leave, Told, until_told};
use super::leaving::{Before, LEAVING};
use super::prepare::Ground;
use super::secure;
use crate::config::Layers;
use crate::output::waited;

/// The first sandbox of a fresh keeper takes some 100 ms; `ready` waits for it so that it is true, but no longer than this.
const POOL_PATIENCE: Duration = Duration::from_secs(2);
const POOL_LOOK: Duration = Duration::from_millis(10);
/// Sockets of sandboxes that wait to be served; a pool refills up to 16 at a time, up to 64.
const INTERNAL_EVENTS: usize = 64;

pub(super) async fn run(ground: Ground, layers: Layers, traffic: &Handle) -> anyhow::Result<()> {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let data = ground.config.data_dir.clone();
    let store = Store::open(&data.join("state")).context("open the database")?;
    ground.pid_file.write()?;
    let settings = frozen(&store, &ground, &layers).await?;

    let (internal, internal_events) = mpsc::channel(INTERNAL_EVENTS);
    let socket = ground.keeper.socket();
    let connected = SandboxDriver::connect(
        &socket,
        &ground.keeper.id,
        &ground.keeper.build,
        Some(internal),
    );
    let driver = waited("the keeper to answer", connected)
        .await
        .context("connect to the keeper")?;
    let (journal, journal_thread) =
        Journal::start(data.join("journal"), ground.journal).context("start the journal")?;

    let machine = Machine::begin();
    let bell = Bell::default();
    let shares = descriptors::share(ground.open_files);
    let shared: Arc<dyn Driver> = Arc::new(driver.clone());
    let on_its_own = traffic.enter();
    let ingress = open_ingress(&ground, &shares, &shared, &bell, &journal, machine);
    drop(on_its_own);
    let https = ground.config.listen_https.as_ref();
    let secured = (https.is_some())
        .then(|| secure::open(&data.join("keys"), &settings.domain, &ground.config))
        .transpose()?;
    if let Some(secured) = &secured {
        ingress.secure(Arc::clone(&secured.tls));
    }
    let stop = CancellationToken::new();
    let (place, written) = (CancellationToken::new(), CancellationToken::new());
    let (tracker, requests, open) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    let directory = Directory::default();
    let zone = ServerZone::new(
        &settings.domain,
        ground
            .egress
            .iter()
            .any(|r| matches!(r, EgressRule::Host { .. })),
    );
    let inside = Inside {
        driver: driver.clone(),
        ingress: ingress.clone(),
        https_port: https.map_or(0, |listen| listen.port),
        resolver: Arc::new(Resolver::new(Arc::new(zone))),
        journal: journal.clone(),
        directory: directory.clone(),
        forwards: Forwards::new(shares.forwards),
        open: open.clone(),
    };
    let until = Until {
        stop: stop.clone(),
        place: place.clone(),
        written: written.clone(),
    };
    // At once: the keeper tells of every sandbox there is, and nothing else comes through its connection until that was taken.
    requests.spawn(inside.run(internal_events, until));

    let images = images::open(&ground, &driver)?;
    images::trust_layers(&images).await?;
    utsuwa_api::proxy::ensure_ca(&data.join("keys"))
        .context("make the certificate authority for googleapis.com")?;
    let all = Images {
        images,
        store: store.clone(),
    };
    // Before the loops find what runs: an instance that a stream of the server before is in must not seem idle for a moment.
    let mut before = Before::new(data.join(LEAVING));
    if let Some(held) = before.look() {
        ingress.hold(held);
        tracker.spawn(before.follow(ingress.clone(), stop.clone()));
    }
    let started = Control::start(
        Seams {
            store: store.clone(),
            driver: Arc::clone(&shared),
            door: Arc::new(Door(ingress.clone())),
            images: Arc::new(all.clone()),
            logs: Arc::new(Kept {
                driver: driver.clone(),
                journal: journal.clone(),
                logs: data.join("logs"),
            }),
            certificates: Arc::new(Registrar(secured.clone())),
            env: Arc::new(machine),
        },
        control_settings(&ground, &settings),
    );
    let control = waited("what runs to be found again", started)
        .await
        .context("start the loops")?;
    bell.connect(control.clone());

    follow_certificates(&ground, secured, &tracker, &stop)?;
    let doors = Doors::open(&driver, &ground.config).await?;
    let api = doors.serve(&ingress, &requests, &stop);
    let ready = utsuwa_api::Readiness::default();
    let state = utsuwa_api::ApiState {
        store: store.clone(),
        insight: Arc::new(Insight {
            control: control.clone(),
            driver: Arc::clone(&shared),
            ingress: ingress.clone(),
            journal: journal.clone(),
        }),
        logs: Arc::new(InstanceLogs::new(
            data.join("logs"),
            journal.clone(),
            Arc::new(Running(directory.clone())),
        )),
        images: Arc::new(all.clone()),
        settings: settings.clone(),
        clock: Arc::new(machine),
        addresses: doors::addresses(&ground.config),
        keys_dir: data.join("keys"),
        configuration: Arc::new(doors::running(&layers, &ground.config, &settings)),
        host_dirs: Arc::new(ground.config.host_dirs.clone()),
        ready: ready.clone(),
        closing: CancellationToken::new(),
    };
    let api_stop = stop.clone();
    let mut api_task = tracker.spawn(utsuwa_api::serve(state, api, api_stop.cancelled_owned()));

    if let Some(why) = waited("the first sandbox", no_sandboxes(&driver)).await {
        tracing::warn!(%why, "no instance can be started now; it is tried again and again");
        crate::output::note(&format!("warning: no instance can be started now: {why}"));
    }
    ready.set(true);
    doors::announce(&ground, &settings);
    let (told, outcome) = tokio::select! {
        told = until_told(&driver) => (told?, Ok(())),
        error = until_gone(&mut api_task) => (Told::Broken("the API ended"), Err(error)),
    };
    tracing::info!(why = told.why(), "ending; instances go on");
    crate::output::line(&format!(
        "ending; instances and ports stay with the keeper; `{}` ends everything",
        doors::down_command(&layers, &ground.config)
    ));
    let leave = Leave {
        stop,
        place,
        written,
        ingress,
        driver,
        control,
        requests,
        open,
        api: tracker,
        images: all.images,
        store,
        journal,
        journal_thread,
        pid_file: ground.pid_file,
        folder: data.join(LEAVING),
        limit: ground.config.drain_timeout,
    };
    leave.run(told).await;
    outcome
}

/// The ingress with its share of the descriptors; it asks `bell` to wake what sleeps.
fn open_ingress(
    ground: &Ground,
    shares: &descriptors::Shares,
    driver: &Arc<dyn Driver>,
    bell: &Bell,
    journal: &Journal,
    machine: Machine,
) -> Ingress {
    Ingress::new(
        Arc::new(Dialer(Arc::clone(driver))),
        Arc::new(bell.clone()),
        Arc::new(journal.clone()),
        Arc::new(machine),
        IngressSettings {
            drain: ground.config.drain_timeout,
            max_connections: shares.public,
            max_connections_per_instance: shares.per_instance,
            max_instance_connections: shares.instances,
            max_requests: shares.public,
            max_instance_requests: shares.instances,
            max_idle: shares.idle,
            ..ground.config.ingress.clone()
        },
    )
}

fn control_settings(ground: &Ground, settings: &Settings) -> ControlSettings {
    let config = &ground.config;
    let mut of = ControlSettings::new(
        settings.project.clone(),
        settings.region.clone(),
        settings.domain.clone(),
        config.listen_http.port,
    );
    match &config.listen_https {
        Some(https) if config.https_redirect => {
            of.scheme = "https".to_owned();
            of.port = https.port;
        }
        https => of.also_https = https.as_ref().map(|listen| listen.port),
    }
    of.asks_authority = config.acme.is_some();
    of.public = secure::public_address(config);
    of.idle_timeout = config.idle_timeout;
    of.memory_reserve_bytes = config.memory_reserve;
    of.host_dirs.clone_from(&config.host_dirs);
    of
}

/// The operator's own certificates, read again whenever their file changes.
fn follow_certificates(
    ground: &Ground,
    secured: Option<Secured>,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let Some((path, secured)) = ground.config.certificates_file.as_ref().zip(secured) else {
        return Ok(());
    };
    let own = OwnCertificates::open(path, secured.tls)?;
    let stop = stop.clone();
    tracker.spawn(async move {
        if let Err(error) = own.follow(stop).await {
            tracing::error!(%error, "certificates are not read again when they change");
        }
    });
    Ok(())
}

/// The API serves until it is told to end. Why it ended before that: a server without it would look alive and obey nobody.
async fn until_gone<E>(api: &mut JoinHandle<Result<(), E>>) -> anyhow::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    match api.await {
        Ok(Ok(())) => anyhow!("serve the API: it ended by itself; this is a bug"),
        Ok(Err(error)) => anyhow::Error::new(error).context("serve the API"),
        Err(panicked) => anyhow::Error::new(panicked).context("serve the API"),
    }
}

/// Default project, region and domain never change after the first start (decision 13).
async fn frozen(store: &Store, ground: &Ground, layers: &Layers) -> anyhow::Result<Settings> {
    let wanted = crate::config::frozen::wanted(layers, &ground.config, store.settings().ok());
    store
        .freeze_settings(wanted)
        .await
        .context("compare project, region and domain with those this data directory was made for")
}

/// Why no sandbox can be made, if that is already known. A keeper that has just begun needs a moment to find out.
async fn no_sandboxes(driver: &SandboxDriver) -> Option<String> {
    let look = async {
        loop {
            let status = driver.status().await.ok()?;
            if status.sandboxes > 0 {
                return None;
            }
            if !status.pool_error.is_empty() {
                return Some(status.pool_error);
            }
            tokio::time::sleep(POOL_LOOK).await;
        }
    };
    tokio::time::timeout(POOL_PATIENCE, look).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_api_that_ends_is_noticed() {
        let broken = std::io::Error::other("keys/ca.pem: not a certificate");
        let tracker = TaskTracker::new();
        let mut failed = tracker.spawn(async move { Err::<(), _>(broken) });
        let why = format!("{:#}", until_gone(&mut failed).await);
        assert_eq!(why, "serve the API: keys/ca.pem: not a certificate");
        let mut ended = tracker.spawn(async { Ok::<(), std::io::Error>(()) });
        assert!(
            until_gone(&mut ended)
                .await
                .to_string()
                .contains("by itself")
        );
    }
}
