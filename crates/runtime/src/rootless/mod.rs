//! A server of an ordinary user: everything that takes root happens in a user namespace of theirs.
//!
//! Owns: the *holder*, a process that keeps a user, mount and network namespace ([`world`]); entering them; which ids there are
//! ([`ids`]); the program that carries packets between the holder's network and the host's ([`egress`]); what an ordinary user
//! lacks on this machine ([`lacks`]).
//! Doesn't: run a server. `utsuwa up` enters the holder's user and mount namespace and goes on as if it were root; it stays in
//! the host's network, where it listens, resolves names and pulls images. The keeper lives in the holder's network, which is to
//! the gateway what the host's is when root runs it.
//!
//! Invariants
//! 1. Nothing here runs as root of the host, except `newuidmap` and `newgidmap`, which the administrator installed for this.
//! 2. One holder for each data directory, known by process id and start time; a second `up` enters the same namespaces.
//! 3. What is weaker than as root is told by [`World::weaker`] and [`lacks`], each with what would mend it, if anything.

pub mod egress;
mod holder;
mod ids;
pub mod lacks;
mod place;
mod process;
mod residents;
mod world;

pub use holder::main as holder_main;
pub use ids::is_rootless;
pub(crate) use ids::{Ids, SERVER_ID, may_set_groups, user_outside};
pub use place::runtime_base;
pub(crate) use place::{inhabited, runtime_dir};
pub(crate) use world::network_of_holder;
pub use world::{Place, RootlessError, World, host_addresses};
