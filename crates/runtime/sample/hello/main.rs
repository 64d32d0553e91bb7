//! The program of the sample image `utsuwa.local/hello`: shows where it runs, and misbehaves on request.
//!
//! Only the standard library, one static file, one thread per connection: it must start in a millisecond.
//!
//! Variables make it misbehave at its start, so that what the server says about such apps can be tried:
//! `HELLO_LISTEN=HOST:PORT` listens there instead of at `PORT` on all addresses (`127.0.0.1:8080` is reachable from inside
//! alone, `0.0.0.0:9999` is not where it is looked for); `HELLO_START=exit:CODE` exits, `HELLO_START=never-listen` lives
//! without listening, `HELLO_START=sleep:MS` listens that much later. `HELLO_TICK=MS` counts on between requests, as work in
//! the background does; `/ticks` tells how far it came. `HELLO_STOP=ignore` takes SIGTERM and goes on.
//! `/health?set=sick` has the instance that takes it answer 503 at `/healthz`, `/health?set=well` 200 again
//! (`&ms=N`: well again after that time).

mod http;
mod json;
mod page;
mod routes;
mod system;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::process::exit;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// Enough for a handler; the default of 2 MiB would count for nothing but still be mapped.
const STACK_BYTES: usize = 128 << 10;

fn main() {
    system::on_terminate(std::env::var("HELLO_STOP").is_ok_and(|wish| wish == "ignore"));
    let port = match std::env::var("PORT").map(|text| text.parse::<u16>()) {
        Err(_unset) => 8080,
        Ok(Ok(port)) => port,
        Ok(Err(_error)) => fail("PORT is not a number from 0 to 65535"),
    };
    misbehave();
    tick();
    let (listener, place) = match std::env::var("HELLO_LISTEN") {
        Ok(place) => (TcpListener::bind(&place), place),
        Err(_unset) => (listen(port), format!("port {port}")),
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => fail(&format!("listen on {place}: {error}")),
    };
    system::log("INFO", &format!("hello listens on {place}"));
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

/// A socket for both families; where IPv6 is missing, IPv4 alone.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    TcpListener::bind(address).or_else(|_error| TcpListener::bind(("0.0.0.0", port)))
}

/// Does what `HELLO_START` asks for.
fn misbehave() {
    let Ok(wish) = std::env::var("HELLO_START") else {
        return;
    };
    let (what, amount) = wish.split_once(':').unwrap_or((&wish, ""));
    match (what, amount.parse::<u64>()) {
        ("exit", Ok(code)) => {
            system::log(
                "NOTICE",
                &format!("hello exits with {code} at its start as asked"),
            );
            exit(i32::try_from(code & 0xff).unwrap_or(1))
        }
        ("never-listen", _) => {
            system::log("NOTICE", "hello never listens as asked");
            loop {
                thread::park();
            }
        }
        ("sleep", Ok(ms)) => thread::sleep(Duration::from_millis(ms)),
        _ => fail("HELLO_START is none of exit:CODE, never-listen, sleep:MS"),
    }
}

/// Counts in the background if `HELLO_TICK` asks for it.
fn tick() {
    let pause = std::env::var("HELLO_TICK").map(|text| text.parse::<u64>());
    match pause {
        Err(_unset) => {}
        Ok(Ok(ms)) => {
            let started = thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    loop {
                        thread::sleep(Duration::from_millis(ms.max(1)));
                        routes::TICKS.fetch_add(1, Ordering::Relaxed);
                    }
                });
            if let Err(error) = started {
                fail(&format!("start a thread: {error}"));
            }
        }
        Ok(Err(_error)) => fail("HELLO_TICK is not a number of milliseconds"),
    }
}

fn fail(why: &str) -> ! {
    system::log("CRITICAL", why);
    exit(1)
}
