//! Names of registries to addresses, within a time that somebody who deploys waits.
//!
//! The C library is asked first, for it knows what the operator configured (hosts file, search domains). It may take half a
//! minute when a resolver is dead, so that after a moment all resolvers are asked directly too, and there is an end.
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

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameError {
    /// Nobody answered in time.
    NoAnswer {
        host: String,
        asked: Vec<SocketAddr>,
    },
    /// There is an answer, and it has no address.
    NoAddress { host: String, why: String },
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
            Self::NoAddress { host, why } => write!(f, "DNS: no address for {host}: {why}"),
        }
    }
}

impl std::error::Error for NameError {}

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
        let direct = async {
            tokio::time::sleep(MOMENT).await;
            let found = lookup::lookup(&resolvers, &host).await;
            if found.is_empty() {
                // What the C library finds out decides.
                std::future::pending::<()>().await;
            }
            found.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect()
        };
        let both = async {
            tokio::select! {
                answer = system => match answer {
                    Ok(Ok(found)) if !found.is_empty() => Ok(found),
                    Ok(Ok(_)) => Err("it has none".to_owned()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                },
                found = direct => Ok(found),
            }
        };
        match tokio::time::timeout(DEADLINE, both).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(why)) => Err(NameError::NoAddress { host, why }),
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
        let found = tokio::select! {
            found = names.find("r.example".to_owned()) => found.unwrap(),
            () = answering => unreachable!(),
        };
        assert_eq!(found, [SocketAddr::from((Ipv4Addr::new(10, 0, 0, 7), 0))]);
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
    }
}
