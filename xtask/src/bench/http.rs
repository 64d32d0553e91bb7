//! The probe: one HTTP request over a fresh connection, the same for everybody.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Sends `GET path` with `host` and reads the whole answer.
pub(crate) fn get(address: SocketAddr, host: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))
        .with_context(|| format!("connect to {address}"))?;
    exchange(
        stream,
        &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
    )
}

/// Sends a JSON body.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))
        .with_context(|| format!("connect to {address}"))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    exchange(stream, &(head + body))
}

fn exchange(mut stream: TcpStream, request: &str) -> anyhow::Result<(u16, String)> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .with_context(|| format!("no status in {text:?}"))?;
    let body = text
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    Ok((status, body))
}

/// Asks a freshly started program until it answers 200; the time since `since`. `EVERY` is the pause between attempts, short
/// enough not to show in the figures and long enough not to take the processor from the program.
///
/// `gone` says why the program is not there any more, if it is: then waiting is of no use.
pub(crate) fn until_up(
    address: SocketAddr,
    path: &str,
    since: Instant,
    mut gone: impl FnMut() -> Option<String>,
) -> anyhow::Result<Duration> {
    const EVERY: Duration = Duration::from_micros(150);
    let deadline = since + Duration::from_secs(20);
    loop {
        if let Ok(stream) = TcpStream::connect(address)
            && let Ok((200, _)) = exchange(
                stream,
                &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"),
            )
        {
            return Ok(since.elapsed());
        }
        if let Some(why) = gone() {
            bail!("it ended before it answered: {why}");
        }
        if Instant::now() > deadline {
            bail!("nothing answered 200 at {address} within 20 s");
        }
        std::thread::sleep(EVERY.max(since.elapsed() / 400));
    }
}
