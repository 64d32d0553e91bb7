//! What may get through on gVisor, and why that is no way out: gVisor answers these calls itself, from its own tables, and none of
//! them reaches the host's kernel. Every other attempt must fail there as it does without.

/// The attempt, and what it has got then.
pub(crate) const OF_ITS_OWN: &[(&str, &str)] = &[
    ("setns-net", NOT_SUPPORTED),
    ("setns-pid", NOT_SUPPORTED),
    ("setns-user", NOT_SUPPORTED),
    ("file-handle", NOT_SUPPORTED),
    ("unshare-user", NAMESPACE),
    ("unshare-mount", NAMESPACE),
    ("unshare-cgroup", NAMESPACE),
    ("unshare-time", NAMESPACE),
    ("clone-user", NAMESPACE),
    ("nested-overlay", NAMESPACE),
    ("nested-cgroup", NAMESPACE),
    (
        "io-uring",
        "a ring of gVisor's, whose calls it makes itself",
    ),
    (
        "aio",
        "events of gVisor's: nothing is taken of the host's 65,536",
    ),
    ("syslog", "messages that gVisor makes up"),
    ("set-mempolicy", "a policy that gVisor remembers, no more"),
    (
        "sys-net",
        "a setting of the instance's own network stack, in gVisor",
    ),
    ("sys-vm", SETTING),
    (
        "mknod-fuse",
        "a device of gVisor's, for file systems of its own",
    ),
    ("device-mode", DEVICE),
    ("device-times", DEVICE),
    (
        "shared-dev",
        "a file in memory, in a /dev that no other instance has",
    ),
    (
        "identity",
        "the number 0 in gVisor; to the host its parts are ids of the service's range",
    ),
    (
        "image-owner",
        "a number in gVisor; its file server has the service's range only",
    ),
    ("nice", SETTING),
    ("oom-score", SETTING),
    ("inode-bomb", MEMORY),
    ("terminal-bomb", MEMORY),
    ("inotify-bomb", MEMORY),
    ("queue-bomb", MEMORY),
    (
        "packet-mark",
        "an option of gVisor's network stack: marks don't leave it",
    ),
    (
        "transparent",
        "an option of gVisor's network stack; the gateway drops foreign senders",
    ),
];

const NOT_SUPPORTED: &str = "the answer that gVisor doesn't know the call";
const NAMESPACE: &str = "a namespace of gVisor's own, seen by nobody else";
const SETTING: &str = "a value that gVisor remembers, no more";
const MEMORY: &str =
    "as much as it wants of gVisor's own, out of the instance's memory and up to its limit";
const DEVICE: &str = "gVisor's own device of that name";
