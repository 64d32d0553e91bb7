//! A whole server in one process, joined as `server` joins it: API, store, loops, ingress. Only the containers are pretended;
//! what runs in them is the app of [`Stage`], on a loopback address for each instance.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use utsuwa_control::{Control, ControlHandle, ControlSettings, Seams};
use utsuwa_ingress::{Ingress, IngressSettings, Scheme};
use utsuwa_model::demand::{Reach, RevisionDemand};
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};
use utsuwa_runtime::Driver;
use utsuwa_runtime::fake::FakeDriver;
use utsuwa_store::{Settings, Store};

use super::super::certificates::Registrar;
use super::super::connect::Dialer;
use super::super::door::{Bell, Door};
use super::super::environment::Machine;
use super::super::insight::{Insight, Running};
use super::super::instance_logs::InstanceLogs;
use super::super::internal::Directory;
use super::super::journal::{Journal, JournalLimits};
use super::app::Stage;
use super::world::{Complaints, NoLogs, Roomy, Shelf};

/// No state in these tests takes longer to come about, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(25);
const HOST: &str = "hello.localhost";
const SERVICES: &str = "/run/v2/projects/demo/locations/here/services";

/// A server with one service, `hello`.
pub(super) struct House {
    pub(super) stage: Arc<Stage>,
    pub(super) driver: FakeDriver,
    pub(super) ingress: Ingress,
    control: ControlHandle,
    journal: Journal,
    journal_thread: JoinHandle<()>,
    complaints: Complaints,
    api: SocketAddr,
    public: SocketAddr,
    /// Held, so that nobody else is given the port that instances listen on.
    port: std::net::TcpListener,
    stop: CancellationToken,
    serving: JoinSet<()>,
    _logged: tracing::subscriber::DefaultGuard,
    _data: tempfile::TempDir,
}

impl House {
    pub(super) async fn new() -> Self {
        Self::with(IngressSettings::default()).await
    }

    pub(super) async fn with(limits: IngressSettings) -> Self {
        let complaints = Complaints::default();
        let logged = tracing_subscriber::registry().with(complaints.clone());
        let logged = tracing::subscriber::set_default(logged);
        let data = tempfile::tempdir().unwrap();
        let roomy = JournalLimits {
            service_budget: 16 << 20,
            reserve: 0,
        };
        let (journal, journal_thread) = Journal::start(data.path().join("journal"), roomy).unwrap();
        let machine = Machine::begin();
        let (stage, store) = (Stage::new(), Store::open_in_memory().unwrap());
        let driver = FakeDriver::new(Machine::time);
        driver.runs(stage.begin());
        let shared: Arc<dyn Driver> = Arc::new(driver.clone());
        let bell = Bell::default();
        let ingress = Ingress::new(
            Arc::new(Dialer(Arc::clone(&shared))),
            Arc::new(bell.clone()),
            Arc::new(journal.clone()),
            Arc::new(machine),
            limits,
        );
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (api_door, public_door) = (listen().await.unwrap(), listen().await.unwrap());
        let api = api_door.local_addr().unwrap();
        let public = public_door.local_addr().unwrap();
        let settings = Settings {
            project: "demo".parse().unwrap(),
            region: "here".parse().unwrap(),
            domain: "localhost".to_owned(),
        };
        let control = Control::start(
            Seams {
                store: store.clone(),
                driver: Arc::clone(&shared),
                door: Arc::new(Door(ingress.clone())),
                images: Arc::new(Shelf),
                logs: Arc::new(NoLogs),
                certificates: Arc::new(Registrar(None)),
                env: Arc::new(Roomy(machine)),
            },
            ControlSettings::new(
                settings.project.clone(),
                settings.region.clone(),
                settings.domain.clone(),
                public.port(),
            ),
        )
        .await
        .unwrap();
        bell.connect(control.clone());
        let state = utsuwa_api::ApiState {
            store,
            insight: Arc::new(Insight {
                control: control.clone(),
                driver: shared,
                ingress: ingress.clone(),
                journal: journal.clone(),
            }),
            logs: Arc::new(InstanceLogs::new(
                data.path().join("logs"),
                journal.clone(),
                Arc::new(Running(Directory::default())),
            )),
            images: Arc::new(Shelf),
            settings,
            clock: Arc::new(machine),
            addresses: utsuwa_api::Addresses::default(),
            keys_dir: data.path().join("keys"),
            configuration: Arc::default(),
            host_dirs: Arc::default(),
            ready: utsuwa_api::Readiness::default(),
            closing: CancellationToken::new(),
        };
        let (stop, mut serving) = (CancellationToken::new(), JoinSet::new());
        let ended = stop.clone().cancelled_owned();
        serving.spawn(async move {
            utsuwa_api::serve(state, vec![api_door], ended)
                .await
                .unwrap();
        });
        let (front, ended) = (ingress.clone(), stop.clone());
        serving.spawn(async move { front.serve(public_door, Scheme::Http, ended).await });
        Self {
            stage,
            driver,
            ingress,
            control,
            journal,
            journal_thread,
            complaints,
            api,
            public,
            port: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
            stop,
            serving,
            _logged: logged,
            _data: data,
        }
    }

    /// Ends the server; nothing was to complain about.
    pub(super) async fn close(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.serving.join_next().await {
            ended.unwrap();
        }
        self.control.shutdown(PATIENCE).await;
        self.journal.end();
        self.journal_thread.join().unwrap();
        assert_eq!(self.complaints.all(), Vec::<String>::new());
    }

    /// The template of a service, open to everybody, whose app says `says`; `change` gets it before it is asked for.
    pub(super) fn wanted(&self, says: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut service = json!({
            "invokerIamDisabled": true,
            "template": {
                "containers": [{
                    "image": "utsuwa.local/hello",
                    "env": [{"name": "SAYS", "value": says}],
                    "ports": [{"containerPort": self.port.local_addr().unwrap().port()}],
                }],
            },
        });
        change(&mut service["template"]);
        service
    }

    /// Asks for the service; answers the operation, which goes on.
    pub(super) async fn ask(&self, service: Value) -> Value {
        let path = format!("{SERVICES}/hello");
        let (method, path) = match self.api("GET", &path, Value::Null).await.0 {
            404 => ("POST", format!("{SERVICES}?serviceId=hello")),
            _ => ("PATCH", path),
        };
        let (status, operation) = self.api(method, &path, service).await;
        assert_eq!(status, 200, "{operation}");
        operation
    }

    /// How an operation ended.
    pub(super) async fn outcome(&self, operation: &Value) -> Value {
        let path = format!("/run/v2/{}:wait", operation["name"].as_str().unwrap());
        let patience = json!({"timeout": format!("{}s", PATIENCE.as_secs())});
        let (status, operation) = self.api("POST", &path, patience).await;
        assert_eq!(
            (status, &operation["done"]),
            (200, &json!(true)),
            "{operation}"
        );
        operation
    }

    /// Deploys, and answers the revision that is ready then.
    pub(super) async fn deploy(&self, service: Value) -> RevisionKey {
        let operation = self.ask(service).await;
        let outcome = self.outcome(&operation).await;
        assert_eq!(outcome.get("error"), None, "{outcome}");
        self.latest_ready().await
    }

    pub(super) async fn service(&self) -> Value {
        let (status, service) = self
            .api("GET", &format!("{SERVICES}/hello"), Value::Null)
            .await;
        assert_eq!(status, 200, "{service}");
        service
    }

    pub(super) async fn latest_ready(&self) -> RevisionKey {
        let service = self.service().await;
        let name = service["latestReadyRevision"].as_str().unwrap();
        let name = name.rsplit('/').next().unwrap();
        format!("demo/here/hello/{name}").parse().unwrap()
    }

    /// Sends JSON to the API (nothing for `Null`), answers status and JSON.
    async fn api(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("localhost:{}", self.api.port()))
            .header("content-type", "application/json");
        let reply = call(self.api, request.body(Full::from(body)).unwrap()).await;
        (reply.status, serde_json::from_str(&reply.text).unwrap())
    }

    /// A client's request for `path` of the service.
    pub(super) fn get(&self, path: &'static str) -> impl Future<Output = Reply> + Send + use<> {
        self.asker(path)()
    }

    /// Makes such requests, without this house.
    pub(super) fn asker(
        &self,
        path: &'static str,
    ) -> impl Fn() -> BoxFuture<'static, Reply> + Send + use<> {
        let public = self.public;
        move || {
            let request = Request::get(path).header("host", HOST);
            call(public, request.body(Full::default()).unwrap()).boxed()
        }
    }

    pub(super) fn demand(&self, revision: &RevisionKey) -> RevisionDemand {
        self.ingress.demand(revision).unwrap_or_default()
    }

    /// What the ingress thinks of an instance.
    pub(super) fn reach(&self, revision: &RevisionKey, id: &InstanceId) -> Option<Reach> {
        let demand = self.demand(revision);
        let load = demand.instances.into_iter().find(|load| load.id == *id);
        load.map(|load| load.reach)
    }

    /// Tells when the loops last looked at the instances of `revision`.
    pub(super) fn looks(&self, revision: &RevisionKey) -> impl Fn() -> Timestamp + use<> {
        let (control, key) = (self.control.clone(), revision.to_string());
        move || {
            let loops = control.loops();
            let of = loops.iter().find(|l| l.name == "instances" && l.key == key);
            of.unwrap().last_pass
        }
    }

    /// No loop has anything to do now.
    pub(super) fn is_at_rest(&self) -> bool {
        self.control.is_at_rest()
    }

    /// Whenever the driver is asked for something that begins with `word`, it does so after `meanwhile`.
    pub(super) fn before(
        &self,
        word: &'static str,
        meanwhile: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) {
        self.driver.gate(Some(Arc::new(move |what: &str| {
            if what.starts_with(word) {
                meanwhile()
            } else {
                std::future::ready(()).boxed()
            }
        })));
    }

    /// The one instance that runs.
    pub(super) fn only(&self) -> InstanceId {
        let running = self.driver.running();
        assert_eq!(running.len(), 1, "{running:?}");
        running[0].clone()
    }

    /// How many instances were started so far.
    pub(super) fn starts(&self) -> usize {
        let log = self.driver.log();
        log.iter().filter(|line| line.starts_with("start ")).count()
    }

    /// Waits for a state.
    pub(super) async fn until(&self, what: &str, state: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !state(self) {
            assert!(
                tokio::time::Instant::now() < end,
                "never came: {what}\n{:?}\n{:#?}\n{:?}",
                self.driver.log(),
                self.control.loops(),
                self.complaints.all(),
            );
            // A level, looked at again: nothing is timed by this.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) text: String,
    /// Why Utsuwa itself answered; empty: the app did.
    pub(super) reason: String,
}

impl Reply {
    /// What the app said.
    pub(super) fn said(&self) -> &str {
        assert_eq!((self.status, self.reason.as_str()), (200, ""), "{self:?}");
        &self.text
    }
}

async fn call(address: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    let exchange = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let by = head.headers.get("x-utsuwa-answered-by");
        let reason = by.and_then(|by| by.to_str().ok()?.strip_prefix("utsuwa; reason="));
        Reply {
            status: head.status.as_u16(),
            text: String::from_utf8(body.to_vec()).unwrap(),
            reason: reason.unwrap_or_default().to_owned(),
        }
    };
    tokio::time::timeout(PATIENCE * 2, exchange)
        .await
        .expect("an answer")
}
