//! The programs that are started: hello, and the Flask app behind gunicorn, each as it is in its image.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::Settings;
use super::peers::App;

/// The programs to start; says in `report` which one is left out and why.
pub(super) fn apps(settings: &Settings, report: &mut String) -> anyhow::Result<Vec<App>> {
    let wanted = |name: &str| settings.apps.iter().any(|app| app == name);
    let mut apps = Vec::new();
    if wanted("hello") {
        apps.push(hello(settings)?);
    }
    match &settings.flask {
        Some(archive) if wanted("flask") => apps.push(flask(settings, archive)?),
        None if wanted("flask") => report.push_str(
            "The Flask app was left out: its image was not built (see scripts/test-inputs.sh).\n",
        ),
        _ => {}
    }
    Ok(apps)
}

/// The sample program of the built-in image, compiled the same way, alone in a root file system.
pub(crate) fn hello(settings: &Settings) -> anyhow::Result<App> {
    let root = settings.work.join("hello-root");
    for folder in ["proc", "dev", "sys", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/runtime/sample/hello/main.rs");
    compile(&source, &root.join("hello"))?;
    Ok(App {
        name: "hello",
        root,
        args: vec!["/hello".into()],
        env: vec!["PATH=/".into()],
        cwd: "/".into(),
        path: "/",
        is_static: true,
        archive: None,
    })
}

/// A static program of one crate.
pub(crate) fn compile(source: &Path, program: &Path) -> anyhow::Result<()> {
    let built = Command::new("rustc")
        .args(["--edition", "2024", "-C", "opt-level=s"])
        .args(["-C", "panic=abort", "-C", "strip=symbols"])
        .args(["-C", "target-feature=+crt-static", "-o"])
        .arg(program)
        .arg(source)
        .status()
        .context("run rustc")?;
    if !built.success() {
        bail!("rustc {}: {built}", source.display());
    }
    Ok(())
}

/// The Flask app's root file system, unpacked from its archive.
fn flask(settings: &Settings, archive: &Path) -> anyhow::Result<App> {
    let layout = settings.work.join("flask-oci");
    let root = settings.work.join("flask-root");
    if !root.join("app/main.py").exists() {
        std::fs::create_dir_all(&layout)?;
        std::fs::create_dir_all(&root)?;
        run_tar(&[
            "-xf",
            &archive.to_string_lossy(),
            "-C",
            &layout.to_string_lossy(),
        ])?;
        for layer in layers(&layout)? {
            run_tar(&[
                "-xf",
                &layer.to_string_lossy(),
                "-C",
                &root.to_string_lossy(),
            ])?;
        }
    }
    let args = [
        "/bin/sh",
        "-c",
        "cd /app && exec gunicorn --bind :$PORT --workers 1 --threads 8 --timeout 0 main:app",
    ];
    Ok(App {
        name: "flask-chat",
        root,
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        env: vec![
            "PATH=/usr/local/bin:/usr/bin:/bin".into(),
            "OPENAI_API_KEY=none".into(),
            "LANG=C.UTF-8".into(),
        ],
        cwd: "/app".into(),
        path: "/health",
        is_static: false,
        archive: Some(archive.to_owned()),
    })
}

fn run_tar(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("tar").args(args).status()?;
    if status.success() {
        Ok(())
    } else {
        bail!("tar {}: {status}", args.join(" "))
    }
}

/// The layer files of an OCI layout, lowest first.
fn layers(layout: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let read = |path: PathBuf| -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    };
    let index = read(layout.join("index.json"))?;
    let manifest = read(blob(
        index["manifests"][0]["digest"]
            .as_str()
            .context("manifest digest")?,
    ))?;
    manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|l| l["digest"].as_str().map(blob).context("layer digest"))
        .collect()
}
