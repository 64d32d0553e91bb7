//! The privileged roles alone, so that this crate's tests need no daemon: the same dispatch as `utsuwa internal …`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("internal") {
        return ExitCode::from(2);
    }
    match arguments.next().as_deref() {
        Some("keeper") => utsuwa_runtime::keeper::main(arguments),
        Some("spawner") => utsuwa_runtime::spawner::main(arguments),
        Some("unpack") => utsuwa_runtime::image::unpack::main(),
        _ => ExitCode::from(2),
    }
}
