//! An app that speaks bytes and notes what it was sent: it believes nobody, so it sees what a proxy really passed on.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::super::app::raw_app;
use super::corpus::Seen;

/// What an app got of one proxy.
#[derive(Debug, Default)]
pub(crate) struct Got {
    pub(crate) seen: Mutex<Vec<Seen>>,
    /// What no proxy may pass on.
    pub(crate) strange: Mutex<Vec<String>>,
}

impl Got {
    /// The requests with this number, in their order.
    pub(crate) fn of(&self, number: usize) -> Vec<Seen> {
        let number = number.to_string();
        let seen = self.seen.lock();
        let named = |seen: &&Seen| {
            seen.target
                .split(['/', '?', '#'])
                .any(|part| part == number)
        };
        seen.iter().filter(named).cloned().collect()
    }
}

/// One that runs until the tasks are dropped.
pub(crate) async fn recorder() -> (SocketAddr, Arc<Got>, JoinSet<()>) {
    let got = Arc::new(Got::default());
    let all = Arc::clone(&got);
    let (address, tasks) = raw_app(move |_, stream| {
        let got = Arc::clone(&all);
        async move { serve(stream, &got).await.unwrap_or(()) }
    })
    .await;
    (address, got, tasks)
}

/// `None`: the connection ended.
async fn serve(mut stream: TcpStream, got: &Got) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = find(&bytes, b"\r\n\r\n") {
                break bytes.drain(..end + 4).collect::<Vec<u8>>();
            }
            more(&mut stream, &mut bytes).await?;
        };
        let head = String::from_utf8_lossy(&head).into_owned();
        if head.replace("\r\n", "").contains(['\r', '\n', '\0']) {
            got.strange.lock().push(head.clone());
        }
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
        let fields: Vec<(String, &str)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
            .collect();
        let all = |name: &str| {
            let named = fields.iter().filter(move |(given, _)| given == name);
            named.map(|(_, value)| *value).collect::<Vec<_>>()
        };
        let (lengths, codings, hosts) =
            (all("content-length"), all("transfer-encoding"), all("host"));
        if lengths.len() + codings.len() > 1 || hosts.len() != 1 {
            got.strange.lock().push(head.clone());
        }
        let body = if codings.is_empty() {
            let length: usize = lengths
                .first()
                .map_or(Some(0), |length| length.parse().ok())?;
            while bytes.len() < length {
                more(&mut stream, &mut bytes).await?;
            }
            bytes.drain(..length).collect()
        } else {
            chunked(&mut stream, &mut bytes).await?
        };
        let answer = if method == "HEAD" {
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
        } else {
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        };
        got.seen.lock().push(Seen {
            method,
            target,
            body,
        });
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

async fn chunked(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(stream, bytes).await?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            while !line(stream, bytes).await?.is_empty() {}
            return Some(body);
        }
        while bytes.len() < size + 2 {
            more(stream, bytes).await?;
        }
        body.extend(bytes.drain(..size));
        bytes.drain(..2);
    }
}

async fn line(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = find(bytes, b"\r\n") {
            let line = bytes.drain(..end + 2).collect::<Vec<u8>>();
            return Some(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        more(stream, bytes).await?;
    }
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(bytes).await.ok()?;
    (read > 0).then_some(())
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
