//! HTTPS: certificates made at once, given, replaced and refused; the same service behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use utsuwa_model::Timestamp;
use utsuwa_model::route::{Access, RouteTable};

use super::app::*;
use super::scene::*;
use crate::seam::Clock;
use crate::tls::{Authority, CERTIFICATE_FILE, Given, Tls};
use crate::{IngressSettings, Scheme};

const DAY_US: i64 = 24 * 3600 * 1_000_000;
const NOW_US: i64 = 1_790_000_000_000_000;

/// Time that moves when told.
#[derive(Debug)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

/// A scene with HTTPS beside plain HTTP.
struct Secured {
    scene: Scene,
    tls: Arc<Tls>,
    clock: Arc<Hands>,
    address: std::net::SocketAddr,
    authority: CertificateDer<'static>,
}

async fn secured(redirect: Option<u16>, settings: IngressSettings) -> Secured {
    let keys = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_make(keys.path(), "localhost").unwrap();
    let pem = std::fs::read(keys.path().join(CERTIFICATE_FILE)).unwrap();
    let clock = Arc::new(Hands(AtomicI64::new(NOW_US)));
    let tls = Arc::new(Tls::new(authority, Arc::clone(&clock) as _, redirect).unwrap());
    let mut scene = Scene::with(route(), settings).await;
    scene.ingress.secure(Arc::clone(&tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ingress, shutdown) = (scene.ingress.clone(), scene.shutdown.clone());
    scene.serve_also(async move { ingress.serve(listener, Scheme::Https, shutdown).await });
    Secured {
        scene,
        tls,
        clock,
        address,
        authority: CertificateDer::from_pem_slice(&pem).unwrap(),
    }
}

impl Secured {
    /// A client that trusts `root`, and speaks `protocols`.
    fn client(&self, root: &CertificateDer<'static>, protocols: &[&[u8]]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            crate::tls::provider(),
        )
        .build()
        .unwrap();
        let mut config = ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        config.time_provider = Arc::new(At(Arc::clone(&self.clock)));
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        Arc::new(config)
    }

    async fn connect(
        &self,
        config: Arc<ClientConfig>,
        name: &'static str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        tokio::time::timeout(PATIENCE, TlsConnector::from(config).connect(name, stream))
            .await
            .unwrap()
    }

    async fn trusted(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let config = self.client(&self.authority, protocols);
        self.connect(config, HOST).await.unwrap()
    }
}

/// The client's clock is the server's.
#[derive(Debug)]
struct At(Arc<Hands>);

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let now = Duration::from_micros(u64::try_from(self.0.now().0).unwrap());
        Some(rustls::pki_types::UnixTime::since_unix_epoch(now))
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path)
        .header("host", HOST)
        .body(Full::default())
        .unwrap()
}

async fn http1(stream: TlsStream<TcpStream>, request: Request<Full<Bytes>>) -> Reply {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    reply(response).await
}

#[tokio::test]
async fn both_protocols_are_served_under_a_certificate_made_at_once() {
    let secured = secured(None, IngressSettings::default()).await;
    let app = App::new().await;
    secured.scene.ready(&app).await;

    let stream = secured.trusted(&[b"http/1.1"]).await;
    let answered = http1(stream, get("/headers")).await;
    assert_eq!(answered.status, 200);
    assert_eq!(answered.seen("x-forwarded-proto").unwrap(), "https");
    assert_eq!(answered.seen("host").unwrap(), HOST);

    // Without ALPN the first bytes say what is spoken.
    let answered = http1(secured.trusted(&[]).await, get("/headers")).await;
    assert_eq!(answered.status, 200);

    let stream = secured.trusted(&[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(format!("https://{HOST}/headers"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let answered = reply(sender.send_request(request).await.unwrap()).await;
    assert_eq!(answered.seen("x-forwarded-proto").unwrap(), "https");
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let secured = secured(None, IngressSettings::default()).await;
    let app = App::new().await;
    secured.scene.ready(&app).await;
    let body: Bytes = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let request = Request::post("/echo")
        .header("host", HOST)
        .body(Full::new(body.clone()))
        .unwrap();
    let answered = http1(secured.trusted(&[]).await, request).await;
    assert_eq!(answered.status, 200);
    assert!(answered.body == body, "{} bytes", answered.body.len());
}

#[tokio::test]
async fn an_unknown_host_is_told_so_and_wakes_nothing() {
    let secured = secured(None, IngressSettings::default()).await;
    let config = secured.client(&secured.authority, &[]);
    for name in ["nobody.localhost", "example.com"] {
        let error = secured
            .connect(Arc::clone(&config), name)
            .await
            .unwrap_err();
        let told = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        assert_eq!(
            told,
            Some(&rustls::Error::AlertReceived(
                AlertDescription::UnrecognisedName
            )),
            "{name}"
        );
    }
    // A host that is served gets its certificate, and sleeps on.
    secured.trusted(&[]).await;
    assert_eq!(secured.scene.demand().queued, 0);
    assert!(!secured.scene.demand().wake);
}

#[tokio::test]
async fn a_client_that_names_no_host_is_met_under_the_domain() {
    let secured = secured(None, IngressSettings::default()).await;
    let app = App::new().await;
    secured.scene.ready(&app).await;
    let mut config = ClientConfig::clone(&secured.client(&secured.authority, &[]));
    config.enable_sni = false;
    let stream = secured
        .connect(Arc::new(config), "localhost")
        .await
        .unwrap();
    assert_eq!(http1(stream, get("/headers")).await.status, 200);
}

#[tokio::test]
async fn sessions_are_resumed() {
    let secured = secured(None, IngressSettings::default()).await;
    let app = App::new().await;
    secured.scene.ready(&app).await;
    let config = secured.client(&secured.authority, &[]);
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut stream = secured.connect(Arc::clone(&config), HOST).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        // Tickets come with the answer.
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
    }
}

#[tokio::test]
async fn plain_http_is_told_where_it_is() {
    let secured = secured(None, IngressSettings::default()).await;
    let mut stream = TcpStream::connect(secured.address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("https://"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_handshake_that_never_comes_gives_its_place_back() {
    let settings = IngressSettings {
        handshake_timeout: Duration::from_millis(50),
        // One is the other listener's.
        max_connections: 2,
        ..IngressSettings::default()
    };
    let secured = secured(None, settings).await;
    let app = App::new().await;
    secured.scene.ready(&app).await;
    let mut silent = TcpStream::connect(secured.address).await.unwrap();
    // It has the only place: this one is served when it was cut off.
    assert_eq!(
        http1(secured.trusted(&[]).await, get("/headers"))
            .await
            .status,
        200
    );
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_given_certificate_is_used_from_the_next_handshake_on() {
    let secured = secured(None, IngressSettings::default()).await;
    let app = App::new().await;
    secured.scene.ready(&app).await;
    let open = secured.trusted(&[]).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(open))
        .await
        .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    assert_eq!(
        reply(sender.send_request(get("/headers")).await.unwrap())
            .await
            .status,
        200
    );

    let key = KeyPair::generate().unwrap();
    let mut params =
        CertificateParams::new(vec![HOST.to_owned(), "*.example.com".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let given = |pattern: &str| {
        Given::new(
            pattern.parse().unwrap(),
            certificate.pem().as_bytes(),
            key.serialize_pem().as_bytes(),
            Timestamp(NOW_US),
        )
    };
    let why = given("www.example.org").unwrap_err().to_string();
    assert!(why.contains("not for www.example.org"), "{why}");
    secured
        .tls
        .give(vec![given(HOST).unwrap(), given("*.example.com").unwrap()]);
    let given_for = |host: &str| secured.tls.standing(host).given;
    assert!(given_for(HOST).unwrap().until > Timestamp(NOW_US));
    assert!(given_for("any.example.com").is_some());
    assert_eq!(given_for("deep.below.example.com"), None);

    assert!(
        secured
            .connect(secured.client(&secured.authority, &[]), HOST)
            .await
            .is_err()
    );
    let config = secured.client(&certificate.der().clone(), &[]);
    let shown = secured.connect(Arc::clone(&config), HOST).await;
    // A self-signed leaf may be refused by the client, but it must be this one that was shown.
    if let Ok(stream) = shown {
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        assert_eq!(&chain[0], certificate.der());
    }
    // The open connection was not touched.
    assert_eq!(
        reply(sender.send_request(get("/headers")).await.unwrap())
            .await
            .status,
        200
    );
    secured.tls.give(Vec::new());
    secured.trusted(&[]).await;
}

#[tokio::test]
async fn a_leaf_is_made_anew_long_before_it_ends() {
    let secured = secured(None, IngressSettings::default()).await;
    for days in [0, 44, 46, 200] {
        secured
            .clock
            .0
            .store(NOW_US + days * DAY_US, Ordering::SeqCst);
        let stream = secured.trusted(&[]).await;
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let left = leaf.validity().not_after.timestamp() * 1_000_000 - (NOW_US + days * DAY_US);
        assert!(
            left > 44 * DAY_US,
            "day {days}: {} days left",
            left / DAY_US
        );
    }
}

#[tokio::test]
async fn the_authority_has_no_power_over_other_names() {
    let secured = secured(None, IngressSettings::default()).await;
    // A custom domain without a certificate of its own is met with a leaf that nobody accepts: encrypted, and no promise.
    let mut routes = RouteTable::clone(&table(route(), Access::Public));
    let own = Arc::clone(&routes.hosts[HOST]);
    routes.hosts.insert("www.example.com".to_owned(), own);
    secured.scene.publish(Arc::new(routes));
    let error = secured
        .connect(secured.client(&secured.authority, &[]), "www.example.com")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn plain_http_is_redirected_and_checks_are_answered() {
    let secured = secured(Some(8443), IngressSettings::default()).await;
    let answered = secured.scene.get("/a/b?c=d").await;
    assert_eq!(
        (answered.status, answered.header("location")),
        (302, format!("https://{HOST}:8443/a/b?c=d").as_str())
    );
    assert_eq!(answered.reason(), "https_only");
    let post = secured.scene.send(Request::post("/a")).await;
    assert_eq!(post.status, 307);
    assert!(!secured.scene.demand().wake);
    let unknown = secured
        .scene
        .send(Request::get("/").header("host", "nobody.localhost"))
        .await;
    assert_eq!(unknown.status, 404);

    let path = "/.well-known/acme-challenge/token-1";
    let raised = secured
        .tls
        .challenges()
        .raise_http(HOST, "token-1", "token-1.thumb");
    let answered = secured.scene.get(path).await;
    assert_eq!((answered.status, answered.text()), (200, "token-1.thumb"));
    let other = secured
        .scene
        .send(Request::get(path).header("host", "other.localhost"))
        .await;
    assert_eq!(other.status, 404, "of another host");
    drop(raised);
    assert_eq!(
        secured.scene.get(path).await.status,
        302,
        "only while it is raised"
    );
}

#[tokio::test]
async fn a_challenge_by_handshake_is_answered_with_its_mark() {
    let secured = secured(None, IngressSettings::default()).await;
    let asks = || async {
        let mut config = ClientConfig::clone(&secured.client(&secured.authority, &[b"acme-tls/1"]));
        let any = Arc::new(Anything(crate::tls::provider()));
        config.dangerous().set_certificate_verifier(any);
        secured.connect(Arc::new(config), "www.example.com").await
    };
    assert!(asks().await.is_err(), "nothing was raised");
    let digest = [7; 32];
    let raised = secured
        .tls
        .challenges()
        .raise_handshake("www.example.com", &digest)
        .unwrap();
    let stream = asks().await.unwrap();
    let (_, session) = stream.get_ref();
    assert_eq!(session.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    let (_, leaf) =
        x509_parser::parse_x509_certificate(&session.peer_certificates().unwrap()[0]).unwrap();
    let mark = leaf
        .extensions()
        .iter()
        .find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
        .unwrap();
    assert!(mark.critical && mark.value.ends_with(&digest));
    drop(raised);
    assert!(asks().await.is_err());
}

/// Takes any certificate, as the checks of authorities do.
#[derive(Debug)]
struct Anything(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn the_end_drains_and_closes_connections() {
    let mut secured = secured(None, IngressSettings::default()).await;
    let app = App::new().await;
    secured.scene.ready(&app).await;
    let mut idle = secured.trusted(&[]).await;
    let request = format!("GET /headers HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    idle.write_all(request.as_bytes()).await.unwrap();
    assert!(idle.read(&mut [0; 4096]).await.unwrap() > 0);
    secured.scene.close().await;
    secured.scene.close().await;
    // A goodbye in order, no reset and no cut.
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, idle.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
}

/// New keys are such records: nothing of a request, but something that wakes a connection that rests.
#[tokio::test]
async fn records_without_content_keep_no_idle_connection() {
    let header_timeout = Duration::from_secs(3);
    let settings = IngressSettings {
        header_timeout,
        ..IngressSettings::default()
    };
    let mut secured = secured(None, settings).await;
    let app = App::new().await;
    secured.scene.ready(&app).await;
    let mut stream = secured.trusted(&[]).await;
    let request = format!("GET /hello HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    let answered = tokio::time::Instant::now();
    let ingress = secured.scene.ingress.clone();
    let resting = || ingress.shared.places.hall.resting.load(Ordering::SeqCst);
    let rests = |count| {
        eventually(
            move || (resting() == count).then_some(()),
            || "rest".to_owned(),
        )
    };
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => {
                assert_eq!(read.unwrap_or(0), 0, "it says nothing more");
                break;
            }
            // Each time it rests.
            () = rests(1) => {
                stream.get_mut().1.refresh_traffic_keys().unwrap();
                if stream.flush().await.is_ok() {
                    rests(0).await;
                }
            }
        }
        assert!(answered.elapsed() < 4 * header_timeout, "it is still open");
    }
    assert!(answered.elapsed() >= header_timeout);
    secured.scene.close().await;
}
