//! Published cases whose mechanism has no place in this program, and why. What it gets one day must leave this list.

pub(crate) const NOT_HERE: &[(&str, &str)] = &[
    (
        "CVE-2018-15664",
        "nothing copies files into or out of an instance",
    ),
    (
        "CVE-2019-11246",
        "nothing copies files into or out of an instance",
    ),
    ("CVE-2019-13139", "nothing is built from source"),
    (
        "CVE-2019-14891",
        "the keeper is not in an instance's cgroup, so an instance can't have it killed; memory-bomb would show it",
    ),
    (
        "CVE-2020-2023",
        "no microVM driver: an instance has no disk of a guest to write to; mknod-disk is the nearest",
    ),
    ("CVE-2020-2025", "no microVM driver"),
    (
        "CVE-2020-2026",
        "no microVM driver; that a link in the image leads a mount elsewhere is proc-link and dev-link",
    ),
    (
        "CVE-2020-15157",
        "credentials go only to the registry's own token server: crates/runtime/tests/image",
    ),
    (
        "CVE-2021-21284",
        "the data directory belongs to root, not to the ids of instances (asserted in hostile::images)",
    ),
    (
        "CVE-2021-32760",
        "layers are unpacked by a process without rights that can't leave the layer's root: crates/runtime/src/image/unpack",
    ),
    (
        "CVE-2021-41089",
        "nothing copies files into or out of an instance",
    ),
    (
        "CVE-2021-41103",
        "as CVE-2021-41091: folders of images are closed to users of the host (asserted in hostile::images)",
    ),
    (
        "CVE-2021-43784",
        "no netlink messages carry a container's settings",
    ),
    (
        "CVE-2021-43816",
        "nothing is relabelled, and of the host only directories that the operator names are mounted: crates/runtime/tests/launcher_host_dirs",
    ),
    ("CVE-2022-0532", "no sysctls can be asked for"),
    ("CVE-2022-23471", "no terminals, exec or attach"),
    ("CVE-2022-24778", "no encrypted images"),
    ("CVE-2023-6476", "no annotation reaches the launcher"),
    (
        "CVE-2023-25153",
        "manifests, configs and layers have limits: crates/runtime/tests/image",
    ),
    ("CVE-2023-28840", "no overlay networks between machines"),
    ("CVE-2024-0132", "no hooks and no GPU driver files"),
    ("CVE-2024-1753", "nothing is built from source"),
    (
        "CVE-2024-3154",
        "no annotation reaches the launcher, systemd makes no units for instances",
    ),
    (
        "CVE-2024-5154",
        "nothing is written into an image's files but by the instance itself: files-link and folder-link",
    ),
    ("CVE-2024-8676", "no checkpoints"),
    (
        "CVE-2024-9341",
        "of the host only directories that the operator names are mounted, and no link in the image leads a mount elsewhere: crates/runtime/tests/launcher_host_dirs",
    ),
    ("CVE-2024-23650", "nothing is built from source"),
    (
        "CVE-2024-23651",
        "nothing is built from source: no two builds share a cache mount",
    ),
    (
        "CVE-2024-23652",
        "nothing is built from source: no file of an image is removed by the host",
    ),
    (
        "CVE-2024-23653",
        "nothing is built from source: no API starts privileged containers",
    ),
    ("CVE-2024-24557", "nothing is built from source"),
    (
        "CVE-2024-25621",
        "as CVE-2021-41091: folders of images are closed to users of the host (asserted in hostile::images)",
    ),
    (
        "CVE-2024-29018",
        "names are resolved for instances that may reach the internet anyway; closed addresses stay closed whatever a name says",
    ),
    ("CVE-2024-41110", "no authorisation plugins"),
    (
        "CVE-2025-9074",
        "the API listens on loopback alone: api, api-host",
    ),
    ("CVE-2025-23266", "no hooks and no GPU driver files"),
    (
        "CVE-2025-47290",
        "layers are unpacked by a process without rights that can't leave the layer's root: crates/runtime/src/image/unpack",
    ),
    (
        "CVE-2025-47291",
        "cgroups of instances lie below the server's own, whatever their user namespace: fork-bomb, memory-bomb",
    ),
    (
        "CVE-2025-54388",
        "rules don't depend on another firewall's: crates/runtime/tests/network",
    ),
    ("CVE-2025-64329", "no terminals, exec or attach"),
    ("CVE-2026-50195", "no checkpoints"),
    ("CVE-2026-53489", "no checkpoints"),
    ("CVE-2026-53492", "no checkpoints, no device interface"),
];
