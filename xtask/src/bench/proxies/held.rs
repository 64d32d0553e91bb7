//! Connections that are held: what each costs the proxy in memory of its own. The kernel's part is not in it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::super::rest::pss_kib;
use super::super::stats::table;
use super::apps::HOLDS;
use super::peer::Proxy;

const IDLE: u32 = 10_000;
const SOCKETS: u32 = 2_000;
/// Each takes an open file of the proxy and of this process, which may have no more than so many for each of them: our server
/// lets idle connections have 46 sixty-fourths of its own, and what is left is for the rest of the benchmark.
const FILES: usize = 2;
/// Who gives memory back when a connection has been idle for a while has that while: until it changes by less than this in two
/// seconds, and at most so long.
const STILL_KIB: u64 = 128;
const STILL: Duration = Duration::from_secs(2);
const SETTLED: Duration = Duration::from_secs(40);

/// Keep-alive connections that do nothing after their first request.
pub(super) fn idle(proxies: &[&Proxy], open_files: usize) -> anyhow::Result<String> {
    let wanted = IDLE.min(u32::try_from(open_files / FILES)?);
    let head = "GET /ticks HTTP/1.1\r\nhost: http.localhost\r\n\r\n";
    let mut text = measure(
        "Idle keep-alive connections",
        proxies,
        wanted,
        async |port| held(port, wanted, head, "HTTP/1.1 200").await,
    )?;
    if wanted < IDLE {
        text.push_str(&format!(
            "{IDLE} of them need a limit of {} open files; this process may have {open_files} (ulimit -Hn)\n",
            IDLE as usize * FILES
        ));
    }
    Ok(text)
}

/// WebSockets that were opened, and still answer when all of them are.
pub(super) fn websockets(proxies: &[&Proxy]) -> anyhow::Result<String> {
    // The key is that of RFC 6455's example; the app knows its answer.
    let head = format!(
        "GET /socket HTTP/1.1\r\nhost: {HOLDS}.localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    );
    measure("Open WebSockets", proxies, SOCKETS, async |port| {
        let mut sockets = held(port, SOCKETS, &head, "HTTP/1.1 101").await?;
        // "alive", under a mask of zeros.
        let message = b"\x81\x85\0\0\0\0alive";
        for socket in &mut sockets {
            socket.write_all(message).await?;
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            let mut answer = [0; 7];
            socket.read_exact(&mut answer).await?;
            if answer != *b"\x81\x05alive" {
                bail!("WebSocket {number} answered {answer:?}");
            }
        }
        Ok(sockets)
    })
}

fn measure(
    title: &str,
    proxies: &[&Proxy],
    wanted: u32,
    open: impl AsyncFn(u16) -> anyhow::Result<Vec<TcpStream>>,
) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut taken = Vec::new();
    for proxy in proxies {
        let before = settled(proxy)?;
        let mut held = runtime
            .block_on(open(proxy.port()))
            .with_context(|| format!("{title}: {}", proxy.name))?;
        let after = settled(proxy)?;
        runtime
            .block_on(still_open(&mut held))
            .with_context(|| format!("{title}: {}", proxy.name))?;
        let each = f64::from(u32::try_from(after.saturating_sub(before))?) / f64::from(wanted);
        taken.push((proxy.name, held.len(), before, after, each));
    }
    let nginx = taken.iter().find(|row| row.0 == "nginx").map(|row| row.4);
    let rows: Vec<Vec<String>> = taken
        .into_iter()
        .map(|(name, held, before, after, each)| {
            let ratio = nginx.map_or_else(String::new, |nginx| format!("{:.2}", each / nginx));
            let both = format!("{before} → {after}");
            vec![
                name.to_owned(),
                held.to_string(),
                both,
                format!("{each:.2}"),
                ratio,
            ]
        })
        .collect();
    let head = ["proxy", "held", "PSS KiB", "KiB each", "÷ nginx"];
    Ok(format!("\n### {title}\n{}", table(&head, &rows)))
}

/// The memory of a proxy, once it no longer changes.
fn settled(proxy: &Proxy) -> anyhow::Result<u64> {
    let end = Instant::now() + SETTLED;
    let mut before = pss_kib(proxy.holder())?;
    loop {
        std::thread::sleep(STILL);
        let now = pss_kib(proxy.holder())?;
        if now.abs_diff(before) < STILL_KIB || Instant::now() > end {
            return Ok(now);
        }
        before = now;
    }
}

/// None of them was closed meanwhile: what has been closed needs no memory.
async fn still_open(connections: &mut [TcpStream]) -> anyhow::Result<()> {
    // So that what has come since this last ran is known.
    tokio::time::sleep(STILL).await;
    for (number, connection) in connections.iter_mut().enumerate() {
        let mut rest = [0; 4096];
        while let Ok(read) = connection.try_read(&mut rest) {
            if read == 0 {
                bail!("connection {number} was closed");
            }
        }
    }
    Ok(())
}

/// Opens connections, each after one answered request. From many addresses: one client's share may be smaller.
async fn held(port: u16, wanted: u32, head: &str, status: &str) -> anyhow::Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for number in 0..wanted {
        let [.., high, low] = (number / 100 + 2).to_be_bytes();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, high, low), 0)))?;
        let mut stream = socket
            .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .await?;
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await? == 0 {
                break;
            }
        }
        if !answer.starts_with(status.as_bytes()) {
            bail!(
                "connection {number}: {:?}",
                String::from_utf8_lossy(&answer)
            );
        }
        held.push(stream);
    }
    Ok(held)
}
