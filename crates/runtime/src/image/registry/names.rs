//! Names of registries to addresses, within a time that somebody who deploys waits.
//!
//! The C library is asked first, for it knows what the operator configured (hosts file, search domains). It may take half a
//! minute when a resolver is dead, so that after a moment, or when it gives up sooner, all resolvers are asked directly too, and
//! there is an end.
//!
//! Fails with [`NameError`], which says whom was asked.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::network::dns::lookup;

/// Resolvers that work answer within this, nearly always.
const MOMENT: Duration = Duration::from_secs(1);
/// Everything together.
const DEADLINE: Duration = Duration::from_secs(4);
/// What C libraries (GNU's, musl's) say of a name that a resolver knows nothing of, or no address. Everything else (`EAI_AGAIN`
/// before all) is trouble that passes. The standard library keeps only the text of `getaddrinfo`'s error.
const UNKNOWN: [&str; 4] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
];

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameError {
    /// Nobody answered in time.
    NoAnswer {
        host: String,
        asked: Vec<SocketAddr>,
    },
    /// The C library found none, for now or (`lasting`) because there is none.
    NoAddress {
        host: String,
        why: String,
        lasting: bool,
    },
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer { host, asked } => {
                let asked: Vec<String> = asked.iter().map(|a| a.ip().to_string()).collect();
                let time = DEADLINE.as_secs();
                let asked = asked.join(", ");
                write!(f, "DNS: no answer for {host} from {asked} within {time} s")
            }
            Self::NoAddress { host, why, .. } => write!(f, "DNS: no address for {host}: {why}"),
        }
    }
}

impl std::error::Error for NameError {}

impl NameError {
    /// Whose address was asked for.
    pub(super) fn host(&self) -> &str {
        match self {
            Self::NoAnswer { host, .. } | Self::NoAddress { host, .. } => host,
        }
    }

    /// Whether asking again soon would find out the same: the resolvers said so, or were asked as long as anybody waits for.
    pub(super) const fn is_lasting(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::NoAddress { lasting, .. } => *lasting,
        }
    }

    fn of_system(host: &str, error: &io::Error) -> Self {
        let why = error.to_string();
        Self::NoAddress {
            host: host.to_owned(),
            lasting: UNKNOWN.iter().any(|text| why.ends_with(text)),
            why,
        }
    }
}

/// How names are looked up.
#[derive(Debug, Clone)]
pub(super) struct Names {
    file: PathBuf,
    port: u16,
    system: fn(&str) -> io::Result<Vec<SocketAddr>>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            file: PathBuf::from("/etc/resolv.conf"),
            port: 53,
            system: |host| (host, 0).to_socket_addrs().map(Iterator::collect),
        }
    }
}

impl Names {
    async fn find(self, host: String) -> Result<Vec<SocketAddr>, NameError> {
        let resolvers = lookup::resolvers(&self.file, self.port);
        let asked = (self.system, host.clone());
        let system = tokio::task::spawn_blocking(move || asked.0(&asked.1));
        let direct = async || -> Vec<SocketAddr> {
            let found = lookup::lookup(&resolvers, &host).await;
            found.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect()
        };
        let later = async {
            tokio::time::sleep(MOMENT).await;
            let found = direct().await;
            if found.is_empty() {
                // What the C library finds out decides.
                std::future::pending::<()>().await;
            }
            found
        };
        let both = async {
            let error = tokio::select! {
                answer = system => match answer {
                    Ok(Ok(found)) if !found.is_empty() => return Ok(found),
                    Ok(Ok(_)) => io::Error::other(UNKNOWN[1]),
                    Ok(Err(error)) => error,
                    Err(error) => error.into(),
                },
                found = later => return Ok(found),
            };
            let error = NameError::of_system(&host, &error);
            if error.is_lasting() {
                return Err(error);
            }
            // It may have given up at once: with the first resolver that answered, or while the network was down.
            let found = direct().await;
            if found.is_empty() {
                Err(error)
            } else {
                Ok(found)
            }
        };
        match tokio::time::timeout(DEADLINE, both).await {
            Ok(found) => found,
            Err(_elapsed) => Err(NameError::NoAnswer {
                host,
                asked: resolvers,
            }),
        }
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, host) = (self.clone(), name.as_str().to_owned());
        Box::pin(async move {
            let found = names.find(host).await?;
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::UdpSocket;

    use super::*;

    /// The C library with a resolver that is dead: five seconds, and nothing.
    fn stuck(_host: &str) -> io::Result<Vec<SocketAddr>> {
        std::thread::park_timeout(Duration::from_secs(5));
        Err(io::ErrorKind::TimedOut.into())
    }

    fn names(port: u16, text: &str) -> (Names, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_owned();
        let names = Names {
            file: path,
            port,
            system: stuck,
        };
        (names, file)
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_the_deadline() {
        // Bound, and never read.
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let (names, _file) = names(port, "nameserver 127.0.0.1\nnameserver 127.0.0.1");
        let began = std::time::Instant::now();
        let error = names.find("r.example".to_owned()).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(
            error.to_string(),
            "DNS: no answer for r.example from 127.0.0.1, 127.0.0.1 within 4 s"
        );
    }

    #[tokio::test]
    async fn a_resolver_that_is_dead_does_not_hide_one_that_works() {
        let silent = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let works = UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
        let (names, _file) = names(port, "nameserver 127.0.0.2\nnameserver 127.0.0.1");
        let answering = async {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = works.recv_from(&mut buffer).await.unwrap();
                let mut answer = buffer[..length].to_vec();
                answer[2] |= 0x80;
                // An A record (its type is the fourth byte from the end) for questions after one.
                if answer[length - 3] == 1 {
                    answer[7] = 1;
                    answer
                        .extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 7]);
                }
                works.send_to(&answer, from).await.unwrap();
            }
        };
        let mut gave_up = names.clone();
        gave_up.system = |_| Err(io::Error::other("Temporary failure in name resolution"));
        let finding = async {
            let found = gave_up.find("r.example".to_owned()).await.unwrap();
            (names.find("r.example".to_owned()).await.unwrap(), found)
        };
        let (found, at_once) = tokio::select! {
            found = finding => found,
            () = answering => unreachable!(),
        };
        assert_eq!(found, [SocketAddr::from((Ipv4Addr::new(10, 0, 0, 7), 0))]);
        assert_eq!(at_once, found);
    }

    #[tokio::test]
    async fn a_name_that_is_not_there_is_told_at_once() {
        let (mut names, _file) = names(1, "");
        names.system = |_| Err(io::Error::other("Name or service not known"));
        let error = names.find("r.example".to_owned()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "DNS: no address for r.example: Name or service not known"
        );
        assert!(error.is_lasting());
    }

    #[tokio::test]
    async fn a_network_that_is_down_may_come_back() {
        // Nobody listens there.
        let (mut names, _file) = names(1, "nameserver 127.0.0.1");
        // As the standard library words EAI_AGAIN.
        names.system = |_| {
            Err(io::Error::other(
                "failed to lookup address information: Temporary failure in name resolution",
            ))
        };
        let error = names.find("r.example".to_owned()).await.unwrap_err();
        assert!(!error.is_lasting(), "{error}");
    }

    #[test]
    #[expect(unsafe_code, reason = "the C library's own words")]
    fn words_of_the_c_library_are_known() {
        let lasting = |code| {
            // SAFETY: it answers a constant text for every number.
            let text = unsafe { std::ffi::CStr::from_ptr(libc::gai_strerror(code)) };
            let text = text.to_str().unwrap();
            // As the standard library words it.
            let error = io::Error::other(format!("failed to lookup address information: {text}"));
            NameError::of_system("r.example", &error).is_lasting()
        };
        assert!(lasting(libc::EAI_NONAME));
        assert!(!lasting(libc::EAI_AGAIN) && !lasting(libc::EAI_FAIL));
        let down = io::Error::from_raw_os_error(libc::ENETUNREACH);
        assert!(!NameError::of_system("r.example", &down).is_lasting());
    }
}
