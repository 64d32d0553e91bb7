//! How long to wait between two attempts to connect to an app that doesn't listen yet.
//!
//! An attempt too early costs CPU that the app itself could use; one too late is time that a caller waits. Where it is known how long
//! starts take, attempts are dense around that time and sparse before it. Where it isn't, they follow each other quickly at first (a
//! fast app must not wait for us) and more slowly the longer it takes.

use std::time::Duration;

/// The pause after `running`, the time since the start began; `usual` is how long a start takes on the average, if that is known.
///
/// It delays a start that takes 3/4 to 3/2 of the usual time by at most 0.25 %, an earlier one by 5 %, and others by 2 %;
/// the shortest pause of the settings is the least for all.
pub(super) fn pause(running: Duration, usual: Option<Duration>) -> Duration {
    let Some(usual) = usual else {
        return running / 50;
    };
    let (dense, late) = (usual * 3 / 4, usual * 3 / 2);
    if running < dense {
        // Never beyond the time from which on it is expected.
        (running / 20).min(dense - running)
    } else if running <= late {
        running / 400
    } else {
        running / 50
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_micros(150);

    /// Attempts until `listens`, and how late the one is that finds it listening.
    fn attempts(listens: Duration, usual: Option<Duration>) -> (u32, Duration) {
        let (mut at, mut times) = (Duration::from_millis(1), 1);
        while at < listens {
            at += pause(at, usual).max(SHORTEST);
            times += 1;
        }
        (times, at - listens)
    }

    #[test]
    fn an_app_that_takes_its_usual_time_is_found_at_once_by_no_more_attempts() {
        let usual = Duration::from_millis(350);
        for percent in [80, 90, 100, 110, 120, 145] {
            let listens = usual * percent / 100;
            let (times, late) = attempts(listens, Some(usual));
            assert!(late <= listens / 400, "{listens:?}: {late:?}");
            let (unknowing, _) = attempts(listens, None);
            // One that is late is looked for more.
            let most = if percent > 100 {
                unknowing * 3 / 2
            } else {
                unknowing
            };
            assert!(times <= most, "{listens:?}: {times}, {unknowing}");
        }
    }

    #[test]
    fn whatever_was_usual_none_is_found_later_than_its_share() {
        for usual in [None, Some(3), Some(100), Some(350), Some(5_000)] {
            let usual = usual.map(Duration::from_millis);
            for listens in [2, 3, 10, 100, 350, 1_000, 20_000] {
                let listens = Duration::from_millis(listens);
                let (_, late) = attempts(listens, usual);
                assert!(
                    late <= (listens / 20).max(SHORTEST),
                    "{listens:?}, usually {usual:?}: {late:?}"
                );
            }
        }
    }
}
