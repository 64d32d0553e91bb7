//! Whose turn it is on busy processors.
//!
//! A start is a few milliseconds of work in several processes, each of which would otherwise wait its turn among all that is busy:
//! other instances, the server with the requests that wait for the start, and whatever else the machine does. So spawners go first.
//! What they start doesn't, nor what takes them long. Unpacking, which a deploy waits for, has everybody's turn.
//!
//! Failure: none of it is needed. Without the privilege (a server without root) everything has the same turn, as ever.

use rustix::process::{setpriority_process, setsid};

/// Of spawners: nine times the weight of what runs at the default. They sleep but for starts, makings and removals.
const FIRST: i32 = -10;
/// Of what is started: the default.
const EQUAL: i32 = 0;
/// Of work that takes seconds and that nobody waits for at the millisecond.
const LAST: i32 = 10;

/// This process goes before others: a spawner.
pub(crate) fn goes_first() {
    turn(FIRST);
}

/// As everybody: what a spawner starts (an instance, an unpacker), or becomes.
pub(crate) fn goes_with_others() {
    turn(EQUAL);
}

/// After everybody: copying and deleting.
pub(crate) fn goes_last() {
    turn(LAST);
}

fn turn(nice: i32) {
    // Outside of cgroups the kernel weighs sessions, and processes only within theirs: one of its own, and its weight. Refused to
    // who leads one already.
    let _ = setsid();
    let _ = setpriority_process(None, nice);
    // Absent where the kernel doesn't weigh sessions.
    let _ = std::fs::write("/proc/self/autogroup", nice.to_string());
}
