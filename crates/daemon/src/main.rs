//! The one executable: server, command line, and the internal roles it re-executes itself as.

mod cli;
mod client;
mod config;
mod environment;
mod logging;
mod output;
#[cfg(test)]
#[path = "../../../tests/skip.rs"]
mod skip;
mod up;

use std::process::ExitCode;

/// A heap that a thousand services have come and gone through must not be slower than a fresh one (ADR 14).
#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Version of the program, as `--version` and the API tell it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Roles come first: they must run before any thread exists.
fn main() -> ExitCode {
    let mut words = std::env::args();
    if words.nth(1).as_deref() == Some("internal") {
        let role = words.next().unwrap_or_default();
        return match role.as_str() {
            "holder" => utsuwa_runtime::rootless::holder_main(words),
            "keeper" => utsuwa_runtime::keeper::main(words),
            "spawner" => utsuwa_runtime::spawner::main(words),
            up::ahead::ROLE => up::ahead::main(),
            "unpack" => utsuwa_runtime::image::unpack::main(),
            other => {
                output::note(&format!(
                    "error: internal {other}: no such role; these are for the program itself"
                ));
                ExitCode::from(2)
            }
        };
    }
    cli::main()
}
