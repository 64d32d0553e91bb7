//! Changes that somebody else overtook: read, change, send again. The server refuses a change of what was read before another came in
//! (the etag), so that nobody's work is lost without a word; a command that names what it wants makes it on top of the other's.

use std::time::Duration;

use crate::client::Failure;

/// Attempts in all. Of N commands at once one gets through in each round, and a service's own progress counts as a change, too.
const ATTEMPTS: u32 = 12;
/// Pause before the second attempt; it grows by as much with each. All together a command tries for some three seconds.
const PAUSE: Duration = Duration::from_millis(50);

/// Does `change`, which reads what there is and sends it back changed; again when it was overtaken. `what` is for the words when it
/// never gets through.
///
/// # Errors
/// `change`'s own; or that it was overtaken each time.
pub(super) async fn again<T>(
    what: &str,
    mut change: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    for attempt in 1..=ATTEMPTS {
        match change().await {
            Err(failure) if failure.is_overtaken() => {}
            done => return done,
        }
        if attempt < ATTEMPTS {
            tokio::time::sleep(PAUSE * attempt).await;
        }
    }
    Err(Failure::failed(format!(
        "{what} was changed by somebody else meanwhile, {ATTEMPTS} times in a row"
    ))
    .hint("run the command again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::refused_as;

    #[tokio::test(start_paused = true)]
    async fn an_overtaken_change_is_made_again() {
        let mut tried = 0;
        let done = again("service [web]", async || {
            tried += 1;
            if tried < 5 {
                Err(refused_as("ABORTED"))
            } else {
                Ok(tried)
            }
        });
        assert_eq!(done.await.ok(), Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn other_refusals_are_told_at_once() {
        // "Already exists" may be of a host that is another service's.
        for code in ["INVALID_ARGUMENT", "ALREADY_EXISTS"] {
            let mut tried = 0;
            let done = again::<()>("service [web]", async || {
                tried += 1;
                Err(refused_as(code))
            });
            assert_eq!(done.await.unwrap_err().message, "no");
            assert_eq!(tried, 1, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_always_overtaken_hears_what_to_do() {
        let mut tried = 0;
        let done = again::<()>("service [web]", async || {
            tried += 1;
            Err(refused_as("ABORTED"))
        });
        let failure = done.await.unwrap_err();
        assert_eq!(tried, ATTEMPTS);
        assert!(
            failure
                .message
                .contains("service [web] was changed by somebody else"),
            "{failure}"
        );
        assert_eq!(failure.hint.as_deref(), Some("run the command again"));
    }
}
