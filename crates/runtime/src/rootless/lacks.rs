//! What an ordinary user lacks on this machine, and the command that would change it: for `doctor`.

use std::fs;
use std::path::Path;

use super::egress::Program;
use super::ids::Subordinate;
use crate::sandbox::cgroup;
use crate::sandbox::probe::{Feature, Missing, is_kernel};
use crate::sandbox::process::reap;
use crate::sandbox::sys::{self, Cloned};

/// One thing that a server of an ordinary user can use.
#[derive(Debug)]
pub struct Finding {
    pub what: &'static str,
    pub feature: Feature,
    /// Without it there is no such server; otherwise it is weaker.
    pub required: bool,
}

/// All of them, required ones first.
#[must_use]
pub fn all() -> Vec<Finding> {
    let of = |what, feature, required| Finding {
        what,
        feature,
        required,
    };
    vec![
        of("own user namespace", user_namespaces(), true),
        of("overlay for users", overlay(), true),
        of("subordinate ids", subordinate_ids(), false),
        of("directories made anew", opaque_directories(), false),
        of("delegated cgroup", delegated_cgroup(), false),
        of("egress", egress(), false),
    ]
}

fn missing(what: impl Into<String>, fix: impl Into<String>) -> Feature {
    Err(Missing {
        what: what.into(),
        fix: fix.into(),
    })
}

/// Whether the user may make a user namespace and be root in it. Tries it.
pub(super) fn user_namespaces() -> Feature {
    let switch = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
    let is = |name: &str, value: &str| switch(name).is_some_and(|text| text.trim() == value);
    if is("kernel/unprivileged_userns_clone", "0") {
        return missing(
            "only root may make user namespaces here",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1 (and a line in /etc/sysctl.d to keep it)",
        );
    }
    if is("user/max_user_namespaces", "0") {
        return missing(
            "user namespaces are switched off",
            "sudo sysctl -w user.max_user_namespaces=15000",
        );
    }
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return missing(
            "AppArmor lets no program of an ordinary user be root in a user namespace",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give this program a profile with the rule `userns,`",
        );
    }
    match sys::clone_process(libc::CLONE_NEWUSER as u64, false, None) {
        Ok(Cloned::Child) => sys::leave(0),
        Ok(Cloned::Parent { pidfd, .. }) => {
            reap(&pidfd);
            Ok(())
        }
        Err(error) => missing(
            format!("the kernel refuses a user namespace: {error}"),
            "as root it runs anyway: sudo utsuwa up",
        ),
    }
}

fn overlay() -> Feature {
    if is_kernel((5, 11)) {
        Ok(())
    } else {
        missing("users may mount overlays since Linux 5.11", "")
    }
}

/// The mark of a directory that was deleted and made again is an attribute, which tmpfs keeps for users since 6.6.
fn opaque_directories() -> Feature {
    if is_kernel((6, 6)) {
        Ok(())
    } else {
        missing(
            "an app that deletes a directory of its image can't make one of that name again before Linux 6.6",
            "",
        )
    }
}

fn subordinate_ids() -> Feature {
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::effective())
        .ok()
        .flatten()
        .map_or_else(|| "USER".to_owned(), |user| user.name);
    let costs =
        "without them everything in an image belongs to one user, and its USER has no effect";
    if let Err(why) = Subordinate::of_user() {
        return missing(
            format!("{why}: {costs}"),
            format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"),
        );
    }
    let there = |program: &str| {
        ["/usr/bin", "/bin", "/usr/local/bin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists())
    };
    if there("newuidmap") && there("newgidmap") {
        Ok(())
    } else {
        missing(
            format!("newuidmap and newgidmap are not installed: {costs}"),
            "sudo apt-get install uidmap",
        )
    }
}

fn delegated_cgroup() -> Feature {
    if cgroup::delegated().is_some() {
        return Ok(());
    }
    missing(
        "none: limits of CPU and memory are not enforced, idle instances keep their CPU, ends for want of memory are not recognised",
        "on cgroup v2 with systemd: install what `utsuwa unit` prints, or systemd-run --user --scope -p Delegate=yes utsuwa up",
    )
}

fn egress() -> Feature {
    if Program::installed().is_some() {
        super::egress::may_make_devices()
            .or_else(|why| missing(format!("instances reach nothing outside: {why}"), ""))
    } else {
        missing(
            "instances reach nothing outside: neither pasta nor slirp4netns is installed",
            "sudo apt-get install passt",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lack_says_what_it_means() {
        for finding in all() {
            if let Err(missing) = finding.feature {
                assert!(!missing.what.is_empty(), "{}", finding.what);
            }
        }
    }
}
