//! What was told once and need not be told again.

use std::collections::VecDeque;

use utsuwa_model::InstanceId;

/// Instances that something was told of, the last of them: each of many requests that waited for an instance could tell its start.
#[derive(Debug, Default)]
pub(super) struct Told(VecDeque<InstanceId>);

impl Told {
    /// Who waited for one instance is answered within moments; more don't start meanwhile.
    const KEPT: usize = 1_024;

    /// `false`: it was asked for already.
    pub(super) fn is_news(&mut self, instance: &InstanceId) -> bool {
        if self.0.contains(instance) {
            return false;
        }
        if self.0.len() >= Self::KEPT {
            self.0.pop_front();
        }
        self.0.push_back(instance.clone());
        true
    }
}
