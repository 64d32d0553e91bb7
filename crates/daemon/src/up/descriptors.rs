//! Who may have how many of the server's open files.
//!
//! A client's connection takes one, and the one to the instance behind it another. What is not shared out here (three
//! sixteenths and more) is for the API, the database, images, logs, and the sockets that stand for sandboxes.

/// Connections at once, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// Of clients from outside, all public listeners together.
    pub public: usize,
    /// Of instances to services, all together.
    pub instances: usize,
    /// Of one instance to services.
    pub per_instance: usize,
    /// Of instances to ports of the host, all together.
    pub forwards: usize,
}

/// Shares `open_files` out: half of them to clients from outside, a quarter to instances that call services, a sixteenth to
/// those that call the host.
pub(super) fn share(open_files: u64) -> Shares {
    let part = |of: u64, most: usize| {
        usize::try_from(open_files / of)
            .unwrap_or(usize::MAX)
            .min(most)
            .max(1)
    };
    let instances = part(8, 8_192);
    Shares {
        // More than this on one machine is a load that needs another machine, and each costs some 10 KiB.
        public: part(4, 16_384),
        instances,
        // Twelve times the default concurrency; and never so many that one leaves nothing to the others.
        per_instance: (instances / 2).clamp(1, 1_000),
        forwards: part(32, 2_048),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_there_are_some_are_left() {
        for open_files in [256, 1_024, 4_096, 65_536, 1_048_576] {
            let shares = share(open_files);
            let taken = 2 * (shares.public + shares.instances + shares.forwards);
            let left = usize::try_from(open_files).unwrap() - taken;
            assert!(left >= 48, "{open_files}: {shares:?}");
            assert!(shares.per_instance <= shares.instances / 2, "{shares:?}");
        }
        assert_eq!(share(1_024).per_instance, 64);
        assert_eq!(share(1_048_576).per_instance, 1_000);
    }
}
