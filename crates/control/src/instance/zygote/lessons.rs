//! What is learnt of a program, and what counts against it.

use utsuwa_decide::zygote::{self, Lessons};
use utsuwa_model::demand::{Reach, RevisionDemand};
use utsuwa_model::{InstanceId, RevisionKey};

use super::Birth;
use crate::core::Core;
use crate::rounds::Priority;

impl Core {
    /// One that was parked never answered. Perhaps it would not have in any case, but perhaps it is because of that: the next one
    /// starts as always, and only if that fails too has the program failed. `false`: it wasn't parked.
    pub(in crate::instance) fn distrust(
        &self,
        key: &RevisionKey,
        birth: Birth,
        what: &str,
    ) -> bool {
        if birth != Birth::Parked {
            return false;
        }
        let why = format!("an instance that had been parked never answered ({what})");
        tracing::warn!(revision = %key, why, "nothing more is parked");
        self.world
            .revision(key, |state| state.zygotes.lessons = Lessons::Refused(why));
        self.ask_instances(key, Priority::Soon);
        self.after_count_changed(key);
        true
    }

    /// Reads what the idle instances that are looked at have imported, once for each time that they fell idle.
    pub(in crate::instance) fn take_lessons(&self, key: &RevisionKey, demand: &RevisionDemand) {
        let idle: Vec<InstanceId> = self
            .world
            .revision(key, |state| {
                let mut idle = Vec::new();
                for load in demand
                    .instances
                    .iter()
                    .filter(|load| load.in_flight == 0 && load.reach == Reach::Ready)
                {
                    if let Some(record) = state.instances.get_mut(&load.id)
                        && let Birth::Learning(read) = &mut record.birth
                        && load.idle_since.is_some()
                        && *read != load.idle_since
                    {
                        *read = load.idle_since;
                        idle.push(load.id.clone());
                    }
                }
                idle
            })
            .unwrap_or_default();
        for id in idle {
            self.read_lesson(key, &id);
        }
    }

    /// Before it goes.
    pub(in crate::instance) fn take_last_lesson(&self, key: &RevisionKey, id: &InstanceId) {
        let learns = self.world.revision(key, |state| {
            let record = state.instances.get(id);
            record.is_some_and(|record| matches!(record.birth, Birth::Learning(_)))
        });
        if learns == Some(true) {
            self.read_lesson(key, id);
        }
    }

    fn read_lesson(&self, key: &RevisionKey, id: &InstanceId) {
        let Some(learnt) = self.driver.learnt(id) else {
            return;
        };
        let lessons = zygote::judge(learnt);
        self.world.revision(key, |state| {
            let known = &mut state.zygotes.lessons;
            match (&*known, &lessons) {
                // What was found wrong later counts more.
                (Lessons::Refused(_), _) | (_, Lessons::None) => return,
                (Lessons::Modules(before), Lessons::Modules(now)) if before.len() >= now.len() => return,
                _ => {}
            }
            tracing::info!(revision = %key, instance = %id, because = %summary(&lessons), "learnt how a program starts");
            *known = lessons;
        });
    }
}

fn summary(lessons: &Lessons) -> String {
    match lessons {
        Lessons::None => "nothing".to_owned(),
        Lessons::Modules(modules) => format!("{} modules", modules.len()),
        Lessons::Refused(why) => why.clone(),
    }
}
