//! Whose turn it is on busy processors, and how soon it comes.
//!
//! A start is a few milliseconds of work in several processes, each of which would otherwise wait its turn among all that is busy:
//! other instances, the server with the requests that wait for the start, and whatever else the machine does. So spawners go first.
//! What they start doesn't, nor what takes them long. Unpacking, which a deploy waits for, has everybody's turn.
//!
//! A start is also a dozen hand-overs from one process to the next. The kernel lets whoever computes finish its slice before
//! it looks at who was woken, which mostly is at its next tick: 4 ms for each hand-over. One that asks for a shorter slice than
//! others is looked at when it is woken. That says how soon, not how much: over time all have the share of their weight.
//!
//! Failure: none of it is needed. Without the privilege (a server without root) weights are equal, as ever; kernels before 6.12
//! know no slices of one's own.

use rustix::process::{setpriority_process, setsid};

use crate::sandbox::sys;

/// Of spawners: nine times the weight of what runs at the default. They sleep but for starts, makings and removals.
const FIRST: i32 = -10;
/// Of what is started: the default.
const EQUAL: i32 = 0;
/// Of work that takes seconds and that nobody waits for at the millisecond.
const LAST: i32 = 10;

/// Slice of those who hand over, in nanoseconds: the shortest there is. What they do between two hand-overs is no more than a few of
/// these.
const PROMPT_NS: u64 = 100_000;
/// Slice of instances: longer than that of who hands them their requests, shorter than the kernel's own (0.7 ms and more), as
/// for what answers requests.
const ANSWERING_NS: u64 = 400_000;
/// The kernel's own.
const USUAL_NS: u64 = 0;

/// This process, and all threads it will have, is looked at when it is woken: server and keeper. Call it before there are threads.
pub fn is_prompt() {
    let _ = sys::set_slice(PROMPT_NS);
}

/// This process goes before others: a spawner.
pub(crate) fn goes_first() {
    turn(FIRST, PROMPT_NS);
}

/// As everybody: what a spawner starts, or becomes.
pub(crate) fn goes_with_others() {
    turn(EQUAL, ANSWERING_NS);
}

/// As everybody, and for seconds: what somebody waits for that computes.
pub(crate) fn goes_on_with_others() {
    turn(EQUAL, USUAL_NS);
}

/// After everybody: copying and deleting.
pub(crate) fn goes_last() {
    turn(LAST, USUAL_NS);
}

fn turn(nice: i32, slice_ns: u64) {
    // Outside of cgroups the kernel weighs sessions, and processes only within theirs: one of its own, and its weight. Refused to
    // who leads one already.
    let _ = setsid();
    let _ = setpriority_process(None, nice);
    let _ = sys::set_slice(slice_ns);
    // Absent where the kernel doesn't weigh sessions.
    let _ = std::fs::write("/proc/self/autogroup", nice.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::{here, skip};

    /// In a thread of its own: neither its nice value nor its slice is another test's.
    fn in_a_thread(work: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    }

    #[test]
    fn threads_have_the_slice_of_who_makes_them_and_it_can_be_given_back() {
        in_a_thread(|| {
            let usual = sys::slice().unwrap();
            if usual == 0 {
                skip(
                    here!(),
                    "needs Linux 6.12: the kernel knows no slices of one's own",
                );
                return;
            }
            let nice = rustix::process::getpriority_process(None).unwrap();
            is_prompt();
            assert_eq!(sys::slice().unwrap(), PROMPT_NS);
            in_a_thread(|| assert_eq!(sys::slice().unwrap(), PROMPT_NS));
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), nice);
            sys::set_slice(USUAL_NS).unwrap();
            assert_eq!(sys::slice().unwrap(), usual);
        });
    }
}
