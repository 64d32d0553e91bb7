//! A server under test, and what tests ask of it.

mod archive;
mod exchange;
mod kernel;
mod load;
mod registry;
mod roles;
pub(crate) mod tls;

pub(crate) use archive::{host_architecture, pack};
pub(crate) use exchange::{api_request, try_exchange};
pub(crate) use kernel::KernelObjects;
pub(crate) use load::{Count, Tally};
pub(crate) use registry::{PASSWORD, Registry};
pub(crate) use roles::Holding;

pub(crate) use crate::skip::skip;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where v2 lives for the default project and region.
pub(crate) const PARENT: &str = "/run/v2/projects/demo/locations/asia-northeast1";

/// Root and what the sandbox needs; otherwise the test is skipped by name.
pub(crate) fn can_run(test: &str) -> bool {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|o| o.stdout == b"0\n");
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Whether a program stands in for the processor, as under `tests/v2`: everything takes some twenty times as long.
pub(crate) fn emulated() -> bool {
    std::env::var_os("UTSUWA_TEST_EMULATED").is_some()
}

/// Waits for a state, never for a time: asks until `what` answers something.
pub(crate) fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A server of the test's own.
pub(crate) struct Server {
    child: Option<Child>,
    dir: tempfile::TempDir,
    /// Elsewhere than in its own directory.
    data: Option<PathBuf>,
    flags: Vec<String>,
    program: PathBuf,
    pub(crate) api: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    expected: Vec<String>,
    before: KernelObjects,
}

impl Server {
    /// Starts a server with more flags and waits for `ready`.
    pub(crate) fn start(more: &[&str]) -> Self {
        Self::start_as(Path::new(env!("CARGO_BIN_EXE_utsuwa")), more)
    }

    /// The same with another program in its place.
    pub(crate) fn start_as(program: &Path, more: &[&str]) -> Self {
        Self::start_with(program, None, more)
    }

    /// The same over a data directory of the test's choice.
    pub(crate) fn start_over(data: PathBuf, more: &[&str]) -> Self {
        Self::start_with(Path::new(env!("CARGO_BIN_EXE_utsuwa")), Some(data), more)
    }

    fn start_with(program: &Path, data: Option<PathBuf>, more: &[&str]) -> Self {
        let before = KernelObjects::count();
        let dir = tempfile::Builder::new()
            .prefix("utsuwa-e2e-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let mut server = Self {
            child: None,
            dir,
            data,
            flags: more.iter().map(|f| (*f).to_owned()).collect(),
            program: program.to_owned(),
            api: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
            https: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
            expected: Vec::new(),
            before,
        };
        server.up();
        server
    }

    /// Starts (again) over the same data directory.
    pub(crate) fn up(&mut self) -> Duration {
        let started = Instant::now();
        let mut child = self.spawn();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = Vec::new();
        for line in lines {
            let line = line.unwrap();
            if line == "ready" {
                self.child = Some(child);
                return started.elapsed();
            }
            seen.push(line);
        }
        panic!(
            "the server ended before it was ready ({:?}); it said {seen:?}\n{}",
            child.wait(),
            self.log()
        );
    }

    /// The program started over this data directory, not waited for.
    pub(crate) fn spawn(&self) -> Child {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        Command::new(&self.program)
            .arg("up")
            .args(["--data-dir", &self.data_dir().to_string_lossy()])
            .args([
                "--listen-api",
                &self.api.to_string(),
                "--listen-http",
                &self.http.to_string(),
                "--listen-https",
                &self.https.to_string(),
                "--log-format",
                "json",
            ])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Another build of the program for the next [`Server::up`].
    pub(crate) fn use_program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// The next [`Server::up`] is without the test's own flags.
    pub(crate) fn forget_flags(&mut self) {
        self.flags.clear();
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        let own = || self.dir.path().join("data");
        self.data.clone().unwrap_or_else(own)
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// SIGKILL to the server process alone, and reaps it.
    pub(crate) fn kill_9(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts the next server with `--replace` while the old one runs. Answers how the old one ended.
    pub(crate) fn replace(&mut self) -> std::process::ExitStatus {
        let mut old = self.replace_beside();
        until("the old server to end", Duration::from_secs(20), || {
            old.try_wait().unwrap()
        })
    }

    /// The same without waiting for the old one, which goes on as long as its streams.
    pub(crate) fn replace_beside(&mut self) -> Child {
        let old = self.child.take().unwrap();
        self.flags.push("--replace".to_owned());
        self.up();
        self.flags.pop();
        old
    }

    /// Waits for the server process to end by itself.
    pub(crate) fn wait_end(&mut self) {
        let mut child = self.child.take().unwrap();
        until("the old server to end", Duration::from_secs(20), || {
            child.try_wait().unwrap()
        });
    }

    /// The keeper's process id.
    pub(crate) fn keeper_pid(&self) -> Option<u32> {
        let ours = self.runtime_dir()?.to_string_lossy().into_owned();
        let is_keeper = |words: &[String]| {
            words.get(1..3) == Some(&["internal".into(), "keeper".into()][..])
                && words.iter().any(|w| w.contains(&ours))
        };
        processes()
            .into_iter()
            .find(|(_, words)| is_keeper(words))
            .map(|(pid, _)| pid)
    }

    /// A WARN or ERROR whose message contains `text` is expected in this test.
    pub(crate) fn expect_warning(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// Runs a command of the program's against this server.
    pub(crate) fn utsuwa(&self, args: &[&str]) -> Output {
        Command::new(&self.program)
            .args(args)
            .args(["--api", &format!("http://{}", self.api)])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The same, which must succeed; answers stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.utsuwa(args);
        assert!(
            output.status.success(),
            "utsuwa {args:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Deploys a public service by the command line.
    pub(crate) fn deploy(&self, name: &str, more: &[&str]) -> String {
        let mut args = vec!["deploy", name, "--allow-unauthenticated"];
        if !more.contains(&"--image") {
            args.extend(["--image", "utsuwa.local/hello"]);
        }
        args.extend(more);
        let printed = self.ok(&args);
        self.until_public(name);
        printed
    }

    /// Access is published a moment after it was accepted.
    pub(crate) fn until_public(&self, name: &str) {
        until("the service to be public", Duration::from_secs(10), || {
            (self.get(name, "/healthz-probe").0 != 403).then_some(())
        });
    }

    /// GET from a service by its host name.
    pub(crate) fn get(&self, name: &str, path: &str) -> (u16, String) {
        let (status, _, body) = self.request(
            name,
            &format!("GET {path} HTTP/1.1\r\nhost: {name}.localhost\r\nconnection: close\r\n\r\n"),
        );
        (status, body)
    }

    /// One raw exchange with the ingress: status, head, body.
    pub(crate) fn request(&self, name: &str, raw: &str) -> (u16, String, String) {
        try_exchange(self.http, raw).unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.log()))
    }

    /// What `--why` shows.
    pub(crate) fn explain(&self, name: &str) -> Value {
        self.api_get(&format!(
            "/utsuwa/v1/projects/demo/locations/asia-northeast1/services/{name}:explain"
        ))
        .1
    }

    /// Process ids (on the host) of the instances of a service.
    pub(crate) fn instance_pids(&self, name: &str) -> Vec<u64> {
        let explained = self.explain(name);
        explained["revisions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r["instances"].as_array())
            .flatten()
            .filter_map(|i| i["pid"].as_u64())
            .collect()
    }

    /// The instance of a service that has most to do: its id, and its process id on the host.
    pub(crate) fn busiest_instance(&self, name: &str) -> (String, u32) {
        until("an instance", Duration::from_secs(30), || {
            let explained = self.explain(name);
            let revisions = explained["revisions"].as_array().into_iter().flatten();
            let instances = revisions.filter_map(|revision| revision["instances"].as_array());
            let busiest = instances
                .flatten()
                .filter(|instance| instance["pid"].as_u64() > Some(0))
                .max_by_key(|instance| instance["inFlight"].as_u64())?;
            let pid = u32::try_from(busiest["pid"].as_u64()?).ok()?;
            Some((busiest["id"].as_str()?.to_owned(), pid))
        })
    }

    /// The state of each instance of a service, as `--why` shows it.
    pub(crate) fn instance_states(&self, name: &str) -> Vec<String> {
        let explained = self.explain(name);
        let revisions = explained["revisions"].as_array().into_iter().flatten();
        revisions
            .filter_map(|revision| revision["instances"].as_array())
            .flatten()
            .filter_map(|instance| instance["state"].as_str().map(str::to_owned))
            .collect()
    }

    pub(crate) fn until_instances(&self, name: &str, wanted: usize) {
        until(
            &format!("{name} to have {wanted} instances"),
            Duration::from_secs(60),
            || (self.instance_pids(name).len() == wanted).then_some(()),
        );
    }

    pub(crate) fn api_get(&self, path: &str) -> (u16, Value) {
        self.api_call("GET", path, &Value::Null)
    }

    /// What it counts, in Prometheus' text.
    pub(crate) fn metrics(&self) -> String {
        let head = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let (status, _, body) = try_exchange(self.api, head).unwrap();
        assert_eq!(status, 200, "{body}");
        body
    }

    pub(crate) fn api_call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, _, body) = try_exchange(self.api, &api_request(method, path, body)).unwrap();
        (
            status,
            serde_json::from_str(&body).unwrap_or_else(|_| json!({"text": body})),
        )
    }

    /// `utsuwa down`, then everything the kernel held for it must be gone and the log clean.
    pub(crate) fn finish(mut self) {
        self.take_down();
        self.before.assert_same();
        self.check_log();
    }

    /// The same for a server that ran beside another one: that one's pool changes meanwhile, so only its own finish counts.
    pub(crate) fn finish_beside(mut self) {
        self.take_down();
        self.check_log();
    }

    fn take_down(&mut self) {
        let down = self.run_down().unwrap();
        assert!(down.status.success(), "{}", self.told_of(&down));
        if self.child.is_some() {
            self.wait_end();
        }
    }

    fn run_down(&self) -> std::io::Result<Output> {
        Command::new(&self.program)
            .args(["down", "--data-dir"])
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .output()
    }

    /// All there is about a `down` that failed: nobody can look again.
    fn told_of(&self, down: &Output) -> String {
        let keeper = std::fs::read_to_string(self.data_dir().join("keeper.log"));
        format!(
            "utsuwa down: {}\n{}{}\nserver log:\n{}\nkeeper's messages:\n{}",
            down.status,
            String::from_utf8_lossy(&down.stdout),
            String::from_utf8_lossy(&down.stderr),
            self.log(),
            keeper.unwrap_or_else(|error| error.to_string())
        )
    }

    fn check_log(&self) {
        let unexpected: Vec<String> = self
            .log()
            .lines()
            .filter(|line| {
                line.contains("\"WARN\"")
                    || line.contains("\"ERROR\"")
                    || line.contains("panicked at")
            })
            .filter(|line| !self.expected.iter().any(|e| line.contains(e)))
            .map(str::to_owned)
            .collect();
        assert!(
            unexpected.is_empty(),
            "unexpected in the server's log:\n{}",
            unexpected.join("\n")
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After a failed test: leave nothing behind either.
        if self.child.is_some() || self.keeper_pid().is_some() {
            eprintln!("server log:\n{}", self.log());
            match self.run_down() {
                Ok(down) if down.status.success() => {}
                Ok(down) => eprintln!("{}", self.told_of(&down)),
                Err(error) => eprintln!("run utsuwa down: {error}"),
            }
            if let Some(mut child) = self.child.take() {
                drop(child.kill());
                drop(child.wait());
            }
        }
    }
}

/// Kills `pid`, which the test knows to be a process of the server it started.
pub(crate) fn kill_9(pid: u32) {
    assert!(
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// Every process: id and command line.
pub(crate) fn processes() -> Vec<(u32, Vec<String>)> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok())
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            Some((
                pid,
                line.split(|b| *b == 0)
                    .map(|w| String::from_utf8_lossy(w).into_owned())
                    .collect(),
            ))
        })
        .collect()
}
