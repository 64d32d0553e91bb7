//! Room beside a firewall that drops forwarded packets by default (docker, ufw, hand-written iptables).
//!
//! Owns: rules tagged `utsuwa-ID` at the head of the built-in chains `FORWARD` and `INPUT`, in iptables' nft and legacy
//! variants, IPv4 and IPv6, only where such a table exists. Doesn't: flush, reorder or create tables or chains.
//! An accept in our own nftables table can't overrule another table's drop, so a rule must stand in the dropping chain.
//! docker and ufw leave foreign rules of these two chains alone when they restart.
//! What we accept there was judged before by our own table (`rules`), which runs at an earlier priority.

use super::NetError;
use super::rules::program;
use std::collections::BTreeSet;

/// That the programs for the tables that exist can be run.
pub(super) fn check() -> Result<(), NetError> {
    tools()
        .iter()
        .try_for_each(|tool| run(tool, &["--version"]).map(drop))
}

/// Lets packets of `uplink` pass.
pub(super) fn open(tag: &str, uplink: &str) -> Result<(), NetError> {
    for tool in tools() {
        remove_tagged(&tool, tag)?;
        let comment = ["-m", "comment", "--comment", tag, "-j", "ACCEPT"];
        let established = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"];
        for (chain, direction, more) in [
            ("FORWARD", "-i", &[][..]),
            ("FORWARD", "-o", &established[..]),
            ("INPUT", "-i", &[][..]),
        ] {
            let mut arguments = vec!["-w", "5", "-I", chain, "1", direction, uplink];
            arguments.extend_from_slice(more);
            arguments.extend_from_slice(&comment);
            run(&tool, &arguments)?;
        }
        tracing::info!(
            tool,
            tag,
            "added accept rules beside the host's firewall; `utsuwa down` removes them"
        );
    }
    Ok(())
}

/// Removes every rule with our tag.
pub(super) fn close(tag: &str) -> Result<(), NetError> {
    tools().iter().try_for_each(|tool| remove_tagged(tool, tag))
}

fn remove_tagged(tool: &str, tag: &str) -> Result<(), NetError> {
    for chain in ["FORWARD", "INPUT"] {
        for rule in run(tool, &["-w", "5", "-S", chain])?.lines() {
            let mut words: Vec<&str> = rule
                .split_whitespace()
                .map(|word| word.trim_matches('"'))
                .collect();
            if words.first() == Some(&"-A")
                && words.windows(2).any(|pair| pair == ["--comment", tag])
            {
                words[0] = "-D";
                run(tool, &[&["-w", "5"], words.as_slice()].concat())?;
            }
        }
    }
    Ok(())
}

/// The programs for the filter tables that exist. Asking a program about a table it doesn't have would make the table.
fn tools() -> BTreeSet<String> {
    let mut tools = BTreeSet::new();
    for (family, program) in [("ip", "iptables"), ("ip6", "ip6tables")] {
        let legacy =
            std::fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"))
                .unwrap_or_default();
        if legacy.lines().any(|table| table == "filter") {
            tools.insert(pick(&format!("{program}-legacy"), program));
        }
        let nft = super::rules::program("nft")
            .args(["list", "chain", family, "filter", "FORWARD"])
            .output();
        if nft.is_ok_and(|output| output.status.success()) {
            tools.insert(pick(&format!("{program}-nft"), program));
        }
    }
    tools
}

/// `wanted` where it is installed, else the name that every distribution has.
fn pick(wanted: &str, fallback: &str) -> String {
    let found = program(wanted).arg("--version").output().is_ok();
    if found {
        wanted.to_owned()
    } else {
        fallback.to_owned()
    }
}

fn run(tool: &str, arguments: &[&str]) -> Result<String, NetError> {
    let failed = |reason: String| NetError::Program {
        program: format!("{tool} {}", arguments.join(" ")),
        reason,
    };
    let output = program(tool)
        .args(arguments)
        .output()
        .map_err(|error| failed(format!("{error}; install it: apt-get install iptables")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}
