//! Who may have how many of the server's open files.
//!
//! A client's connection takes one, and each request under way in an instance another, since one connection may carry many.
//! A connection that waits for its client's next request has no share: the ingress lets such ones have all that nobody uses of
//! the shares below (but the forwards'), and closes them when somebody wants it.
//! What is not shared out here (three sixteenths and more) is for the API, the database, images, logs, and the sockets that
//! stand for sandboxes.

/// At once, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// Connections of clients from outside that aren't idle, all public listeners together; and as many requests of theirs.
    pub public: usize,
    /// Connections of instances to services, all together; and as many requests of theirs.
    pub instances: usize,
    /// Connections of one instance to services.
    pub per_instance: usize,
    /// Idle connections to instances, of all together.
    pub idle: usize,
    /// Connections of instances to ports of the host, all together.
    pub forwards: usize,
}

/// Shares `open_files` out, in sixty-fourths: 28 to clients from outside, 16 to instances that call services, 4 to connections
/// kept for the next request, 4 to instances that call the host.
pub(super) fn share(open_files: u64) -> Shares {
    let part = |parts: u64, most: usize| {
        usize::try_from(open_files / 64 * parts)
            .unwrap_or(usize::MAX)
            .clamp(1, most)
    };
    let instances = part(8, 8_192);
    Shares {
        // More than this at once on one machine is a load that needs another machine.
        public: part(14, 16_384),
        instances,
        // Twelve times the default concurrency; and never so many that one leaves nothing to the others.
        per_instance: (instances / 2).clamp(1, 1_000),
        idle: part(4, 4_096),
        forwards: part(2, 2_048),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_there_are_some_are_left() {
        for open_files in [256, 1_024, 4_096, 20_000, 65_536, 1_048_576] {
            let shares = share(open_files);
            let connections = shares.public + shares.instances;
            // A connection has two ends here: one to the client, one to the instance or the host.
            let taken = 2 * (connections + shares.forwards) + shares.idle;
            let left = usize::try_from(open_files).unwrap() - taken;
            assert!(left >= 48, "{open_files}: {shares:?}");
            assert!(shares.per_instance <= shares.instances / 2, "{shares:?}");
        }
        assert_eq!(share(1_024).per_instance, 64);
        assert_eq!(share(1_048_576).per_instance, 1_000);
        // Ten thousand browsers may keep a connection where a process may have no more than 20,000 files open, and there is
        // room beside them for a third of all requests at once.
        let shares = share(20_000);
        let all = 2 * (shares.public + shares.instances) + shares.idle;
        assert!(all * 31 / 32 >= 10_000 + shares.public, "{shares:?}");
    }
}
