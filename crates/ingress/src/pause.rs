//! Short pauses. tokio's timers tick in milliseconds; a cold start is decided in fractions of one.

use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// From here on tokio's own timers are precise enough (1 ms of 10).
const COARSE: Duration = Duration::from_millis(10);

/// A timer of the kernel's, falling back to tokio's where there is none to be had (descriptors used up).
#[derive(Debug)]
pub(crate) struct Pause {
    /// A timer descriptor is read like a pipe: eight bytes when it has gone off.
    timer: Option<pipe::Receiver>,
}

impl Pause {
    pub(crate) fn new() -> Self {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .ok()
        .and_then(|timer| pipe::Receiver::from_owned_fd_unchecked(timer).ok());
        Self { timer }
    }

    pub(crate) async fn wait(&mut self, length: Duration) {
        let waited = match &mut self.timer {
            Some(timer) if length < COARSE => wait_on(timer, length).await,
            _ => None,
        };
        if waited.is_none() {
            tokio::time::sleep(length).await;
        }
    }
}

async fn wait_on(timer: &mut pipe::Receiver, length: Duration) -> Option<()> {
    let value = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(length.subsec_nanos().max(1)),
    };
    let once = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: value,
    };
    rustix::time::timerfd_settime(&*timer, TimerfdTimerFlags::empty(), &once).ok()?;
    timer.read_u64().await.ok().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_short_pause_is_short_and_can_be_repeated() {
        let mut pause = Pause::new();
        let began = tokio::time::Instant::now();
        for _ in 0..20 {
            pause.wait(Duration::from_micros(150)).await;
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(3), "{took:?}");
        // tokio's timer would need 20 ms at least; the bound is wide for a busy machine.
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
}
