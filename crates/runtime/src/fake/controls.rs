//! What a test tells the driver to do next.

use std::time::Duration;

use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, Tier};

use super::{Call, FakeDriver, Gate};
use crate::driver::DriverError;

impl FakeDriver {
    /// The instance ends by itself.
    pub fn exit(&self, id: &InstanceId, exit: Exit, last_lines: Vec<String>) {
        self.exit_of(id, "", exit, last_lines);
    }

    /// The instance ends of the end of one of its containers.
    pub fn exit_of(&self, id: &InstanceId, container: &str, exit: Exit, last_lines: Vec<String>) {
        if self.inner.world.lock().end(id) {
            self.tell(id, container, exit, last_lines);
        }
    }

    /// The next `call` fails with `error`; repeated, the one after it too.
    pub fn fail_next(&self, call: Call, error: DriverError) {
        self.inner
            .world
            .lock()
            .failures
            .entry(call)
            .or_default()
            .push_back(error);
    }

    /// How long every start takes.
    pub fn start_takes(&self, time: Duration) {
        self.inner.world.lock().start_takes = time;
    }

    /// How long every stop takes: until then it runs.
    pub fn stop_takes(&self, time: Duration) {
        self.inner.world.lock().stop_takes = time;
    }

    /// Programs end like this as soon as they were started; `None`: they run.
    pub fn exit_at_start(&self, exit: Option<(Exit, Vec<String>)>) {
        self.inner.world.lock().exit_at_start = exit;
    }

    /// What the machine lacks: the first tier that can't be reached, and why. Calls don't fail for it ([`FakeDriver::fail_next`]).
    pub fn bars(&self, barred: Option<(Tier, &str)>) {
        let barred = barred.map(|(tier, why)| (tier, why.to_owned()));
        self.inner.world.lock().barred = barred;
    }

    /// Sets or clears the gate before calls.
    pub fn gate(&self, gate: Option<Gate>) {
        self.inner.world.lock().gate = gate;
    }
}
