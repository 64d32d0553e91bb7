//! Waiting for an operation of the server's, for every command that starts one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use utsuwa_decide::revision::NOT_STARTED;

use super::progress::Progress;
use crate::client::{Api, Failure};

/// How long a server that went away while an operation is waited for may take to come back: a restart or an upgrade.
const RESTART: Duration = Duration::from_secs(30);

/// The server answers within 30 s; more than that, and it is away.
const ANSWER: Duration = Duration::from_secs(40);

/// Waits until the operation is done, over restarts of the server: what it acknowledged it goes on with.
pub(crate) async fn wait(api: &Api, operation: &Value) -> Result<(), Failure> {
    until_done(api, operation, &Progress::hidden()).await
}

/// The same for a change of `service`, and shows meanwhile what happens.
pub(crate) async fn wait_shown(
    api: &Api,
    operation: &Value,
    service: &str,
    progress: &Progress,
) -> Result<(), Failure> {
    tokio::select! {
        result = until_done(api, operation, progress) => result,
        () = progress.follow(api, service) => Ok(()),
    }
}

async fn until_done(api: &Api, operation: &Value, progress: &Progress) -> Result<(), Failure> {
    let Some(name) = operation["name"].as_str() else {
        return Ok(());
    };
    let mut current = operation.clone();
    let mut away: Option<Instant> = None;
    while current["done"] != json!(true) {
        match api
            .post_within(
                &format!("/run/v2/{name}:wait"),
                &json!({"timeout": "30s"}),
                ANSWER,
            )
            .await
        {
            Ok(answer) => {
                current = answer;
                away = None;
            }
            Err(failure) if failure.status == 3 => match away {
                None => {
                    progress.note(&format!(
                        "{failure}; waiting up to {} s for it to come back",
                        RESTART.as_secs()
                    ));
                    away = Some(Instant::now());
                }
                Some(since) if since.elapsed() >= RESTART => return Err(failure),
                Some(_) => {}
            },
            Err(failure) => return Err(failure),
        }
        if current["done"] != json!(true) {
            // The server blocks in :wait; this only keeps one that is away (or odd) from being asked in a tight loop.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    match current["error"]["message"].as_str() {
        Some(message) => Err(failed(message, &current)),
        None => Ok(()),
    }
}

/// The failure of an operation; when the program is at fault, with where to read what it wrote.
fn failed(message: &str, operation: &Value) -> Failure {
    let mut failure = Failure::failed(super::words::cause(message));
    let details = operation["error"]["details"].as_array();
    let reasons = || {
        let all = details.into_iter().flatten();
        all.filter_map(|detail| detail["reason"].as_str())
    };
    failure.nothing_ran = message.contains(NOT_STARTED)
        || reasons().any(|r| ["ContainerMissing", "ContainerImageUnauthorized"].contains(&r));
    let of_the_program = reasons()
        .any(|reason| reason == "HealthCheckContainerError" || reason.starts_with("ExitCode"));
    let service = super::short(operation["metadata"]["name"].as_str().unwrap_or_default());
    if of_the_program && !failure.nothing_ran && !service.is_empty() {
        failure.hint(format!("`utsuwa logs {service}` shows what it wrote"))
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_by_its_cause_and_where_to_read_on() {
        let operation = |reason: &str| {
            json!({"metadata": {"name": "projects/p/locations/r/services/web"},
                "error": {"details": [{"reason": reason}]}})
        };
        let message = "The container exited with status 3 before it listened.\n\nThe user-provided container failed to start and listen \
                       on the port defined provided by the PORT=8080 environment variable. The health check timeout can be extended.";
        let crashed = failed(message, &operation("ExitCode3"));
        assert_eq!(
            crashed.message,
            "The container exited with status 3 before it listened."
        );
        assert!(crashed.hint.unwrap().contains("utsuwa logs web"));
        let missing = failed("Image 'x' not found.", &operation("ContainerMissing"));
        assert!(missing.nothing_ran && missing.hint.is_none());
        let message = format!("Revision 'web-1' is not ready. {NOT_STARTED} no /app");
        let unstarted = failed(&message, &operation("HealthCheckContainerError"));
        assert!(unstarted.nothing_ran && unstarted.hint.is_none());
    }
}
