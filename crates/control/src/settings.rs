//! What the loops are told at their start.

use std::time::Duration;

use utsuwa_model::domain::PublicAddress;
use utsuwa_model::host_dir::HostDir;
use utsuwa_model::{ProjectId, Region};

/// Settings of the loops, by value (house rules §4.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlSettings {
    /// Domain of served hosts, e.g. `localhost`. Frozen in the data directory (decision 13).
    pub domain: String,
    /// Services of this project and region have short host names.
    pub project: ProjectId,
    pub region: Region,
    /// `http` or `https`, for the addresses that are shown.
    pub scheme: String,
    /// Port for the addresses that are shown; left out when it is the scheme's own.
    pub port: u16,
    /// Port of HTTPS where the addresses shown are plain HTTP; `None`: there is none beside them.
    pub also_https: Option<u16>,
    /// Where clients outside reach this server, for the records of domains.
    pub public: PublicAddress,
    /// Certificates of domains are asked for.
    pub asks_authority: bool,
    /// Idle time before the last instance stops, where the user wrote none (decision 19).
    pub idle_timeout: Duration,
    /// Time a program has between SIGTERM and SIGKILL (§2.8).
    pub stop_grace: Duration,
    /// Processes and threads an instance may have.
    pub pids: u32,
    /// Directories of the host that services may have.
    pub host_dirs: Vec<HostDir>,
    /// Memory that is never given to instances by a wake, so that the machine and the server keep breathing.
    pub memory_reserve_bytes: u64,
    /// How often everything is looked at without a cause.
    pub sweep: Duration,
    /// How often unneeded image content is collected.
    pub collect: Duration,
}

impl ControlSettings {
    /// The defaults for a server of `project` and `region` that serves `domain` over plain HTTP on `port`.
    #[must_use]
    pub fn new(project: ProjectId, region: Region, domain: impl Into<String>, port: u16) -> Self {
        Self {
            domain: domain.into(),
            project,
            region,
            scheme: "http".to_owned(),
            port,
            also_https: None,
            public: PublicAddress::default(),
            asks_authority: false,
            idle_timeout: Duration::from_secs(15 * 60),
            stop_grace: Duration::from_secs(10),
            pids: 2048,
            host_dirs: Vec::new(),
            memory_reserve_bytes: 128 << 20,
            sweep: Duration::from_secs(300),
            collect: Duration::from_secs(600),
        }
    }

    /// `http(s)://HOST[:PORT]`, no trailing slash.
    #[must_use]
    pub fn url(&self, host: &str) -> String {
        address(&self.scheme, host, self.port)
    }

    /// The same over HTTPS, where that is another one.
    #[must_use]
    pub fn other_url(&self, host: &str) -> Option<String> {
        self.also_https.map(|port| address("https", host, port))
    }
}

fn address(scheme: &str, host: &str, port: u16) -> String {
    let own = if scheme == "https" { 443 } else { 80 };
    if port == own {
        format!("{scheme}://{host}")
    } else {
        format!("{scheme}://{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_leave_out_the_usual_port() {
        let mut settings = ControlSettings::new(
            "demo".parse().unwrap(),
            "here".parse().unwrap(),
            "localhost",
            8080,
        );
        assert_eq!(settings.url("a.localhost"), "http://a.localhost:8080");
        settings.port = 80;
        assert_eq!(settings.url("a.localhost"), "http://a.localhost");
        settings.scheme = "https".to_owned();
        settings.port = 443;
        assert_eq!(settings.url("a.localhost"), "https://a.localhost");
    }
}
