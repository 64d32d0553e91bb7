//! A request in the queue: everything that can end its waiting.

use std::future::Future;

use crate::answer::Answer;
use crate::deadline::Deadline;
use crate::record::Exchange;
use crate::revision::Revision;
use crate::slot::{Slot, Ticket};
use crate::{Shared, waiting};

/// How long a request waits for its slot, besides the window of §2.6.
pub(crate) struct Until<'r> {
    pub(crate) deadline: &'r mut Deadline,
    /// It is shown a page instead of waiting for long.
    pub(crate) page: bool,
}

/// The slot that a ticket stands for.
pub(crate) async fn wait(
    shared: &Shared,
    revision: &Revision,
    mut ticket: Ticket,
    exchange: &Exchange,
    until: Until<'_>,
    ahead: impl Future<Output = ()>,
) -> Result<Slot, Answer> {
    let window = tokio::time::sleep_until(exchange.arrived + ticket.window);
    // Where an instance takes requests already, who waits keeps its place in the queue.
    let page = until.page && !revision.is_reached();
    tokio::select! {
        biased;
        answer = ticket.wait() => answer.map_err(Answer::Refused),
        () = until.deadline => Err(Answer::Timeout),
        () = tokio::time::sleep(waiting::PATIENCE), if page => Err(Answer::Starting),
        () = window => Err(revision.time_is_up()),
        () = shared.leaving.in_vain.cancelled() => Err(Answer::ShuttingDown),
        () = ahead => Err(Answer::ClientGone), // it never ends by itself
    }
}
