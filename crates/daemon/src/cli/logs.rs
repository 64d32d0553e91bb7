//! `utsuwa logs NAME [--follow]`.

use clap::Args;
use futures_util::StreamExt;
use serde_json::Value;

use super::{ClientArgs, suggest};
use crate::client::Failure;
use crate::output::{Format, line, text_at, value};

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name of the service.
    name: String,
    /// Go on with new lines.
    #[arg(long, short)]
    follow: bool,
    /// How many lines of the past.
    #[arg(long, default_value_t = 200, value_name = "N")]
    tail: usize,
}

pub(crate) async fn run(args: &LogsArgs, client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    let path = format!(
        "/utsuwa/v1/{}/services/{}/logs?tail={}&follow={}",
        api.parent(),
        args.name,
        args.tail,
        args.follow
    );
    let mut body = match api.stream(&path).await {
        Ok(response) => response.bytes_stream(),
        Err(failure) => return Err(suggest::service(&api, &args.name, failure).await),
    };
    let mut pending = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| {
            Failure::failed(format!("the log stream broke off: {e}"))
                .hint("is the server still up?")
        })?;
        pending.extend_from_slice(&chunk);
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let record: Vec<u8> = pending.drain(..=end).collect();
            print(&record, &client.format)?;
        }
    }
    Ok(())
}

fn print(record: &[u8], format: &Format) -> Result<(), Failure> {
    match (serde_json::from_slice::<Value>(record), format) {
        (Ok(record), Format::Table) => {
            let (instance, container) =
                (text_at(&record, "instance"), text_at(&record, "container"));
            let mut who = instance.get(..8).unwrap_or_default().to_owned();
            if !container.is_empty() {
                who = format!("{who} {container}");
            }
            line(&format!(
                "{} {who} {:<6} {}",
                text_at(&record, "at"),
                text_at(&record, "stream"),
                text_at(&record, "text")
            ));
        }
        (Ok(record), Format::Value(path)) => line(&text_at(&record, path)),
        // A document per line: a stream has no end that a list could be closed with.
        (Ok(record), Format::Yaml) => {
            line("---");
            value(format, &record)?;
        }
        (Ok(record), Format::Json) => line(&record.to_string()),
        (Err(_), _) => line(String::from_utf8_lossy(record).trim_end()),
    }
    Ok(())
}
