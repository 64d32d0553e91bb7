//! Pure decisions: how many instances, where a request goes, which revision gets what traffic, and why.
//!
//! Owns: every choice that can be made from a snapshot, settings, a time and a die. Each answers with what to do, why
//! ([`utsuwa_model::Because`]) and when to ask again.
//!
//! Deliberately not here: clocks, chance, I/O, async, unordered maps (law 1). Callers bring those.
//!
//! Invariants are functions of their own in [`invariant`], used in simulation, crash tests and `debug_assert`s.

pub mod admit;
pub mod boost;
pub mod capacity;
pub mod certificate;
pub mod containers;
pub mod demand;
pub mod health;
pub mod instances;
pub mod invariant;
pub mod kpa;
pub mod latest;
pub mod revision;
pub mod scale;
pub mod settings;
pub mod standing;
pub mod tiers;
pub mod traffic;
pub mod words;
pub mod zygote;
