//! OCI archives made by hand: one layer from a folder, one manifest.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Packs `root` as `ROOT.tar`; `config` is the image's own (`Entrypoint`, `User`, …). With `platforms` the index itself lists
/// it under its architecture.
pub(crate) fn pack(root: &Path, config: &Value, architecture: &str, platforms: bool) -> PathBuf {
    let layout = root.with_extension("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layer = Command::new("tar")
        .args(["-C", &root.to_string_lossy(), "-c", "."])
        .output()
        .unwrap()
        .stdout;
    let blob = |kind: &str, bytes: &[u8]| -> Value {
        let hex = sha256(bytes);
        std::fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let layer = blob("layer.v1.tar", &layer);
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]});
    let mut entry = blob("manifest.v1+json", manifest.to_string().as_bytes());
    if platforms {
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
    }
    std::fs::write(
        layout.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string(),
    )
    .unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let archive = root.with_extension("tar");
    let packed = Command::new("tar")
        .args([
            "-C",
            &layout.to_string_lossy(),
            "-cf",
            &archive.to_string_lossy(),
            ".",
        ])
        .status()
        .unwrap();
    assert!(packed.success());
    archive
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It reads to the end before it writes, so the pipes can't block each other.
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}
