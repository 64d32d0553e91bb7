//! Who the program runs as: the image's `USER` against the image's own files.
//!
//! Owns: parsing `user[:group]`, `/etc/passwd`, `/etc/group`. Doesn't: switch to anybody.
//! Must run inside the image's root: the files are the image's and may be anything (links, pipes, huge).

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use super::process::ID_COUNT;
use crate::spawner::SpawnError;

/// A line of an image's file that is longer, or a file that is larger, is not read further.
const FILE_LIMIT: u64 = 4 << 20;

/// Ids inside the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Looks `user` up in the files of the current root.
///
/// # Errors
/// [`SpawnError::UserNotFound`] with the user as the image names it.
pub(crate) fn look_up(user: &str) -> Result<Identity, SpawnError> {
    if user.is_empty() || user == "0" || user == "0:0" {
        // The common case needs no group file: root's extra groups give root nothing.
        let passwd = read("/etc/passwd");
        let home = passwd_lines(&passwd)
            .find(|line| line.uid == 0)
            .map_or("/root", |line| line.home);
        return Ok(Identity {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: absolute(home),
        });
    }
    resolve(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, SpawnError> {
    let unknown = |file: &str, why: String| SpawnError::UserNotFound {
        user: user.to_owned(),
        file: file.to_owned(),
        why,
    };
    let (name, group_name) = match user.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let in_range = |id: u32, what: &str| {
        if id < ID_COUNT {
            Ok(id)
        } else {
            Err(unknown(
                "/etc/passwd",
                format!("{what} {id} is above {}", ID_COUNT - 1),
            ))
        }
    };
    let number = if name.is_empty() {
        Some(0)
    } else {
        name.parse::<u32>().ok()
    };
    // A name made of digits is a name first, as everywhere.
    let line = passwd_lines(passwd)
        .find(|line| line.name == name && !name.is_empty())
        .or_else(|| number.and_then(|uid| passwd_lines(passwd).find(|line| line.uid == uid)));
    let uid = match (&line, number) {
        (Some(line), _) => in_range(line.uid, "uid")?,
        (None, Some(uid)) => in_range(uid, "uid")?,
        (None, None) if name.bytes().all(|b| b.is_ascii_digit()) => {
            return Err(unknown(
                "/etc/passwd",
                format!("the number is above {}", ID_COUNT - 1),
            ));
        }
        (None, None) => {
            return Err(unknown(
                "/etc/passwd",
                format!("/etc/passwd of the image has no {name:?}"),
            ));
        }
    };
    let home = absolute(line.as_ref().map_or("/", |line| line.home));
    if let Some(wanted) = group_name {
        let by_name = group_lines(group)
            .find(|line| line.name == wanted)
            .map(|line| line.gid);
        let gid = match by_name.or_else(|| wanted.parse().ok()) {
            Some(gid) => in_range(gid, "gid")?,
            None => {
                return Err(unknown(
                    "/etc/group",
                    format!("/etc/group of the image has no group {wanted:?}"),
                ));
            }
        };
        return Ok(Identity {
            uid,
            gid,
            groups: Vec::new(),
            home,
        });
    }
    let gid = in_range(line.as_ref().map_or(0, |line| line.gid), "gid")?;
    let mut groups: Vec<u32> = match &line {
        Some(line) => group_lines(group)
            .filter(|g| g.gid < ID_COUNT && g.members.split(',').any(|member| member == line.name))
            .map(|g| g.gid)
            .collect(),
        None => Vec::new(),
    };
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity {
        uid,
        gid,
        groups,
        home,
    })
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// `name:password:uid:gid:comment:home:shell`; lines that aren't are passed over.
fn passwd_lines(text: &str) -> impl Iterator<Item = PasswdLine<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(PasswdLine {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or("/"),
        })
    })
}

/// `name:password:gid:member,member`.
fn group_lines(text: &str) -> impl Iterator<Item = GroupLine<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupLine {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    })
}

fn absolute(home: &str) -> String {
    if home.starts_with('/') {
        home.to_owned()
    } else {
        "/".to_owned()
    }
}

/// What is there as text; nothing for what isn't a plain file.
fn read(path: &str) -> String {
    let mut text = Vec::new();
    // Non-blocking: opening a named pipe would otherwise wait for a writer.
    if let Ok(file) = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        && file.metadata().is_ok_and(|m| m.is_file())
    {
        let _ = file.take(FILE_LIMIT).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:33::/var/www:/bin/false\n1000:x:7:8::/seven:\nhigh:x:70000:1::/:\n";
    const GROUP: &str =
        "root:x:0:\nwww:x:33:\nmedia:x:44:www,other\nlogs:x:45:www\nhuge:x:99999:www\n";

    fn ids(user: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = resolve(user, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(ids("www"), (33, 33, vec![44, 45], "/var/www".into()));
        assert_eq!(ids("33"), (33, 33, vec![44, 45], "/var/www".into()));
        assert_eq!(ids("www:media"), (33, 44, vec![], "/var/www".into()));
        assert_eq!(ids("www:7"), (33, 7, vec![], "/var/www".into()));
        assert_eq!(ids("12345"), (12345, 0, vec![], "/".into()));
        assert_eq!(ids("12345:54321"), (12345, 54321, vec![], "/".into()));
        assert_eq!(ids("1000"), (7, 8, vec![], "/seven".into()));
        assert_eq!(ids("root"), (0, 0, vec![], "/root".into()));
        assert_eq!(ids("www:"), (33, 33, vec![44, 45], "/var/www".into()));
    }

    #[test]
    fn the_unknown_is_named() {
        for (user, word) in [
            ("nobody-here", "nobody-here"),
            ("www:nogroup", "nogroup"),
            ("70000", "65535"),
            ("high", "65535"),
            ("99999999999", "65535"),
            ("-1", "-1"),
        ] {
            let error = resolve(user, PASSWD, GROUP).unwrap_err();
            assert!(
                matches!(&error, SpawnError::UserNotFound { user: u, .. } if u == user),
                "{error:?}"
            );
            let text = error.to_string();
            assert!(
                text.contains(word) && text.contains("config.User"),
                "{text}"
            );
        }
    }
}
