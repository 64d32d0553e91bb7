//! Instances that wait, and what others teach.

use utsuwa_model::InstanceId;
use utsuwa_model::instance::Zygote;

use super::{Call, FakeDriver};
use crate::driver::DriverError;

impl FakeDriver {
    /// What every instance that learns has imported, or why none can.
    pub fn learns(&self, learnt: Result<&[&str], &str>) {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.inner.world.lock().learnt = Some(learnt.map(owned).map_err(str::to_owned));
    }

    /// Whether an instance is parked; `None` if it isn't there.
    #[must_use]
    pub fn parked(&self, id: &InstanceId) -> Option<bool> {
        let world = self.inner.world.lock();
        world.running.get(id).map(|found| found.parked)
    }

    pub(super) async fn let_go_on(&self, id: InstanceId) -> Result<(), DriverError> {
        self.before(Call::GoOn, &format!("go {id}")).await?;
        let mut world = self.inner.world.lock();
        let Some(found) = world.running.get_mut(&id) else {
            return Err(DriverError::NotFound(id));
        };
        if std::mem::replace(&mut found.parked, false) {
            world.log.push(format!("go {id}"));
        }
        Ok(())
    }

    pub(super) fn learnt_of(&self, id: &InstanceId) -> Option<Result<Vec<String>, String>> {
        let world = self.inner.world.lock();
        let learns = world.specs.get(id)?.zygote == Some(Zygote::Learn);
        world.learnt.clone().filter(|_| learns)
    }
}
