//! The machine stands still and goes on: a laptop that is closed, a virtual machine that is paused. (What the wall clock says then is
//! `loops clock` of the control crate.)

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Server, can_run, until};
use crate::skip::here;

/// Longer than anybody here waits for an answer of another process of ours. That nobody answers for so long is the state that this test
/// waits for, so it takes its time (docs/flakes.md).
const STILL: Duration = Duration::from_secs(12);

/// Every process stops; all go on when dropped, whatever fails meanwhile.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn all_of(server: &Server, service: &str) -> Self {
        let roles = server.roles().into_iter().map(|(_, pid)| pid);
        let instances = server.instance_pids(service).into_iter();
        let all = roles.chain(instances.map(|pid| u32::try_from(pid).unwrap()));
        let pids: Vec<Pid> = all
            .map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()).unwrap())
            .collect();
        for pid in &pids {
            kill_process(*pid, Signal::STOP).unwrap();
        }
        Self(pids)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            kill_process(*pid, Signal::CONT).unwrap();
        }
    }
}

#[test]
fn what_stood_still_together_goes_on_together() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("hello", &["--max-instances", "1", "--timeout", "60"]);
    server.until_instances("hello", 1);
    let before = server.instance_pids("hello");
    std::thread::scope(|scope| {
        // Not over before all stand still, and no longer than they do.
        let held = scope.spawn(|| server.get("hello", "/sleep?ms=10000"));
        until("the request to be there", Duration::from_secs(5), || {
            let explained = server.explain("hello");
            explained
                .to_string()
                .contains("\"inFlight\":1")
                .then_some(())
        });
        let stopped = Stopped::all_of(&server, "hello");
        assert!(stopped.0.len() >= 5, "{:?}", stopped.0);
        assert!(!held.is_finished(), "it is under way");
        let (answered, answer) = channel();
        let server = &server;
        scope.spawn(move || answered.send(server.get("hello", "/healthz")).unwrap());
        let early = answer.recv_timeout(STILL);
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "nobody answers");
        assert!(!held.is_finished(), "nor is it answered");
        drop(stopped);
        assert_eq!(held.join().unwrap().0, 200, "under way before");
        assert_eq!(answer.recv().unwrap().0, 200, "came meanwhile");
    });
    assert_eq!(server.instance_pids("hello"), before, "nobody was given up");
    server.deploy("other", &[]);
    assert_eq!(server.get("other", "/healthz").0, 200, "starts go on, too");
    server.finish();
}
