//! How much of an instance is awake.

use utsuwa_model::InstanceId;
use utsuwa_model::instance::Tier;

use super::{Call, FakeDriver};
use crate::driver::DriverError;

impl FakeDriver {
    /// How much of an instance is awake; `None` if it isn't there.
    #[must_use]
    pub fn tier(&self, id: &InstanceId) -> Option<Tier> {
        let world = self.inner.world.lock();
        world.running.get(id).map(|found| found.tier)
    }

    pub(super) async fn change_tier(
        &self,
        call: Call,
        word: &str,
        id: InstanceId,
        tier: Tier,
    ) -> Result<(), DriverError> {
        self.before(call, &format!("{word} {id}")).await?;
        let mut world = self.inner.world.lock();
        let Some(found) = world.running.get_mut(&id) else {
            return Err(DriverError::NotFound(id));
        };
        if found.tier != tier {
            found.tier = tier;
            world.log.push(format!("{word} {id}"));
        }
        Ok(())
    }
}
