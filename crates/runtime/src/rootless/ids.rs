//! Which ids there are: root's on the host, or those that an ordinary user was given.
//!
//! Owns: what this process's user namespace maps, and the part of `/etc/subuid` and `/etc/subgid` that is the user's.
//! Doesn't: map anything (`world` does, by `newuidmap`).
//!
//! Layers lie on disk with the ids of images ([`IMAGE_BASE`]). Root gives each service a range of its own, of the host's. An ordinary
//! user has one range of 65,536 ids, or none. Then all services have the same one; it is mapped into our own user
//! namespace at [`IMAGE_BASE`], so that layers need neither copies nor idmapped mounts.

use std::fs;

use nix::unistd::{Gid, Uid, User};

use crate::sandbox::process::{ID_COUNT, IMAGE_BASE};

/// The server's id in our own user namespace, where root of the host would look for a free one first.
pub(crate) const SERVER_ID: u32 = 64_500;
/// Fewer make no image work, whose users have numbers up to 1000 and more.
const USEFUL: u32 = 2_000;

/// What ids instances and their files have, seen from this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// As root of the host.
    OfEachService,
    /// All services share them: `base..base+count`.
    Shared { base: u32, count: u32 },
}

impl Ids {
    pub(crate) fn here() -> Self {
        Self::parse(&map())
    }

    fn parse(map: &str) -> Self {
        let lines = lines(map);
        if let Some((_, _, count)) = lines.iter().find(|(inside, ..)| *inside == IMAGE_BASE) {
            return Self::Shared {
                base: IMAGE_BASE,
                count: *count,
            };
        }
        match lines[..] {
            [(0, _, 1)] => Self::Shared { base: 0, count: 1 },
            _ => Self::OfEachService,
        }
    }

    /// The first id of a service to which the store gave `own`.
    pub(crate) fn of_service(self, own: u32) -> u32 {
        match self {
            Self::OfEachService => own,
            Self::Shared { base, .. } => base,
        }
    }

    /// The first id of unpacked layers.
    pub(crate) fn of_images(self) -> u32 {
        self.of_service(IMAGE_BASE)
    }

    pub(crate) fn count(self) -> u32 {
        match self {
            Self::OfEachService => ID_COUNT,
            Self::Shared { count, .. } => count,
        }
    }

    /// Who owns the user namespace of a sandbox: another one for each, as whom nobody runs outside of sandboxes.
    pub(crate) fn owner_of(self, sandbox: u32) -> u32 {
        match self {
            // The ids after those of images.
            Self::OfEachService => IMAGE_BASE + ID_COUNT + sandbox,
            Self::Shared { base, count } => base + sandbox % count,
        }
    }
}

/// Whether this process is in the user namespace of an ordinary user's server.
#[must_use]
pub fn is_rootless() -> bool {
    Ids::here() != Ids::OfEachService
}

/// The user's id outside, for a process that is in their server's user namespace.
pub(crate) fn user_outside() -> Option<u32> {
    let map = map();
    (Ids::parse(&map) != Ids::OfEachService)
        .then(|| {
            lines(&map)
                .iter()
                .find(|(inside, ..)| *inside == 0)
                .map(|(_, outside, _)| *outside)
        })
        .flatten()
}

/// Whether groups can be set here: not where the user mapped their own group themselves.
pub(crate) fn may_set_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "allow")
}

fn map() -> String {
    fs::read_to_string("/proc/self/uid_map").unwrap_or_default()
}

/// `inside outside count`, as the kernel prints it.
fn lines(map: &str) -> Vec<(u32, u32, u32)> {
    map.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some((
                numbers.next()?.ok()?,
                numbers.next()?.ok()?,
                numbers.next()?.ok()?,
            ))
        })
        .collect()
}

/// Ids that the administrator gave to the user beside their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subordinate {
    uids: u32,
    gids: u32,
    /// So many of each: the last is the server's, the others are the images'.
    count: u32,
}

impl Subordinate {
    /// The user's, or what is missing, as a sentence.
    pub(crate) fn of_user() -> Result<Self, String> {
        let uid = Uid::effective();
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let find = |file: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            largest(&text, name.as_deref(), uid.as_raw()).ok_or_else(|| {
                format!(
                    "{file} gives no range of ids to {}",
                    name.clone().unwrap_or_else(|| format!("uid {uid}"))
                )
            })
        };
        let (uids, gids) = (find("/etc/subuid")?, find("/etc/subgid")?);
        let count = uids.1.min(gids.1).min(ID_COUNT);
        if count < USEFUL {
            return Err(format!(
                "/etc/subuid and /etc/subgid give {count} ids, too few for images"
            ));
        }
        Ok(Self {
            uids: uids.0,
            gids: gids.0,
            count,
        })
    }

    /// Arguments of `newuidmap` (or `newgidmap`) after the process id.
    pub(crate) fn mapping(&self, groups: bool) -> Vec<String> {
        let (own, first) = if groups {
            (Gid::effective().as_raw(), self.gids)
        } else {
            (Uid::effective().as_raw(), self.uids)
        };
        let images = self.count - 1;
        [
            [0, own, 1],
            [IMAGE_BASE, first, images],
            [SERVER_ID, first + images, 1],
        ]
        .iter()
        .flatten()
        .map(u32::to_string)
        .collect()
    }
}

/// The largest range of a user in lines `NAME_OR_ID:FIRST:COUNT`: first id and count.
fn largest(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let whose = fields.next()?;
            let ours = name == Some(whose) || whose.parse() == Ok(uid);
            let range: (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            (ours && range.0.checked_add(range.1).is_some()).then_some(range)
        })
        .max_by_key(|(_, count)| *count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_namespace_it_is_shows_in_its_map() {
        let root = "         0          0 4294967295\n";
        assert_eq!(Ids::parse(root), Ids::OfEachService);
        let container = "0 1000 1\n1 100000 65536\n";
        assert_eq!(
            Ids::parse(container),
            Ids::OfEachService,
            "another program's container"
        );
        let ours = "0 1001 1\n268435456 100000 65535\n64500 165535 1\n";
        let shared = Ids::parse(ours);
        assert_eq!(
            shared,
            Ids::Shared {
                base: IMAGE_BASE,
                count: 65_535
            }
        );
        assert_eq!(shared.of_service(500_000_000), IMAGE_BASE);
        let alone = Ids::parse("0 1001 1\n");
        assert_eq!(
            (
                alone.of_service(500_000_000),
                alone.of_images(),
                alone.count()
            ),
            (0, 0, 1)
        );
        assert_eq!(alone.owner_of(77), 0);
        assert_eq!(Ids::OfEachService.of_service(7_000_000), 7_000_000);
    }

    #[test]
    fn owners_are_ids_that_are_mapped() {
        let ids = Ids::Shared {
            base: IMAGE_BASE,
            count: 10,
        };
        for sandbox in [0, 9, 10, u32::MAX] {
            assert!((IMAGE_BASE..IMAGE_BASE + 10).contains(&ids.owner_of(sandbox)));
        }
        assert_ne!(ids.owner_of(1), ids.owner_of(2));
    }

    #[test]
    fn the_largest_range_of_the_user_is_taken() {
        let text = "other:1:9\nann:100000:4096\n# x\n1001:300000:65536\nann:200000:70000\nbroken:1\nann:4294967295:65536\n";
        assert_eq!(largest(text, Some("ann"), 1001), Some((200_000, 70_000)));
        assert_eq!(largest(text, None, 1001), Some((300_000, 65_536)));
        assert_eq!(largest(text, Some("bob"), 7), None);
    }

    #[test]
    fn everything_given_is_mapped_once() {
        let ids = Subordinate {
            uids: 100_000,
            gids: 200_000,
            count: 65_536,
        };
        let map = ids.mapping(true);
        assert_eq!(
            map[3..],
            ["268435456", "200000", "65535", "64500", "265535", "1"].map(str::to_owned)
        );
        assert_eq!((map[0].as_str(), map[2].as_str()), ("0", "1"));
    }
}
