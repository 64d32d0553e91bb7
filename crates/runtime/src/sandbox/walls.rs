//! The walls around an instance by name, and builds in which one is missing.
//!
//! Owns: the names. A build with the feature `missing-walls` leaves out those that the variable `UTSUWA_MISSING_WALLS` of the
//! server's environment lists (`seccomp,masks`), so that the hostile suite can show that its attempts get through there: a
//! test that can't fail proves nothing. The feature is off by default, refused in optimised builds, and a build without it
//! knows no variable: [`Wall::stands`] is a constant there. Whoever starts such a build is told ([`left_out`]).
//! Doesn't: build a wall; each stands where its name is asked for.

/// One layer of what confines an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wall {
    /// Root inside is nobody outside.
    UserNamespace,
    /// The list of system calls.
    Seccomp,
    /// Bounding set, inheritable set, `no_new_privs`.
    Capabilities,
    /// Hidden and read-only paths; `nosuid`, `nodev` and read-only mounts.
    Masks,
    /// Limits: of the cgroup, of resources, of memory-backed file systems.
    Cgroup,
    /// Rules on packets.
    Egress,
}

#[cfg(all(feature = "missing-walls", not(debug_assertions)))]
compile_error!(
    "missing-walls makes instances that confine nothing: it is for tests, never for an optimised build"
);

impl Wall {
    /// Whether it is there.
    #[cfg(not(feature = "missing-walls"))]
    pub(crate) const fn stands(self) -> bool {
        let _ = self;
        true
    }

    /// Whether it is there.
    #[cfg(feature = "missing-walls")]
    pub(crate) fn stands(self) -> bool {
        let name = match self {
            Self::UserNamespace => "user-namespace",
            Self::Seccomp => "seccomp",
            Self::Capabilities => "capabilities",
            Self::Masks => "masks",
            Self::Cgroup => "cgroup",
            Self::Egress => "egress",
        };
        !listed().split(',').any(|one| one == name)
    }
}

/// What a build that can leave walls out leaves out, for people: such a build must not be taken for an ordinary one.
#[cfg(not(feature = "missing-walls"))]
#[must_use]
pub const fn left_out() -> Option<&'static str> {
    None
}

/// What a build that can leave walls out leaves out, for people: such a build must not be taken for an ordinary one.
#[cfg(feature = "missing-walls")]
#[must_use]
pub fn left_out() -> Option<&'static str> {
    Some(match listed() {
        "" => "none now",
        some => some,
    })
}

#[cfg(feature = "missing-walls")]
fn listed() -> &'static str {
    static LISTED: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    #[expect(
        clippy::disallowed_methods,
        reason = "only in builds that exist to be broken, and only here"
    )]
    LISTED.get_or_init(|| std::env::var("UTSUWA_MISSING_WALLS").unwrap_or_default())
}
