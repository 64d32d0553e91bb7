//! `utsuwa logs NAME [--follow]`.
//!
//! Following goes on over restarts and replacements of the server: lines are numbered for ever, so that after a new
//! connection everything since the first one is asked for and what was printed is left out.

mod seen;

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::Instant;
use utsuwa_api::seam::NEW_FROM_HEADER;

use self::seen::Seen;
use super::{ClientArgs, numbers, suggest};
use crate::client::{Api, Failure};
use crate::output::{Format, is_unread, line, note, text_at, value};

/// A server that is started again is back within this time; one that isn't is not about to be.
const AWAY: Duration = Duration::from_secs(60);
/// Between attempts to reach it.
const AGAIN: Duration = Duration::from_millis(200);
/// One attempt: the keeper takes connections also while no server is there to answer.
const ATTEMPT: Duration = Duration::from_secs(10);
/// As many lines as a server gives at most: all there are since the first connection.
const ALL: usize = 1_000_000;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name of the service.
    name: String,
    /// Go on with new lines, also when the server is restarted or replaced, until the service is deleted.
    #[arg(long, short)]
    follow: bool,
    /// How many lines of the past.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = numbers::whole::<usize>)]
    tail: usize,
}

pub(crate) async fn run(args: &LogsArgs, client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    let name = &args.name;
    let uid = match api.get(&api.service(name)).await {
        Ok(service) => text_at(&service, "uid"),
        Err(failure) => return Err(suggest::service(&api, name, failure).await),
    };
    let now = jiff::Timestamp::now();
    let mut answer = api.stream(&path(&api, args, None)).await?;
    let mut seen = Seen::new(new_from(&answer).unwrap_or(now), args.tail);
    loop {
        let ended = copy(answer, &mut seen, &client.format).await?;
        if is_unread() {
            return Ok(());
        }
        if !args.follow {
            return ended.map_err(|error| {
                Failure::failed(format!("the log stream broke off: {error}"))
                    .hint("is the server still up?")
            });
        }
        let from = seen.floor().to_string();
        match back(&api, args, &uid, &path(&api, args, Some(&from))).await? {
            Some(next) => answer = next,
            None => {
                note(&format!(
                    "Service [{name}] was deleted, and its log with it: nothing more will come."
                ));
                return Ok(());
            }
        }
    }
}

fn path(api: &Api, args: &LogsArgs, from: Option<&str>) -> String {
    let (tail, from) = match from {
        Some(from) => (ALL, format!("&from={from}")),
        None => (args.tail, String::new()),
    };
    format!(
        "/utsuwa/v1/{}/services/{}/logs?tail={tail}&follow={}{from}",
        api.parent(),
        args.name,
        args.follow
    )
}

/// From when on the server calls lines new, by its own clock. Servers of before don't say.
fn new_from(answer: &reqwest::Response) -> Option<jiff::Timestamp> {
    let told = answer.headers().get(NEW_FROM_HEADER)?;
    told.to_str().ok()?.parse().ok()
}

/// Prints what comes and wasn't printed before, until the stream ends. The inner error says how it broke off.
async fn copy(
    answer: reqwest::Response,
    seen: &mut Seen,
    format: &Format,
) -> Result<Result<(), reqwest::Error>, Failure> {
    let mut body = answer.bytes_stream();
    // A record that was cut off with its connection is dropped here and comes again.
    let mut pending = Vec::new();
    while let Some(chunk) = body.next().await {
        match chunk {
            Ok(chunk) => pending.extend_from_slice(&chunk),
            Err(error) => return Ok(Err(error)),
        }
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let record: Vec<u8> = pending.drain(..=end).collect();
            match serde_json::from_slice::<Value>(&record) {
                Ok(record) if !seen.is_new(&record) => {}
                Ok(record) => print(&record, format)?,
                Err(_) => line(String::from_utf8_lossy(&record).trim_end()),
            }
            if is_unread() {
                return Ok(Ok(()));
            }
        }
    }
    seen.connection_ended();
    Ok(Ok(()))
}

/// The stream goes on with whoever serves now. `None`: the service, as it was known by `uid`, is gone.
async fn back(
    api: &Api,
    args: &LogsArgs,
    uid: &str,
    path: &str,
) -> Result<Option<reqwest::Response>, Failure> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let attempt = async {
            let service = match api.get(&api.service(&args.name)).await {
                Err(failure) if failure.is_not_found() => return Ok(None),
                service => service?,
            };
            match text_at(&service, "uid") == uid {
                true => api.stream(path).await.map(Some),
                false => Ok(None),
            }
        };
        let failure = match tokio::time::timeout(ATTEMPT, attempt).await {
            Ok(Ok(answer)) => {
                if told && answer.is_some() {
                    note("the server is back; the log goes on where it was");
                }
                return Ok(answer);
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::unreachable("the server does not answer"),
        };
        if began.elapsed() >= AWAY {
            let what = format!(
                "the log of {}, not back after {} s",
                args.name,
                AWAY.as_secs()
            );
            return Err(failure.about(&what));
        }
        if !std::mem::replace(&mut told, true) {
            note(&format!(
                "the server went away ({failure}); waiting up to {} s for it to come back",
                AWAY.as_secs()
            ));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn print(record: &Value, format: &Format) -> Result<(), Failure> {
    match format {
        Format::Table => {
            let (instance, container) = (text_at(record, "instance"), text_at(record, "container"));
            let mut who = instance.get(..8).unwrap_or_default().to_owned();
            if !container.is_empty() {
                who = format!("{who} {container}");
            }
            line(&format!(
                "{} {who} {:<6} {}",
                text_at(record, "at"),
                text_at(record, "stream"),
                text_at(record, "text")
            ));
        }
        Format::Value(path) => line(&text_at(record, path)),
        // A document per line: a stream has no end that a list could be closed with.
        Format::Yaml => {
            line("---");
            value(format, record)?;
        }
        Format::Json => line(&record.to_string()),
    }
    Ok(())
}
