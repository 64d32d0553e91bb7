//! Compiles `proto/` into messages, clients, servers and one descriptor set, without `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo runs this in the package's folder; a path compiled in would be another one once that has moved.
    let root = Path::new("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();

    // Encoded by protox: prost's own types would lose the options, and with them every route.
    let mut bare = protox::Compiler::new([root])?;
    bare.include_imports(true)
        .include_source_info(false)
        .open_files(&files)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "Cargo tells a build script by its environment where to write"
    )]
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("descriptors.bin"),
        bare.encode_file_descriptor_set(),
    )?;

    // With comments, which become the types' documentation.
    let mut commented = protox::Compiler::new([root])?;
    commented
        .include_imports(true)
        .include_source_info(true)
        .open_files(&files)?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .btree_map(".")
        .include_file("google.rs")
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(commented.file_descriptor_set(), config)?;
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
