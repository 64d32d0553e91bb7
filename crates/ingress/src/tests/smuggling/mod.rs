//! Every message of the corpus as we read it, and as nginx and haproxy do: we may never be laxer than both.

mod corpus;
pub(crate) mod h2raw;
mod peers;
mod recorder;
mod reference;

pub(crate) mod fuzz;
mod fuzz_frames;
mod http2;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::corpus::{Case, End, Seen};
use self::peers::Peer;
use super::scene::{PATIENCE, Scene, route};
use crate::record::CLIENT_GONE;
use crate::seam::RequestRecord;
use crate::skip::{here, skip};

/// How long somebody else's proxy may say nothing before its reading is taken for finished.
const QUIET: Duration = Duration::from_millis(500);
/// Connections at once.
const AT_ONCE: usize = 32;

/// What a client heard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    statuses: Vec<u16>,
    closed: bool,
}

/// The statuses of answers in `bytes`, but for those that only say that we ended an unfinished request. No body of ours or of theirs looks like a status line.
fn statuses(bytes: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.match_indices("HTTP/1.");
    lines
        .filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok())
        .filter(|status| ![100, CLIENT_GONE].contains(status))
        .collect()
}

/// Sends `bytes` to our ingress and hears it out: `answers` of them, and the end if it is to come. Nothing is timed: an answer
/// too many comes before the end, which the client's own end brings about.
async fn ask_us(address: SocketAddr, bytes: &[u8], answers: usize, ends: bool) -> Heard {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Whoever refuses a message need not read it to its end.
    let _refused = stream.write_all(bytes).await;
    let mut heard = Vec::new();
    let mut closed = false;
    let listen = async {
        while !closed && (ends || statuses(&heard).len() < answers) {
            closed = stream.read_buf(&mut heard).await.unwrap_or(0) == 0;
        }
        if !closed {
            let _gone = stream.shutdown().await;
            while stream.read_buf(&mut heard).await.unwrap_or(0) > 0 {}
        }
    };
    let said = timeout(PATIENCE, listen).await;
    assert!(
        said.is_ok(),
        "no end of {heard:?}",
        heard = String::from_utf8_lossy(&heard)
    );
    Heard {
        statuses: statuses(&heard),
        closed,
    }
}

async fn ask_peer(address: SocketAddr, bytes: &[u8]) -> Heard {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _refused = stream.write_all(bytes).await;
    let mut heard = Vec::new();
    let mut closed = false;
    while let Ok(read) = timeout(QUIET, stream.read_buf(&mut heard)).await {
        if read.unwrap_or(0) == 0 {
            closed = true;
            break;
        }
    }
    Heard {
        statuses: statuses(&heard),
        closed,
    }
}

/// The work of each case, so many at once, in the order of the cases.
async fn each<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    cases: &[Case],
    work: impl Fn(Case) -> F,
) -> Vec<T> {
    let mut done = Vec::new();
    for some in cases.chunks(AT_ONCE) {
        let mut set = JoinSet::new();
        for (place, case) in some.iter().enumerate() {
            let work = work(case.clone());
            set.spawn(async move { (place, work.await) });
        }
        let mut all = set.join_all().await;
        all.sort_by_key(|(place, _)| *place);
        done.extend(all.into_iter().map(|(_, what)| what));
    }
    done
}

/// Without what only an absolute target has.
fn plain(seen: &[Seen]) -> Vec<Seen> {
    let strip = |target: &str| match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest
            .split_once('/')
            .map_or_else(|| "/".to_owned(), |(_, path)| format!("/{path}")),
        _ => target.to_owned(),
    };
    seen.iter()
        .map(|seen| Seen {
            target: strip(&seen.target),
            ..seen.clone()
        })
        .collect()
}

/// Whether the app behind us got only what `other` passed on, too, in the same order.
fn is_prefix(ours: &[Seen], other: &[Seen]) -> bool {
    let other = plain(other);
    other.starts_with(&plain(ours))
}

fn in_words(seen: &[Seen], statuses: &[u16]) -> String {
    let mut text = String::new();
    for seen in plain(seen) {
        let body = if seen.body.is_empty() {
            String::new()
        } else {
            format!("+{}", seen.body.len())
        };
        let _infallible = write!(text, "{}{body} ", seen.method);
    }
    let last = statuses.last().filter(|status| **status >= 400);
    let end = last.map_or_else(
        || {
            if seen.is_empty() {
                "waits".to_owned()
            } else {
                String::new()
            }
        },
        u16::to_string,
    );
    format!("{text}{end}").trim().to_owned()
}

/// The reading of one peer.
async fn readings(peer: &Peer, cases: &[Case]) -> Vec<(Vec<Seen>, Vec<u16>)> {
    let address = peer.http1;
    let heard = each(cases, move |case| async move {
        ask_peer(address, &case.bytes).await
    })
    .await;
    let all = cases.iter().zip(heard);
    all.map(|(case, heard)| (peer.got.of(case.number), heard.statuses))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_read_in_one_way_or_refused() {
    let cases = [corpus::read("http1.txt"), corpus::read("found.txt")].concat();
    let cases: Vec<Case> = cases
        .into_iter()
        .enumerate()
        .map(|(place, case)| renumbered(case, 100 + place))
        .collect();
    assert!(cases.len() >= 200, "{}", cases.len());
    let mut scene = Scene::new(route()).await;
    let (app, got, _app) = recorder::recorder().await;
    scene.ready_at(app).await;
    let address = scene.address;
    let heard = each(&cases, move |case| async move {
        let refused = usize::from(matches!(case.end, End::Refused(_)));
        ask_us(
            address,
            &case.bytes,
            case.seen.len() + refused,
            case.end == End::Closed,
        )
        .await
    })
    .await;
    let mut wrong = String::new();
    let mut answers = 0;
    for (case, heard) in cases.iter().zip(&heard) {
        answers += heard.statuses.len();
        let seen = got.of(case.number);
        let mut statuses: Vec<Option<u16>> = vec![Some(200); case.seen.len()];
        if let End::Refused(status) = case.end {
            statuses.push(status);
        }
        // `OPTIONS *` has no number.
        let answered = statuses.len() == heard.statuses.len()
            && statuses
                .iter()
                .zip(&heard.statuses)
                .all(|(want, is)| match want {
                    Some(want) => want == is,
                    None => *is >= 400,
                })
            || case.name.starts_with("options-star");
        let ended = heard.closed || case.end != End::Closed;
        if seen != case.seen || !answered || !ended {
            let _infallible = writeln!(wrong, "{}: {seen:?} {heard:?}", case.name);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    let strange = got.strange.lock().clone();
    assert!(strange.is_empty(), "passed on: {strange:?}");
    // Refused ones too have one record each, and nothing else has.
    let records = scene.records(answers).await;
    let told = |record: &&RequestRecord| record.status != CLIENT_GONE;
    assert_eq!(records.iter().filter(told).count(), answers);
    scene.close().await;
}

/// The same case under another number.
fn renumbered(mut case: Case, number: usize) -> Case {
    let (old, new) = (case.number.to_string(), number.to_string());
    let mut at = 0;
    while let Some(found) = recorder::find(&case.bytes[at..], old.as_bytes()) {
        at += found;
        case.bytes[at..at + 3].copy_from_slice(new.as_bytes());
        at += 3;
    }
    for seen in &mut case.seen {
        seen.target = seen.target.replace(&old, &new);
    }
    case.number = number;
    case
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_is_read_more_laxly_than_by_nginx_and_haproxy() {
    let (Some(nginx), Some(haproxy)) = (peers::nginx().await, peers::haproxy().await) else {
        skip(here!(), "nginx or haproxy is not installed");
        return;
    };
    let cases = corpus::read("http1.txt");
    let nginx_reads = readings(&nginx, &cases).await;
    let haproxy_reads = readings(&haproxy, &cases).await;
    for (name, reads) in [(nginx.name, &nginx_reads), (haproxy.name, &haproxy_reads)] {
        assert_eq!(reads[0].0, cases[0].seen, "{name} reads {}", cases[0].name);
    }
    let mut laxer = Vec::new();
    println!("| Message | here | nginx | haproxy |\n| --- | --- | --- | --- |");
    let mut differences = 0;
    for (case, (nginx, haproxy)) in cases.iter().zip(nginx_reads.iter().zip(&haproxy_reads)) {
        // That we read it as the corpus says is the test above.
        let ours = &case.seen;
        if !is_prefix(ours, &nginx.0) && !is_prefix(ours, &haproxy.0) {
            laxer.push(case.name.clone());
        }
        let status = match case.end {
            End::Refused(status) => vec![status.unwrap_or(400)],
            _ => vec![],
        };
        if plain(&nginx.0) != plain(ours) || plain(&haproxy.0) != plain(ours) {
            differences += 1;
            println!(
                "| {} | {} | {} | {} |",
                case.name,
                in_words(ours, &status),
                in_words(&nginx.0, &nginx.1),
                in_words(&haproxy.0, &haproxy.1)
            );
        }
    }
    println!(
        "{} messages, {differences} read in another way by {} or {}",
        cases.len(),
        nginx.name,
        haproxy.name
    );
    assert_eq!(laxer, Vec::<String>::new());
}
