//! Addresses of a name for this process itself, from the resolvers of the host.
//!
//! All are asked at once: the C library asks one after the other and gives each five seconds, so that one that is dead costs
//! more than anybody who waits for a name has.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::Message;

use super::Transport;
use super::upstream::{ask_one, parse};
use super::wire::Query;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// The resolvers that `file` (a `resolv.conf`) names.
pub(crate) fn resolvers(file: &Path, port: u16) -> Vec<SocketAddr> {
    parse(&std::fs::read_to_string(file).unwrap_or_default(), port)
}

/// The first answer of any of `resolvers` that has addresses of `name`; empty when none has.
pub(crate) async fn lookup(resolvers: &[SocketAddr], name: &str) -> Vec<IpAddr> {
    let mut asked: FuturesUnordered<_> = resolvers
        .iter()
        .map(|resolver| async move {
            let (v4, v6) = tokio::join!(
                addresses(*resolver, name, TYPE_A),
                addresses(*resolver, name, TYPE_AAAA)
            );
            [v4, v6].concat()
        })
        .collect();
    while let Some(found) = asked.next().await {
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

async fn addresses(resolver: SocketAddr, name: &str, kind: u16) -> Vec<IpAddr> {
    let Some(query) = question(name, kind) else {
        return Vec::new();
    };
    let Some(parsed) = Query::parse(&query) else {
        return Vec::new();
    };
    match ask_one(resolver, &query, &parsed, Transport::Udp).await {
        Ok(answer) => Message::from_vec(&answer).map_or_else(
            |_| Vec::new(),
            |message| {
                let records = message.answers.iter();
                records.filter_map(|record| record.data.ip_addr()).collect()
            },
        ),
        Err(error) => {
            tracing::debug!(%resolver, name, %error, "a resolver did not answer");
            Vec::new()
        }
    }
}

/// A query that wishes recursion. `None` for what is no name.
fn question(name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok();
        bytes.push(length.filter(|length| (1..64).contains(length))?);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    Some(bytes)
}
