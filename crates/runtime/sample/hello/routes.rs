//! What each address does.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::http::{Answer, Body, Request};
use crate::{json, page, system};

/// Counted by the background work of `HELLO_TICK`.
pub static TICKS: AtomicU64 = AtomicU64::new(0);
/// Whether `/healthz` answers 503.
pub static SICK: AtomicBool = AtomicBool::new(false);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// A forgotten `?ms=` must not hold an instance for ever.
const LONGEST_MS: u64 = 3_600_000;
const PAGE_BYTES: usize = 4096;
/// Far more than a pipe holds (64 KiB) and than a log keeps of a line (1 MiB).
const LONGEST_LINE_BYTES: u64 = 16 << 20;

/// Answers one request.
pub fn answer(request: &Request, body: &mut Body<'_>, answer: &mut Answer<'_>) -> io::Result<()> {
    let number = |name: &str, default: u64| match request.parameter(name) {
        None => Ok(default),
        Some(text) => text
            .parse::<u64>()
            .map_err(|_error| format!("{name}={text} is not a number\n")),
    };
    let result = match request.path.as_str() {
        "/" => return answer.send("200 OK", HTML, page::render(request).as_bytes()),
        "/env" => return answer.send("200 OK", JSON, environment().as_bytes()),
        "/headers" => {
            let headers = request
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()));
            return answer.send("200 OK", JSON, json::object(headers).as_bytes());
        }
        "/echo" => return echo(request, body, answer),
        "/bytes" if request.method == "POST" => {
            let bytes = io::copy(body, &mut io::sink())?;
            Ok(format!("read {bytes} bytes\n"))
        }
        "/bytes" => match number("n", 1024) {
            Ok(count) => return bytes(count, answer),
            Err(why) => Err(why),
        },
        "/healthz" if SICK.load(Ordering::Relaxed) => {
            return answer.send("503 Service Unavailable", TEXT, b"sick as asked\n");
        }
        "/healthz" => Ok("ok\n".to_owned()),
        "/ticks" => Ok(format!("{}\n", TICKS.load(Ordering::Relaxed))),
        "/health" => match request.parameter("set") {
            Some(wish @ ("sick" | "well")) => number("ms", 0).map(|ms| {
                SICK.store(wish == "sick", Ordering::Relaxed);
                system::log("NOTICE", &format!("hello is {wish} as asked"));
                if ms > 0 {
                    thread::spawn(move || {
                        sleep(Duration::from_millis(ms.min(LONGEST_MS)));
                        SICK.store(false, Ordering::Relaxed);
                    });
                }
                format!("{wish} from now on\n")
            }),
            _ => Err("say what to be: /health?set=sick or /health?set=well\n".to_owned()),
        },
        "/sleep" => number("ms", 1000).map(|ms| {
            sleep(Duration::from_millis(ms.min(LONGEST_MS)));
            format!("slept {ms} ms\n")
        }),
        "/burn" => number("ms", 1000).map(|ms| {
            format!(
                "burnt {ms} ms of CPU in {} rounds\n",
                burn(ms.min(LONGEST_MS))
            )
        }),
        "/alloc" => number("mb", 1).and_then(|mb| {
            let ms = number("ms", 0)?;
            let memory = allocate(mb);
            sleep(Duration::from_millis(ms.min(LONGEST_MS)));
            Ok(format!("held {} MiB\n", black_box(memory).len() >> 20))
        }),
        "/exit" => match number("code", 1) {
            Ok(code) => {
                system::log("NOTICE", &format!("hello exits with {code} as asked"));
                exit(i32::try_from(code & 0xff).unwrap_or(1))
            }
            Err(why) => Err(why),
        },
        "/log" => number("lines", 1).and_then(|lines| {
            let bytes = number("bytes", 0)?;
            Ok(log(request, lines, bytes.min(LONGEST_LINE_BYTES)))
        }),
        "/stream" => match (number("n", 10), number("ms", 100)) {
            (Ok(count), Ok(ms)) => return stream(count, ms.min(LONGEST_MS), answer),
            (Err(why), _) | (_, Err(why)) => Err(why),
        },
        "/mounts" => std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| format!("read the mounts: {error}\n")),
        "/kernel" => std::fs::read_to_string("/proc/version")
            .map_err(|error| format!("read the kernel's version: {error}\n")),
        "/write" => number("kb", 1).and_then(|kb| match request.parameter("path") {
            Some(path) => Ok(write_file(path, kb)),
            None => Err("say where: /write?path=/tmp/file\n".to_owned()),
        }),
        "/egress" => match request.parameter("url") {
            Some(address) => Ok(egress(address)),
            None => Err("say where to: /egress?url=host:port\n".to_owned()),
        },
        other => {
            return answer.send(
                "404 Not Found",
                TEXT,
                format!("hello knows nothing at {other}\n").as_bytes(),
            );
        }
    };
    match result {
        Ok(text) => answer.send("200 OK", TEXT, text.as_bytes()),
        Err(why) => answer.send("400 Bad Request", TEXT, why.as_bytes()),
    }
}

/// The environment, and the name of the instance.
fn environment() -> String {
    let mut members: Vec<(String, String)> = std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect();
    members.sort();
    if !members.iter().any(|(name, _value)| name == "HOSTNAME") {
        members.push(("HOSTNAME".to_owned(), system::host_name()));
    }
    json::object(
        members
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    )
}

/// Writes `lines` lines; each message is filled up to `bytes`.
fn log(request: &Request, lines: u64, bytes: u64) -> String {
    let severity = request.parameter("severity").unwrap_or("INFO");
    let message = request.parameter("message").unwrap_or("a line from hello");
    for line in 1..=lines {
        let mut text = if lines == 1 {
            message.to_owned()
        } else {
            format!("{message} {line}")
        };
        let missing = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .saturating_sub(text.len());
        text.extend(std::iter::repeat_n('.', missing));
        system::log(severity, &text);
    }
    format!("logged {lines} lines\n")
}

fn echo(request: &Request, body: &mut Body<'_>, answer: &mut Answer<'_>) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    // Before the answer begins: a client that expects leave to send gets it first.
    let mut bytes = body.read(&mut buffer)?;
    answer.begin(
        request
            .header("content-type")
            .unwrap_or("application/octet-stream"),
    )?;
    while bytes > 0 {
        answer.piece(&buffer[..bytes])?;
        bytes = body.read(&mut buffer)?;
    }
    answer.finish()
}

/// `count` bytes in pieces, as what is larger than a message may be must come.
fn bytes(count: u64, answer: &mut Answer<'_>) -> io::Result<()> {
    let piece = vec![b'x'; 256 << 10];
    answer.begin("application/octet-stream")?;
    let mut left = count;
    while left > 0 {
        let most = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
        answer.piece(&piece[..most])?;
        left -= most as u64;
    }
    answer.finish()
}

fn stream(count: u64, ms: u64, answer: &mut Answer<'_>) -> io::Result<()> {
    answer.begin(TEXT)?;
    for number in 1..=count {
        answer.piece(format!("{number}\n").as_bytes())?;
        if number < count {
            sleep(Duration::from_millis(ms));
        }
    }
    answer.finish()
}

fn burn(ms: u64) -> u64 {
    let until = Instant::now() + Duration::from_millis(ms);
    let mut rounds = 0_u64;
    while Instant::now() < until {
        for value in 0..10_000_u64 {
            black_box(value.wrapping_mul(rounds));
        }
        rounds += 1;
    }
    rounds
}

/// Memory that is really there: every page is written to.
fn allocate(mb: u64) -> Vec<u8> {
    let bytes = usize::try_from(mb.saturating_mul(1 << 20)).unwrap_or(usize::MAX / 2);
    let mut memory = vec![0_u8; bytes];
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    memory
}

/// Writes `kb` KiB to `path`, and tells how much of it is there afterwards.
fn write_file(path: &str, kb: u64) -> String {
    let written = File::create(path).and_then(|mut file| {
        (0..kb).try_for_each(|_| file.write_all(&[b'x'; 1 << 10]))
    });
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    match written {
        Ok(()) => format!("ok: {size} bytes\n"),
        Err(error) => format!("error: {error}; {size} bytes\n"),
    }
}

fn egress(address: &str) -> String {
    let address = address
        .trim_start_matches("http://")
        .trim_start_matches("tcp://")
        .trim_end_matches('/');
    let begin = Instant::now();
    let addresses = match address.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(error) => return format!("error: find {address}: {error}\n"),
    };
    let mut last = format!("error: {address} has no addresses\n");
    for found in addresses {
        match TcpStream::connect_timeout(&found, Duration::from_secs(5)) {
            Ok(_connection) => {
                return format!(
                    "ok: connected to {found} in {} ms\n",
                    begin.elapsed().as_millis()
                );
            }
            Err(error) => last = format!("error: connect to {found}: {error}\n"),
        }
    }
    last
}
