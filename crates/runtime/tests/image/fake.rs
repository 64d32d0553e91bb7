//! A registry that does what a test tells it to, also the wrong thing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::Builder;

use parking_lot::Mutex;

use crate::fixture::{Image, digest};

#[derive(Debug, Clone)]
pub struct Asked {
    pub target: String,
    pub headers: BTreeMap<String, String>,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Send only so much of the body, though its whole length was announced; then close.
    pub cut_after: Option<usize>,
    /// Send only so much of the body, then nothing more until the client leaves.
    pub stall_after: Option<usize>,
    /// Send only so much of the body, then a byte every 20 ms.
    pub trickle_after: Option<usize>,
}

impl Answer {
    pub fn ok(body: Vec<u8>) -> Self {
        Self {
            status: 200,
            body,
            ..Self::default()
        }
    }

    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Handler = dyn Fn(&Asked) -> Answer + Send + Sync;

pub struct Fake {
    pub address: SocketAddr,
    pub asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    pub fn start(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, handler) = (Arc::clone(&asked), Arc::new(handler) as Arc<Handler>);
        let accept = move || {
            for connection in listener.incoming() {
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                // They end with the test's process.
                Builder::new()
                    .spawn(move || serve(connection.unwrap(), &log, &*handler))
                    .unwrap();
            }
        };
        Builder::new()
            .name("registry".to_owned())
            .spawn(accept)
            .unwrap();
        Self { address, asked }
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// How many requests had this in their target.
    pub fn count(&self, part: &str) -> usize {
        self.asked
            .lock()
            .iter()
            .filter(|asked| asked.target.contains(part))
            .count()
    }
}

/// What an honest registry answers for `image` (any repository, any tag but `missing`).
pub fn honest(image: &Image, asked: &Asked) -> Answer {
    let last = asked.target.rsplit('/').next().unwrap();
    if asked.target.contains("/manifests/") {
        if last == "missing" {
            return Answer::status(404);
        }
        return Answer::ok(image.manifest.clone())
            .with("content-type", "application/vnd.oci.image.manifest.v1+json")
            .with("docker-content-digest", digest(&image.manifest));
    }
    match image.blobs.get(last) {
        Some(content) => ranged(content, asked),
        None => Answer::status(404),
    }
}

pub fn ranged(content: &[u8], asked: &Asked) -> Answer {
    match asked
        .header("range")
        .strip_prefix("bytes=")
        .and_then(|range| range.trim_end_matches('-').parse::<usize>().ok())
    {
        Some(from) if from < content.len() => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Answer {
                status: 206,
                ..Answer::ok(content[from..].to_vec())
            }
            .with("content-range", range)
        }
        Some(_) => Answer::status(416),
        None => Answer::ok(content.to_vec()),
    }
}

fn serve(mut connection: TcpStream, log: &Mutex<Vec<Asked>>, handler: &Handler) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut parts = line.split_whitespace();
        let target = parts.nth(1).unwrap().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers
            .get("content-length")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        if length > 0 {
            headers.insert(
                "(body)".to_owned(),
                String::from_utf8_lossy(&body).into_owned(),
            );
        }
        let asked = Asked { target, headers };
        let answer = handler(&asked);
        log.lock().push(asked);
        let mut head = format!(
            "HTTP/1.1 {} X\r\ncontent-length: {}\r\n",
            answer.status,
            answer.body.len()
        );
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let most = answer
            .cut_after
            .or(answer.stall_after)
            .or(answer.trickle_after)
            .unwrap_or(answer.body.len())
            .min(answer.body.len());
        if connection
            .write_all(head.as_bytes())
            .and_then(|()| connection.write_all(&answer.body[..most]))
            .is_err()
        {
            return;
        }
        if answer.trickle_after.is_some() {
            let mut rest = answer.body[most..].iter();
            while rest.next().is_some_and(|byte| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                connection.write_all(&[*byte]).is_ok()
            }) {}
            return;
        }
        if answer.stall_after.is_some() {
            // Until the client has had enough.
            let _gone = reader.read(&mut [0]);
            return;
        }
        if answer.cut_after.is_some() {
            let _gone = connection.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}
