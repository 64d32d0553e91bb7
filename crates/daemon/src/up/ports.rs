//! The addresses to listen on, before anything is made: chosen where the port is 0, and free.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context;
use rustix::io::Errno;
use utsuwa_runtime::rootless::is_rootless;

use super::Refusal;
use crate::config::{Config, Layers, Listen, Source};

/// Port 0 means any free one; it is chosen now because instances are told it.
pub(super) fn choose(listen: &mut Listen) -> anyhow::Result<()> {
    if listen.port == 0 {
        let address = *listen
            .addresses()
            .first()
            .context("no address to listen on")?;
        listen.port = TcpListener::bind(address)
            .and_then(|l| l.local_addr())
            .with_context(|| format!("find a free port on {}", address.ip()))?
            .port();
    }
    Ok(())
}

/// Refuses addresses that another program has. Those in `held` are our own keeper's, kept for us. An address of HTTPS that
/// nobody asked for is given up instead: a server that was well without it starts as before.
pub(super) fn check(config: &mut Config, held: &[(String, String)]) -> anyhow::Result<()> {
    if config.https_by_default
        && let Some(https) = &config.listen_https
        && let Err(taken) = check_one("--listen-https", https, held)
    {
        crate::output::note(&format!("warning: no HTTPS: {taken}"));
        crate::output::note(
            "hint: name another address with --listen-https, or none: --listen-https ''",
        );
        config.listen_https = None;
    }
    check_one("--listen-api", &config.listen_api, held)?;
    check_one("--listen-http", &config.listen_http, held)?;
    match &config.listen_https {
        Some(https) => check_one("--listen-https", https, held),
        None => Ok(()),
    }
}

/// Refuses to leave addresses that the server to be replaced listens on only because nobody named them again: its clients would be
/// refused. Where others are named, they are meant.
pub(super) fn stay(
    config: &Config,
    layers: &Layers,
    held: &[(String, String)],
) -> anyhow::Result<()> {
    let mut left = Vec::new();
    for (name, option, listen) in [
        ("api", "listen-api", Some(&config.listen_api)),
        ("http", "listen-http", Some(&config.listen_http)),
        ("https", "listen-https", config.listen_https.as_ref()),
    ] {
        let own: Vec<String> = listen
            .map(addresses_here)
            .unwrap_or_default()
            .iter()
            .map(SocketAddr::to_string)
            .collect();
        let those: Vec<&str> = held
            .iter()
            .filter(|(held, _)| held == name)
            .map(|(_, address)| address.as_str())
            .collect();
        if *layers.source(option) == Source::Default
            && let Some(first) = those.first()
            && !those.iter().any(|address| own.iter().any(|o| o == address))
        {
            left.push(format!("--{option} {first}"));
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(
        format!(
            "the server to be replaced was started with {}, and this one wasn't: its clients would be refused",
            left.join(" ")
        ),
        format!(
            "give the options of that server again (`utsuwa config show --running` shows all): utsuwa up --replace {}; or name other addresses, if they shall change",
            left.join(" ")
        ),
    ))
}

fn check_one(flag: &str, listen: &Listen, held: &[(String, String)]) -> anyhow::Result<()> {
    for address in addresses_here(listen) {
        if held.iter().any(|(_, a)| *a == address.to_string()) {
            continue;
        }
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                return Err(taken(address, flag));
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied && is_rootless() => {
                return Err(Refusal::new(
                    format!("listen on {address} ({flag}): {error}"),
                    "ports below 1024 are root's: name a higher one, or let everybody have them: sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80",
                ));
            }
            Err(error) => {
                return Err(Refusal::new(
                    format!("listen on {address} ({flag}): {error}"),
                    format!("name an address of this machine with {flag}"),
                ));
            }
        }
    }
    Ok(())
}

/// The addresses of `listen` that can be listened on. Only a loopback that `localhost` stands for is left out, and only
/// where the machine lacks it.
pub(super) fn addresses_here(listen: &Listen) -> Vec<SocketAddr> {
    let mut addresses = listen.addresses();
    if addresses.len() > 1 {
        // A port of the kernel's choice is never taken: what fails is the address.
        addresses.retain(|address| {
            !TcpListener::bind((address.ip(), 0)).is_err_and(|error| is_missing(&error))
        });
    }
    addresses
}

/// No such address, or (IPv6 switched off at boot) no such family at all.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable
        || Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT)
}

fn taken(address: SocketAddr, flag: &str) -> anyhow::Error {
    let by = match holder(address) {
        Some((pid, name)) => format!("by {name} (process {pid})"),
        None => "by another program".to_owned(),
    };
    Refusal::new(
        format!("{address} is taken {by}, so {flag} can't be it"),
        format!(
            "name another address with {flag}, or end that program; `ss -ltnp 'sport = :{}'` shows it",
            address.port()
        ),
    )
}

/// Process id and name of whoever listens on `address`, as far as /proc tells.
fn holder(address: SocketAddr) -> Option<(u32, String)> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| {
            table
                .lines()
                .skip(1)
                .find_map(|line| listener(line, address))
        })?;
    let socket = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    for process in processes {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let has = descriptors
            .filter_map(Result::ok)
            .filter_map(|d| std::fs::read_link(d.path()).ok())
            .any(|target| target.as_os_str() == socket.as_str());
        if has {
            return Some((pid, name(&process.path())?));
        }
    }
    None
}

/// What people call a process. A keeper has the name it was executed by, which tells nobody anything.
fn name(process: &Path) -> Option<String> {
    let words = std::fs::read(process.join("cmdline")).ok()?;
    let mut words = words.split(|b| *b == 0).skip(1);
    if words.next() == Some(b"internal") && words.next() == Some(b"keeper") {
        return Some("the keeper of another utsuwa server".to_owned());
    }
    let name = std::fs::read_to_string(process.join("comm")).ok()?;
    Some(name.trim().to_owned())
}

/// The inode of a line of `/proc/net/tcp` that listens on `address`, or on all addresses with its port.
fn listener(line: &str, address: SocketAddr) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (*fields.get(1)?, *fields.get(3)?, *fields.get(9)?);
    let (ip, port) = local.rsplit_once(':')?;
    let same_port = u16::from_str_radix(port, 16).ok()? == address.port();
    let ip = kernel_address(ip)?;
    let same_ip = ip.is_unspecified() || ip.to_canonical() == address.ip();
    // 0A: LISTEN.
    (state == "0A" && same_port && same_ip).then(|| inode.to_owned())
}

/// An address as the kernel prints it: words of 32 bits in the machine's order.
fn kernel_address(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for start in (0..text.len()).step_by(8) {
        let word = u32::from_str_radix(text.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_port_is_found() {
        for at in ["127.0.0.1:0", "0.0.0.0:0"] {
            let socket = TcpListener::bind(at).unwrap();
            let port = socket.local_addr().unwrap().port();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let (pid, name) = holder(address).unwrap();
            assert_eq!(pid, std::process::id());
            assert!(!name.is_empty());
            let text = format!("{:#}", taken(address, "--listen-api"));
            assert!(
                text.contains(&format!("127.0.0.1:{port}")) && text.contains(&name),
                "{text}"
            );
            drop(socket);
            assert_eq!(holder(address), None);
        }
    }

    #[test]
    fn who_takes_a_place_stays_where_it_was_unless_told_otherwise() {
        let refused = |flags: &[(&'static str, &str)], held: &[(&str, &str)]| {
            let mut given = crate::config::Given::default();
            for (name, value) in flags {
                given.flags.insert(name, vec![(*value).to_owned()]);
            }
            let layers = Layers::read(&given).unwrap();
            let config = layers.check().unwrap();
            let held: Vec<(String, String)> = held
                .iter()
                .map(|(name, address)| ((*name).to_owned(), (*address).to_owned()))
                .collect();
            stay(&config, &layers, &held)
                .err()
                .map(|error| format!("{error:#}"))
        };
        let usual = [("api", "127.0.0.1:8787"), ("http", "127.0.0.1:8080")];
        let queue = ("idle", "in");
        assert_eq!(refused(&[], &[usual[0], usual[1], queue]), None);
        assert_eq!(refused(&[], &[]), None, "nobody listens");
        let other = ("http", "127.0.0.1:18080");
        let said = refused(&[], &[usual[0], other, queue]).unwrap();
        assert!(said.contains("--listen-http 127.0.0.1:18080"), "{said}");
        assert!(!said.contains("listen-api"), "{said}");
        for named in ["localhost:18080", "localhost:18081"] {
            let flags = [("listen-http", named)];
            assert_eq!(refused(&flags, &[usual[0], other]), None, "{named}");
        }
    }

    #[test]
    fn a_missing_address_is_told_from_a_taken_one() {
        let of = |errno: Errno| is_missing(&io::Error::from(errno));
        // Loopback without ::1, then a kernel started with ipv6.disable=1.
        assert!(of(Errno::ADDRNOTAVAIL));
        assert!(of(Errno::AFNOSUPPORT));
        for other in [Errno::ADDRINUSE, Errno::ACCESS, Errno::MFILE, Errno::NOBUFS] {
            assert!(!of(other), "{other}");
        }
    }

    #[test]
    fn an_address_that_was_named_is_never_left_out() {
        let listen = |host: &str| Listen {
            host: host.to_owned(),
            port: 1,
        };
        // TEST-NET-1: nobody has it.
        assert_eq!(addresses_here(&listen("192.0.2.1")).len(), 1);
        assert!(
            addresses_here(&listen("localhost")).contains(&SocketAddr::from(([127, 0, 0, 1], 1)))
        );
    }
}
