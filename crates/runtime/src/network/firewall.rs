//! Room beside a firewall that drops forwarded packets by default (docker, ufw, hand-written iptables).
//!
//! Owns: rules tagged `utsuwa-ID` at the head of the built-in chains `FORWARD` and `INPUT`, in iptables' nft and legacy
//! variants, IPv4 and IPv6, only where such a table exists. Doesn't: flush, reorder or create tables or chains.
//! An accept in our own nftables table can't overrule another table's drop, so a rule must stand in the dropping chain.
//! docker and ufw leave foreign rules of these two chains alone when they restart.
//! A firewall that is started or flushed later takes them or comes without them: `missing` tells, for [`super::watch`].
//! What we accept there was judged before by our own table (`rules`), which runs at an earlier priority.

use super::NetError;
use super::netlink::{Netlink, Table};
use super::rules::program;
use std::collections::BTreeSet;

const FAMILIES: [(&str, &str); 2] = [("ip", "iptables"), ("ip6", "ip6tables")];
/// How many rules of ours stand where there is such a firewall.
const EXPECTED: [(&str, usize); 2] = [("FORWARD", 2), ("INPUT", 1)];

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

/// Firewalls of nftables (where iptables' variant for it keeps its rules) in which rules of `tag` are missing.
pub(super) fn missing(nftables: &mut Netlink, tag: &str) -> Result<Vec<String>, NetError> {
    let mut found = Vec::new();
    // Rules end what they say of us with a zero; without it, another server's longer id would do.
    let named = format!("{tag}\0").into_bytes();
    for (table, program) in [
        (Table::Ip("filter"), "iptables"),
        (Table::Ip6("filter"), "ip6tables"),
    ] {
        if nftables.chain(table, "FORWARD")?.is_none() {
            continue;
        }
        let mut whole = true;
        for (chain, expected) in EXPECTED {
            let rules = nftables.chain(table, chain)?.unwrap_or_default();
            let ours = |rule: &&Vec<u8>| rule.windows(named.len()).any(|part| part == named);
            whole &= rules.iter().filter(ours).count() >= expected;
        }
        if !whole {
            found.push(program.to_owned());
        }
    }
    Ok(found)
}

/// The same of legacy tables, which send no news and are asked by their program.
pub(super) fn missing_legacy(tag: &str) -> Result<Vec<String>, NetError> {
    let mut found = Vec::new();
    for tool in legacy() {
        let mut whole = true;
        for (chain, expected) in EXPECTED {
            let rules = run(&tool, &["-w", "5", "-S", chain])?;
            whole &= rules.lines().filter(|rule| is_ours(rule, tag)).count() >= expected;
        }
        if !whole {
            found.push(tool);
        }
    }
    Ok(found)
}

/// Removes every rule with our tag.
pub(super) fn close(tag: &str) -> Result<(), NetError> {
    tools().iter().try_for_each(|tool| remove_tagged(tool, tag))
}

fn remove_tagged(tool: &str, tag: &str) -> Result<(), NetError> {
    for chain in ["FORWARD", "INPUT"] {
        for rule in run(tool, &["-w", "5", "-S", chain])?.lines() {
            if is_ours(rule, tag) {
                let mut words = words(rule);
                words[0] = "-D";
                run(tool, &[&["-w", "5"], words.as_slice()].concat())?;
            }
        }
    }
    Ok(())
}

fn is_ours(rule: &str, tag: &str) -> bool {
    let words = words(rule);
    words.first() == Some(&"-A") && words.windows(2).any(|pair| pair == ["--comment", tag])
}

fn words(rule: &str) -> Vec<&str> {
    rule.split_whitespace()
        .map(|word| word.trim_matches('"'))
        .collect()
}

/// The programs for the filter tables that exist. Asking a program about a table it doesn't have would make the table.
fn tools() -> BTreeSet<String> {
    let mut tools = legacy();
    for (family, program) in FAMILIES {
        let nft = super::rules::program("nft")
            .args(["list", "chain", family, "filter", "FORWARD"])
            .output();
        if nft.is_ok_and(|output| output.status.success()) {
            tools.insert(pick(&format!("{program}-nft"), program));
        }
    }
    tools
}

/// Those of the tables that are older than nftables.
fn legacy() -> BTreeSet<String> {
    let mut tools = BTreeSet::new();
    for (family, program) in FAMILIES {
        let tables =
            std::fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"))
                .unwrap_or_default();
        if tables.lines().any(|table| table == "filter") {
            tools.insert(pick(&format!("{program}-legacy"), program));
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
