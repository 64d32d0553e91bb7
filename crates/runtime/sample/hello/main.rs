//! The program of the sample image `utsuwa.local/hello`: shows where it runs, and misbehaves on request.
//!
//! Only the standard library, one static file, one thread per connection: it must start in a millisecond.

mod http;
mod json;
mod page;
mod routes;
mod system;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::process::exit;
use std::thread;

/// Enough for a handler; the default of 2 MiB would count for nothing but still be mapped.
const STACK_BYTES: usize = 128 << 10;

fn main() {
    system::exit_on_terminate();
    let port = match std::env::var("PORT").map(|text| text.parse::<u16>()) {
        Err(_unset) => 8080,
        Ok(Ok(port)) => port,
        Ok(Err(_error)) => fail("PORT is not a number from 0 to 65535"),
    };
    // A socket for both families; where IPv6 is missing, IPv4 alone.
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener =
        TcpListener::bind(address).or_else(|_error| TcpListener::bind(("0.0.0.0", port)));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => fail(&format!("listen on port {port}: {error}")),
    };
    system::log("INFO", &format!("hello listens on port {port}"));
    for connection in listener.incoming() {
        let Ok(connection) = connection else { continue };
        let serve = move || {
            // A client that leaves in the middle is no news.
            let _gone = http::serve(connection, &routes::answer);
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK_BYTES).spawn(serve) {
            system::log("ERROR", &format!("start a thread: {error}"));
        }
    }
}

fn fail(why: &str) -> ! {
    system::log("CRITICAL", why);
    exit(1)
}
