//! A small HTTP/1.1 server side: keep-alive, bodies with a length or in chunks, answers of either kind.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;

const MAX_HEAD_BYTES: u64 = 256 << 10;

/// A request; its body is still to be read.
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub peer: String,
}

impl Request {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _value)| key == name)
            .map(|(_key, value)| value.as_str())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _value)| key.eq_ignore_ascii_case(name))
            .map(|(_key, value)| value.as_str())
    }
}

/// The body of a request.
pub struct Body<'a> {
    reader: &'a mut BufReader<TcpStream>,
    writer: TcpStream,
    /// Bytes left of the body or of the current chunk.
    left: u64,
    chunked: bool,
    expects: bool,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.expects) {
            self.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if self.left == 0 && self.chunked {
            self.left = self.chunk_size()?;
            self.chunked = self.left > 0;
        }
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let bytes = self.reader.read(&mut buffer[..most])?;
        if bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left -= bytes as u64;
        if self.left == 0 && self.chunked {
            line(self.reader, &mut 16)?;
        }
        Ok(bytes)
    }
}

impl Body<'_> {
    fn chunk_size(&mut self) -> io::Result<u64> {
        let text = line(self.reader, &mut 4096)?;
        let digits = text.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16)
            .map_err(|_error| io::Error::from(ErrorKind::InvalidData))?;
        if size == 0 {
            // Trailers mean nothing here.
            let mut budget = MAX_HEAD_BYTES;
            while !line(self.reader, &mut budget)?.is_empty() {}
        }
        Ok(size)
    }
}

/// Where the answer goes.
pub struct Answer<'a> {
    connection: &'a mut TcpStream,
    head_only: bool,
    keep_alive: bool,
    old: bool,
}

impl Answer<'_> {
    /// A whole answer.
    pub fn send(&mut self, status: &str, content_type: &str, body: &[u8]) -> io::Result<()> {
        let mut message = self.head(status, content_type);
        message.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        if !self.head_only {
            message.extend_from_slice(body);
        }
        self.connection.write_all(&message)
    }

    /// An answer in pieces; end it with [`Answer::finish`].
    pub fn begin(&mut self, content_type: &str) -> io::Result<()> {
        let mut message = self.head("200 OK", content_type);
        message.extend_from_slice(if self.old {
            b"\r\n"
        } else {
            b"Transfer-Encoding: chunked\r\n\r\n"
        });
        self.connection.write_all(&message)
    }

    pub fn piece(&mut self, data: &[u8]) -> io::Result<()> {
        if data.is_empty() || self.head_only {
            return Ok(());
        }
        if self.old {
            return self.connection.write_all(data);
        }
        let mut message = format!("{:x}\r\n", data.len()).into_bytes();
        message.extend_from_slice(data);
        message.extend_from_slice(b"\r\n");
        self.connection.write_all(&message)
    }

    pub fn finish(&mut self) -> io::Result<()> {
        if self.old {
            self.keep_alive = false;
            return Ok(());
        }
        if self.head_only {
            Ok(())
        } else {
            self.connection.write_all(b"0\r\n\r\n")
        }
    }

    fn head(&self, status: &str, content_type: &str) -> Vec<u8> {
        let connection = if self.keep_alive {
            "keep-alive"
        } else {
            "close"
        };
        format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nCache-Control: no-store\r\nConnection: {connection}\r\n")
            .into_bytes()
    }
}

/// Serves one connection until one side has enough.
pub fn serve(
    mut connection: TcpStream,
    handler: &dyn Fn(&Request, &mut Body<'_>, &mut Answer<'_>) -> io::Result<()>,
) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let peer = connection
        .peer_addr()
        .map(|address| address.to_string())
        .unwrap_or_default();
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let mut budget = MAX_HEAD_BYTES;
        let first = line(&mut reader, &mut budget)?;
        if first.is_empty() {
            continue;
        }
        let mut parts = first.split(' ');
        let (Some(method), Some(target), Some(version)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return connection.write_all(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request {
            method: method.to_owned(),
            path: decode(path),
            query: query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(pair)
                .collect(),
            headers: Vec::new(),
            peer: peer.clone(),
        };
        loop {
            let text = line(&mut reader, &mut budget)?;
            if text.is_empty() {
                break;
            }
            if let Some((name, value)) = text.split_once(':') {
                request
                    .headers
                    .push((name.to_owned(), value.trim().to_owned()));
            }
        }
        let old = version == "HTTP/1.0";
        let close = request
            .header("connection")
            .is_some_and(|value| value.to_ascii_lowercase().contains("close"));
        let chunked = request
            .header("transfer-encoding")
            .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
        let length = request
            .header("content-length")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        let expects = request
            .header("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        let mut body = Body {
            reader: &mut reader,
            writer: connection.try_clone()?,
            left: if chunked { 0 } else { length },
            chunked,
            expects,
        };
        let mut answer = Answer {
            connection: &mut connection,
            head_only: request.method == "HEAD",
            keep_alive: !old && !close,
            old,
        };
        handler(&request, &mut body, &mut answer)?;
        let keep_alive = answer.keep_alive;
        // What the handler left of the body stands before the next request. A client that still waits for leave sends nothing.
        if !keep_alive || body.expects {
            return Ok(());
        }
        io::copy(&mut body, &mut io::sink())?;
    }
}

fn line(reader: &mut BufReader<TcpStream>, budget: &mut u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let read = reader
        .by_ref()
        .take(*budget)
        .read_until(b'\n', &mut bytes)? as u64;
    *budget -= read;
    if bytes.pop() != Some(b'\n') {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (
        decode(&name.replace('+', " ")),
        decode(&value.replace('+', " ")),
    )
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
