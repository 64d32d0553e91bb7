//! An app of the benchmark, the same inside an instance and as a plain process: takes bodies without end over HTTP/2, and holds
//! WebSockets. `rustc` compiles it as it does the sample; it needs nothing but the standard library.
//!
//! It is no server for anybody else. HTTP/2 comes without TLS and by prior knowledge, and heads of requests are not read:
//! whatever is asked, the body is taken and its length answered. A WebSocket's short text messages come back.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// A thread that reads into one buffer on the heap.
const STACK: usize = 64 << 10;
/// How often WebSockets are looked at: they are there to be held.
const LOOK: Duration = Duration::from_millis(100);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a stream, and a connection, may send ahead of what was taken.
const WINDOW: u32 = 1 << 20;
/// Told once so much was taken.
const TELL: u32 = WINDOW / 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

static SOCKETS: Mutex<Vec<TcpStream>> = Mutex::new(Vec::new());

fn main() -> io::Result<()> {
    let port = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok());
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.unwrap_or(8080)))?;
    let small = || Builder::new().stack_size(STACK);
    small().spawn(hold)?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A connection that breaks is its client's affair.
        small().spawn(move || drop(serve(stream)))?;
    }
    Ok(())
}

fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::with_capacity(256 << 10, stream.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        head.extend(byte);
        if head == PREFACE {
            return http2(input, stream);
        }
        if !head.ends_with(b"\r\n\r\n") || PREFACE.starts_with(&head) {
            continue;
        }
        let asked = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if asked.contains("upgrade: websocket") {
            // The accept key of RFC 6455's example, whose key the benchmark sends.
            (&stream).write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                  sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            )?;
            stream.set_nonblocking(true)?;
            SOCKETS
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(stream);
            return Ok(());
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";
        return (&stream).write_all(answer);
    }
}

/// Sends back what the WebSockets say.
fn hold() {
    loop {
        let mut sockets = SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain_mut(|socket| match echo(socket) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        drop(sockets);
        std::thread::sleep(LOOK);
    }
}

/// One masked text message of less than 126 bytes, which comes whole.
fn echo(socket: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; 256];
    let read = socket.read(&mut bytes)?;
    let length = usize::from(bytes[1] & 0x7f);
    if read != 6 + length || bytes[0] != 0x81 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut answer = vec![0x81, bytes[1] & 0x7f];
    answer.extend((0..length).map(|at| bytes[6 + at] ^ bytes[2 + at % 4]));
    socket.write_all(&answer)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn http2(mut input: BufReader<TcpStream>, mut output: TcpStream) -> io::Result<()> {
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let mut settings = vec![0, 4];
    settings.extend(WINDOW.to_be_bytes());
    output.write_all(&frame(SETTINGS, 0, 0, &settings))?;
    output.write_all(&frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes()))?;
    // Of each stream: bytes of its body, and those of them that were not told yet.
    let mut bodies: HashMap<u32, (u64, u32)> = HashMap::new();
    let (mut untold, mut payload) = (0, Vec::new());
    loop {
        let mut header = [0; 9];
        input.read_exact(&mut header)?;
        let [high, middle, low, kind, flags, id @ ..] = header;
        let (length, stream) = (
            u32::from_be_bytes([0, high, middle, low]),
            u32::from_be_bytes(id),
        );
        payload.resize(length as usize, 0);
        input.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & ACK == 0 => output.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            PING if flags & ACK == 0 => output.write_all(&frame(PING, ACK, 0, &payload))?,
            RST_STREAM => drop(bodies.remove(&stream)),
            GOAWAY => return Ok(()),
            HEADERS | DATA => {
                let (body, own) = bodies.entry(stream).or_default();
                if kind == DATA {
                    *body += u64::from(length);
                    *own += length;
                    untold += length;
                }
                if flags & END_STREAM != 0 {
                    let text = format!("{body}\n");
                    bodies.remove(&stream);
                    // 0x88: `:status: 200` of the static table.
                    let mut answer = frame(HEADERS, END_HEADERS, stream, &[0x88]);
                    answer.extend(frame(DATA, END_STREAM, stream, text.as_bytes()));
                    output.write_all(&answer)?;
                } else if *own >= TELL {
                    output.write_all(&frame(WINDOW_UPDATE, 0, stream, &own.to_be_bytes()))?;
                    *own = 0;
                }
                if untold >= TELL {
                    output.write_all(&frame(WINDOW_UPDATE, 0, 0, &untold.to_be_bytes()))?;
                    untold = 0;
                }
            }
            _ => {}
        }
    }
}
