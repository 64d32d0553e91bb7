//! Compiles the program of the sample image, so that the server carries it and needs no network to show something.
//!
//! It is a static program of its own, not a part of the server: `rustc` is called once for it, for the same target.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=sample/hello");
    println!("cargo::rerun-if-changed=build.rs");
    #[expect(
        clippy::disallowed_methods,
        reason = "it is how cargo speaks to build scripts"
    )]
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let output = PathBuf::from(variable("OUT_DIR")).join("hello");
    let target = variable("TARGET");
    println!("cargo::rustc-env=UTSUWA_SAMPLE={}", output.display());
    println!("cargo::rustc-env=UTSUWA_SAMPLE_TARGET={target}");
    if let Err(why) = compile(&variable("RUSTC"), &target, &output) {
        // Checking for another machine needs no sample; the server says so when it is asked for the image.
        println!("cargo::warning=the sample image is left out of this build for {target}: {why}");
        if let Err(error) = std::fs::write(&output, []) {
            println!("cargo::error=write {}: {error}", output.display());
        }
    }
}

fn compile(rustc: &str, target: &str, output: &Path) -> Result<(), String> {
    let result = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "hello",
            "--crate-type",
            "bin",
            "--target",
            target,
        ])
        .args([
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
            "-C",
            "lto=fat",
            "-C",
            "codegen-units=1",
        ])
        // No loader and nothing to relocate: the image holds this one file, and it starts sooner.
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "relocation-model=static",
        ])
        .arg("-o")
        .arg(output)
        .arg("sample/hello/main.rs")
        .output()
        .map_err(|error| format!("run {rustc}: {error}"))?;
    if result.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&result.stderr);
    Err(text
        .lines()
        .find(|line| line.contains("error"))
        .unwrap_or("rustc gave no reason")
        .to_owned())
}
