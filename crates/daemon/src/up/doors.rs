//! The listening sockets: had from the keeper, told of, served. And the queue through which idle connections go from server to
//! server, which the keeper holds like them.

use std::os::fd::OwnedFd;

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_ingress::{Ingress, Scheme};
use utsuwa_runtime::client::SandboxDriver;
use utsuwa_store::Settings;

use super::ports::addresses_here;
use super::prepare::Ground;
use crate::config::{Config, Layers, Listen, Source};

/// Under these names the keeper holds the two ends of the queue of idle connections.
const QUEUE: [(&str, &str); 2] = [("idle", "in"), ("idle", "out")];

/// All sockets that clients connect to.
pub(super) struct Doors {
    /// Where this server puts idle connections when it leaves, and where those of the one before are.
    idle: (OwnedFd, OwnedFd),
    http: Vec<TcpListener>,
    https: Vec<TcpListener>,
    api: Vec<TcpListener>,
}

impl Doors {
    /// Has the keeper open what is configured, and close what is not any more.
    pub(super) async fn open(driver: &SandboxDriver, config: &Config) -> anyhow::Result<Self> {
        let http = listen(driver, "http", &config.listen_http, "--listen-http").await?;
        let https = match &config.listen_https {
            Some(https) => listen(driver, "https", https, "--listen-https").await?,
            None => Vec::new(),
        };
        let api = listen(driver, "api", &config.listen_api, "--listen-api").await?;
        let keep: Vec<(String, String)> = [("http", &http), ("https", &https), ("api", &api)]
            .into_iter()
            .flat_map(|(name, all)| {
                all.iter()
                    .filter_map(move |l| Some((name.to_owned(), l.local_addr().ok()?.to_string())))
            })
            .chain(QUEUE.map(|(name, end)| (name.to_owned(), end.to_owned())))
            .collect();
        let idle = queue(driver).await?;
        driver
            .retain_listeners(&keep)
            .await
            .context("let go of addresses no longer listened on")?;
        Ok(Self {
            idle,
            http,
            https,
            api,
        })
    }

    /// Serves what leads to services until `stop`; answers the API's sockets.
    pub(super) fn serve(
        self,
        ingress: &Ingress,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Vec<TcpListener> {
        let (leaving, coming) = self.idle;
        ingress.hand_over(leaving);
        let listens = self.http.iter().filter_map(|l| l.local_addr().ok());
        let (handed, listens, until) = (ingress.clone(), listens.collect(), stop.clone());
        let serving = async move {
            if let Err(error) = handed.serve_handed(coming, listens, until).await {
                tracing::warn!(%error, "watch the queue of idle connections; those of the server before stand still");
            }
        };
        tracker.spawn_on(serving, ingress.runtime());
        for (scheme, listeners) in [(Scheme::Http, self.http), (Scheme::Https, self.https)] {
            for listener in listeners {
                let (ingress, stop) = (ingress.clone(), stop.clone());
                let runtime = ingress.runtime().clone();
                tracker.spawn_on(
                    async move { ingress.serve(listener, scheme, stop).await },
                    &runtime,
                );
            }
        }
        self.api
    }
}

/// The keeper's queue of idle connections: made by the first server.
async fn queue(driver: &SandboxDriver) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let [into, out] = QUEUE;
    let held = (
        driver.take_listener(into.0, into.1).await?,
        driver.take_listener(out.0, out.1).await?,
    );
    if let (Some(into), Some(out)) = held {
        return Ok((into, out));
    }
    let ends = utsuwa_ingress::queue().context("make the queue of idle connections")?;
    driver.give_listener(into.0, into.1, &ends.0).await?;
    driver.give_listener(out.0, out.1, &ends.1).await?;
    Ok(ends)
}

/// The keeper's sockets for an address; both loopbacks for `localhost`, where the machine has both.
async fn listen(
    driver: &SandboxDriver,
    name: &str,
    listen: &Listen,
    flag: &str,
) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses_here(listen) {
        let socket = driver
            .listen(name, &address.to_string())
            .await
            .map_err(|error| anyhow!("{error}; name another address with {flag}"))?;
        let socket = std::net::TcpListener::from(socket);
        socket
            .set_nonblocking(true)
            .context("prepare a listening socket")?;
        listeners.push(TcpListener::from_std(socket).context("watch a listening socket")?);
    }
    Ok(listeners)
}

/// The configuration in force: what was read, with the ports that were chosen, what the data directory is made for, and a data
/// directory that means the same wherever it is read.
pub(super) fn running(
    layers: &Layers,
    config: &Config,
    settings: &Settings,
) -> Vec<serde_json::Value> {
    let mut rows = layers.rows();
    for (option, frozen) in [
        ("project", settings.project.as_str()),
        ("region", settings.region.as_str()),
        ("domain", &settings.domain),
    ] {
        for row in rows.iter_mut().filter(|row| row["option"] == option) {
            if row["value"] != frozen {
                row["value"] = frozen.into();
                row["source"] = "data directory (first start)".into();
            }
        }
    }
    let https = config.listen_https.as_ref();
    for (option, listen) in [
        ("listen-api", Some(&config.listen_api)),
        ("listen-http", Some(&config.listen_http)),
        ("listen-https", https),
    ] {
        for row in rows.iter_mut().filter(|row| row["option"] == option) {
            row["value"] = listen.map_or_else(String::new, Listen::to_string).into();
        }
    }
    let data = std::path::absolute(&config.data_dir);
    let data = data.as_deref().unwrap_or(&config.data_dir);
    for row in rows.iter_mut().filter(|row| row["option"] == "data-dir") {
        row["value"] = data.display().to_string().into();
    }
    rows
}

/// One line per address on stdout, then `ready`.
pub(super) fn announce(ground: &Ground, settings: &Settings) {
    crate::output::line(&format!("api       http://{}", ground.config.listen_api));
    crate::output::line(&format!(
        "services  http://NAME.{}:{}",
        settings.domain, ground.config.listen_http.port
    ));
    if let Some(https) = &ground.config.listen_https {
        crate::output::line(&format!(
            "          https://NAME.{}:{}",
            settings.domain, https.port
        ));
    }
    crate::output::line("ready");
    tracing::info!(
        api = %ground.config.listen_api, http = %ground.config.listen_http, https = ground.config.listen_https.as_ref().map(tracing::field::display),
        project = %settings.project, region = %settings.region,
        user = %ground.user.shown, open_files = ground.open_files, "ready"
    );
}

/// What ends all of this server: with the data directory, unless whoever types finds that by themselves.
pub(super) fn down_command(layers: &Layers, config: &Config) -> String {
    match layers.source("data-dir") {
        Source::Default => "utsuwa down".to_owned(),
        _ => crate::cli::down_command(&config.data_dir),
    }
}

/// What the API tells of where it and services are reached.
pub(super) fn addresses(config: &Config) -> utsuwa_api::Addresses {
    utsuwa_api::Addresses {
        api: vec![format!("http://{}", config.listen_api)],
        http: vec![format!("http://{}", config.listen_http)],
        https: (config.listen_https.iter())
            .map(|https| format!("https://{https}"))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Given;

    use super::*;

    #[test]
    fn what_ends_a_server_names_its_directory_unless_that_is_found_anyway() {
        let told = |given: &Given| {
            let layers = Layers::read(given).unwrap();
            down_command(&layers, &layers.check().unwrap())
        };
        let mut given = Given::default();
        assert_eq!(told(&given), "utsuwa down");
        given
            .variables
            .insert("UTSUWA_DATA_DIR".to_owned(), "/srv/a".to_owned());
        assert_eq!(told(&given), "utsuwa down --data-dir /srv/a");
        given
            .flags
            .insert("data-dir", vec!["/srv/my own".to_owned()]);
        assert_eq!(told(&given), "utsuwa down --data-dir '/srv/my own'");
    }
}
