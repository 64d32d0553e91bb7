//! What HTTP/2 requests can't smuggle into the HTTP/1.1 messages they become.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::super::scene::{PATIENCE, Scene, route};
use super::corpus::{self, Case, End};
use super::h2raw::{DATA, END_HEADERS, END_STREAM, HEADERS, Raw, block, frame};
use super::{each, is_prefix, peers, recorder};
use crate::skip::{here, skip};

/// The one message that we read in a way of our own: the library drops what follows `#` before anybody can see it. No two can
/// differ in what reaches the app, since it gets the path alone.
const FRAGMENT: &str = "path-fragment";

/// Sends the case's one request; whether it was answered at all, with whatever status.
async fn ask(address: SocketAddr, case: &Case, patience: Duration) -> bool {
    let mut raw = Raw::connect(address, &[]).await;
    let fields = block(&case.fields);
    let last = if case.bytes.is_empty() { END_STREAM } else { 0 };
    let mut bytes = frame(HEADERS, END_HEADERS | last, 1, &fields);
    if !case.bytes.is_empty() {
        bytes.extend(frame(DATA, END_STREAM, 1, &case.bytes));
    }
    raw.send(&bytes).await;
    timeout(patience, raw.answered(1)).await.unwrap_or(false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_field_becomes_more_than_a_field() {
    let cases = corpus::read("http2.txt");
    let mut scene = Scene::new(route()).await;
    let (app, got, _app) = recorder::recorder().await;
    scene.ready_at(app).await;
    let address = scene.address;
    let answered = each(&cases, move |case| async move {
        ask(address, &case, PATIENCE).await
    })
    .await;
    for (case, answered) in cases.iter().zip(answered) {
        let seen = got.of(case.number);
        // One that breaks after its head may be passed on or not.
        let early = case.end != End::Open && case.seen.starts_with(&seen);
        assert!(seen == case.seen || early, "{}: {seen:?}", case.name);
        if case.end == End::Open {
            assert!(answered, "{}", case.name);
        }
    }
    assert!(got.strange.lock().is_empty(), "{:?}", got.strange.lock());
    let all: usize = cases.iter().map(|case| case.seen.len()).sum();
    assert!(got.seen.lock().len() <= all, "{:?}", got.seen.lock());
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_read_more_laxly_than_by_nginx_and_haproxy() {
    let (Some(nginx), Some(haproxy)) = (peers::nginx().await, peers::haproxy().await) else {
        skip(here!(), "nginx or haproxy is not installed");
        return;
    };
    let cases = corpus::read("http2.txt");
    for peer in [&nginx, &haproxy] {
        let address = peer.http2;
        each(&cases, move |case| async move {
            ask(address, &case, Duration::from_millis(500)).await
        })
        .await;
    }
    for peer in [&nginx, &haproxy] {
        assert_eq!(
            peer.got.of(100),
            cases[0].seen,
            "{} reads {}",
            peer.name,
            cases[0].name
        );
    }
    let mut laxer = Vec::new();
    println!("| HTTP/2 request | here | nginx | haproxy |\n| --- | --- | --- | --- |");
    for case in &cases {
        let reads = [nginx.got.of(case.number), haproxy.got.of(case.number)];
        if case.name != FRAGMENT && !reads.iter().any(|read| is_prefix(&case.seen, read)) {
            laxer.push(&case.name);
        }
        let word = |passed: bool| if passed { "passed on" } else { "refused" };
        if reads
            .iter()
            .any(|read| read.is_empty() != case.seen.is_empty())
        {
            println!(
                "| {} | {} | {} | {} |",
                case.name,
                word(!case.seen.is_empty()),
                word(!reads[0].is_empty()),
                word(!reads[1].is_empty())
            );
        }
    }
    assert_eq!(laxer, Vec::<&String>::new());
}
