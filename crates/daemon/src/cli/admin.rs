//! `utsuwa loops`: the visible table of the server's loops.

use serde_json::Value;

use super::ClientArgs;
use crate::client::Failure;
use crate::output::{items, text_at};

pub(crate) async fn loops(client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    let answer = api.get("/utsuwa/v1/loops").await?;
    let all: Vec<Value> = answer["loops"].as_array().cloned().unwrap_or_default();
    items(
        &client.format,
        &all,
        &[
            ("LOOP", &|i| text_at(i, "name")),
            ("KEY", &|i| text_at(i, "key")),
            ("LAST PASS", &|i| text_at(i, "lastPass")),
            ("µs", &|i| text_at(i, "durationUs")),
            ("BECAUSE", &|i| text_at(i, "because")),
            ("ERROR", &|i| text_at(i, "lastError")),
        ],
    )
}
