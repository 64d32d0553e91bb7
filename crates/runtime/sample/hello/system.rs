//! What the standard library doesn't offer: the host name, signals, log lines in one piece.

use std::ffi::{c_char, c_int, c_void};
use std::io::Write;

use crate::json;

const SIGTERM: c_int = 15;
const FAREWELL: &[u8] =
    b"{\"severity\":\"NOTICE\",\"message\":\"hello received SIGTERM and exits\"}\n";

unsafe extern "C" {
    fn gethostname(name: *mut c_char, length: usize) -> c_int;
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn write(descriptor: c_int, buffer: *const c_void, length: usize) -> isize;
    fn _exit(status: c_int) -> !;
}

extern "C" fn terminate(_signal: c_int) {
    // SAFETY: both calls are allowed in a signal handler; the buffer is static.
    unsafe {
        write(1, FAREWELL.as_ptr().cast(), FAREWELL.len());
        _exit(0)
    }
}

extern "C" fn go_on(_signal: c_int) {}

/// Exits on SIGTERM, or takes it and goes on. Without a handler the kernel ignores SIGTERM for process 1 of a namespace.
pub fn on_terminate(ignore: bool) {
    let handler = if ignore { go_on } else { terminate };
    // SAFETY: neither handler calls anything that is not allowed in one.
    unsafe {
        signal(SIGTERM, handler);
    }
}

/// The name of this machine: the instance.
pub fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: the buffer is ours and as long as said; the last byte stays zero.
    let result = unsafe { gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    if result == 0 {
        String::from_utf8_lossy(&name[..length]).into_owned()
    } else {
        "unknown".to_owned()
    }
}

/// One structured log line. Written at once, so that lines of several threads don't mix.
pub fn log(severity: &str, message: &str) {
    let line = format!(
        "{{\"severity\":{},\"message\":{}}}\n",
        json::quote(severity),
        json::quote(message)
    );
    // Nobody listens any more: nothing to do about it.
    let _gone = std::io::stdout().lock().write_all(line.as_bytes());
}
