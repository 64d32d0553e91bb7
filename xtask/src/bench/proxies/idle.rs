//! Connections that do nothing: what each costs the proxy in resident memory. The kernel's part is not in it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::super::stats::table;
use super::peer::Proxy;

/// As many as promised; a fifth of the open files where that is less, since our server keeps some for everything else.
const IDLE: u32 = 10_000;

pub(super) fn run(proxies: &[&Proxy], open_files: usize) -> anyhow::Result<String> {
    let wanted = IDLE.min(u32::try_from(open_files / 5)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut rows = Vec::new();
    for proxy in proxies {
        let before = proxy.resident_kib();
        let held = runtime
            .block_on(hold(proxy.port(), wanted))
            .with_context(|| proxy.name)?;
        let each = proxy.resident_kib().saturating_sub(before);
        rows.push(vec![
            proxy.name.to_owned(),
            held.len().to_string(),
            format!("{:.1}", f64::from(u32::try_from(each)?) / f64::from(wanted)),
        ]);
    }
    let head = ["proxy", "idle connections", "KiB each"];
    Ok(format!(
        "\n### Idle keep-alive connections\n{}",
        table(&head, &rows)
    ))
}

/// Opens the connections, each after one answered request. From many addresses: one client's share may be smaller.
async fn hold(port: u16, wanted: u32) -> anyhow::Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for number in 0..wanted {
        let [.., high, low] = (number / 100 + 2).to_be_bytes();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, high, low), 0)))?;
        let mut stream = socket
            .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .await?;
        stream
            .write_all(b"GET /ticks HTTP/1.1\r\nhost: http.localhost\r\n\r\n")
            .await?;
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer).await?;
        if !answer[..read].starts_with(b"HTTP/1.1 200") {
            bail!(
                "connection {number}: {:?}",
                String::from_utf8_lossy(&answer[..read])
            );
        }
        held.push(stream);
    }
    Ok(held)
}
