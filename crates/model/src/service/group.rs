//! Several containers in one instance, as the template means them (`cloud-run-spec.md` §1.3, §2.7).
//!
//! Owns: their numbers, what depends on what, when one counts as started. Doesn't: refuse what can't be (`validate::group`); a
//! name that no container has is no dependency here.

use super::defaults::startup_of_probe;
use super::{Container, RevisionTemplate};
use crate::quantity::MemoryBytes;
use crate::route::StartupProbe;

impl RevisionTemplate {
    /// Where in [`RevisionTemplate::containers`] the one is that takes requests.
    #[must_use]
    pub fn ingress_index(&self) -> usize {
        let with_port = self.containers.iter().position(|c| !c.ports.is_empty());
        with_port.unwrap_or(0)
    }

    /// The containers as an instance numbers them: the one that takes requests first, then the others as written. Each with its
    /// place in [`RevisionTemplate::containers`].
    #[must_use]
    pub fn numbered(&self) -> Vec<(usize, &Container)> {
        let first = self.ingress_index();
        let all = self.containers.iter().enumerate();
        let (mut numbered, others): (Vec<_>, Vec<_>) = all.partition(|(index, _)| *index == first);
        numbered.extend(others);
        numbered
    }

    /// By number: the numbers of those that must have started before.
    #[must_use]
    pub fn dependencies(&self) -> Vec<Vec<usize>> {
        let numbered = self.numbered();
        let number_of = |name: &String| numbered.iter().position(|(_, one)| one.name == *name);
        numbered
            .iter()
            .map(|(_, one)| one.depends_on.iter().filter_map(number_of).collect())
            .collect()
    }

    /// By number: how it is judged that the container has started. `None`: it has once its program runs.
    #[must_use]
    pub fn startup_of_each(&self) -> Vec<Option<StartupProbe>> {
        let of = |(number, (_, one)): (usize, &(usize, &Container))| match (
            number,
            &one.startup_probe,
        ) {
            (0, _) => Some(self.startup()),
            (_, Some(probe)) => Some(startup_of_probe(probe.defaulted(0), 0)),
            (_, None) => None,
        };
        self.numbered().iter().enumerate().map(of).collect()
    }

    /// What an instance may have in memory.
    #[must_use]
    pub fn memory_of_all(&self) -> MemoryBytes {
        self.containers.iter().map(super::Container::memory).sum()
    }
}
