//! From an accepted socket to a [`Wire`]: the handshake, or why there is none.

use std::io;
use std::sync::Arc;

use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::challenge::PROTOCOL as CHALLENGE;
use super::{Tls, Wire};
use crate::Shared;
use crate::serve::Scheme;
use crate::table::normalise;

/// The first byte of a TLS connection: a handshake record.
const HANDSHAKE: u8 = 22;
/// A fatal alert `unrecognized_name` (RFC 6066 §3), as a record: clients say it in words, unlike a closed connection.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// For a client that speaks plain HTTP to a port of HTTPS.
const NOT_TLS: &str = "This port speaks HTTPS: ask for https:// instead of http://.\n";

/// What carries the requests of `stream`; `None`: it was answered, and nothing follows.
///
/// # Errors
/// The client left, or its handshake can't be followed or took too long.
pub(crate) async fn enter(
    shared: &Shared,
    scheme: Scheme,
    stream: TcpStream,
) -> io::Result<Option<Wire>> {
    match (scheme, shared.tls.get()) {
        (Scheme::Http, _) => Ok(Some(Wire::Plain(stream))),
        (Scheme::Https, Some(tls)) => {
            let until = Instant::now() + shared.outside.settings.handshake_timeout;
            match tokio::time::timeout_at(until, shake(shared, tls, stream)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the TLS handshake took too long",
                )),
            }
        }
        (Scheme::Https, None) => Err(io::Error::other("no certificates were handed over")),
    }
}

async fn shake(shared: &Shared, tls: &Arc<Tls>, mut stream: TcpStream) -> io::Result<Option<Wire>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] != HANDSHAKE {
        refuse_plain(&mut stream).await?;
        return Ok(None);
    }
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let hello = start.client_hello();
    let name = hello.server_name().map(|name| normalise(name).into_owned());
    let challenged = hello
        .alpn()
        .is_some_and(|mut offered| offered.any(|protocol| protocol == CHALLENGE));
    if challenged {
        let answer = name
            .as_deref()
            .and_then(|name| tls.challenges.handshake(name));
        return match answer {
            Some(config) => {
                // The handshake is the whole answer.
                let mut stream = start.into_stream(config).await?;
                stream.shutdown().await?;
                Ok(None)
            }
            None => refuse_name(start).await,
        };
    }
    let config = match name.as_deref() {
        Some(name) => {
            let served = shared.table.load().host(name).is_some();
            tls.config(name, served)
        }
        // Who names no host (an address was asked for) is met under the domain itself; its Host header says the rest.
        None => tls.config(tls.leaves.domain(), true),
    };
    match config {
        Ok(Some(config)) => {
            let stream = start.into_stream(config).await?;
            Ok(Some(Wire::Tls(Box::new(stream))))
        }
        Ok(None) => refuse_name(start).await,
        Err(error) => Err(io::Error::other(error)),
    }
}

async fn refuse_name(mut start: StartHandshake<TcpStream>) -> io::Result<Option<Wire>> {
    start.io.write_all(&UNRECOGNIZED_NAME).await?;
    start.io.shutdown().await?;
    Ok(None)
}

async fn refuse_plain(stream: &mut TcpStream) -> io::Result<()> {
    // What was sent is read first: closing with unread bytes would throw the answer away.
    let mut unread = [0; 4096];
    let _ = stream.try_read(&mut unread);
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\n{}: utsuwa; reason=plain_http\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{NOT_TLS}",
        crate::answer::ANSWERED_BY,
        NOT_TLS.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
