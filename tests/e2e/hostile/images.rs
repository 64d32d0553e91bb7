//! Images that attack while they are started: links, names and programs that would lead the launcher out of the root.
//!
//! Each either fails its deploy in words, or runs confined like any other. Nothing of the host's may change.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::attempts::make;
use super::inputs;
use crate::harness::{Server, host_architecture, pack};
use crate::skip::here;

/// What must come of one.
pub(crate) enum End {
    /// The deploy fails and says these words.
    Fails(&'static [&'static str]),
    /// It runs, and nothing gets out.
    Confined,
    /// Either: which one depends on what is open at which number.
    Either,
}

/// An image: the hostile program and what `script` does to its root file system.
pub(crate) struct Trick {
    pub(crate) name: &'static str,
    pub(crate) cve: &'static str,
    pub(crate) what: &'static str,
    script: &'static str,
    config: Value,
    pub(crate) end: End,
}

fn trick(name: &'static str, cve: &'static str, what: &'static str, end: End) -> Trick {
    Trick {
        name,
        cve,
        what,
        script: ":",
        config: json!({}),
        end,
    }
}

impl Trick {
    fn script(mut self, script: &'static str) -> Self {
        self.script = script;
        self
    }

    fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }
}

pub(crate) fn tricks() -> Vec<Trick> {
    let mut all = vec![
        trick("workdir-up", "CVE-2024-21626", "a working directory above the root", End::Confined)
            .config(json!({"WorkingDir": "/../../../../etc"})),
        trick("workdir-link", "CVE-2024-21626", "a working directory behind a link to /proc/1/root", End::Either)
            .script("ln -s /proc/1/root srv/up && ln -s up/../../.. srv/link")
            .config(json!({"WorkingDir": "/srv/link"})),
        trick("workdir-cwd", "CVE-2024-21626", "a working directory above the launcher's own", End::Either)
            .config(json!({"WorkingDir": "/proc/self/cwd/../../.."})),
        trick("workdir-relative", "CVE-2024-21626", "a relative working directory", End::Fails(&["not absolute"]))
            .config(json!({"WorkingDir": "../../.."})),
        trick("proc-link", "CVE-2019-19921 CVE-2023-27561", "/proc is a link", End::Fails(&["/proc", "symbolic link"]))
            .script("rmdir proc && ln -s /tmp proc"),
        trick("proc-file", "CVE-2019-16884", "/proc is a file", End::Fails(&["/proc", "not a directory"]))
            .script("rmdir proc && : >proc"),
        trick("sys-link", "CVE-2023-27561", "/sys is a link", End::Fails(&["/sys", "symbolic link"]))
            .script("rmdir sys && ln -s ../../../sys sys"),
        trick("dev-link", "CVE-2023-27561 CVE-2026-41579", "/dev is a link", End::Fails(&["/dev", "symbolic link"]))
            .script("rmdir dev && ln -s /proc/self/fd dev"),
        trick("null-link", "CVE-2025-31133", "/dev/null is a link to what a cover made of it would open", End::Confined)
            .script("ln -s /proc/sys/kernel/core_pattern dev/null"),
        trick("console-link", "CVE-2025-52565", "/dev/console and /dev/pts are links", End::Confined)
            .script("ln -s /proc/sys/kernel/core_pattern dev/console && ln -s /proc/sys dev/pts && ln -s /proc/sys/kernel dev/shm"),
        trick("files-link", "CVE-2025-52881", "files that the launcher writes are links into /proc", End::Confined)
            .script("ln -s /proc/sys/kernel/core_pattern etc/resolv.conf && ln -s /proc/self/mem etc/hosts && ln -s /proc/sysrq-trigger etc/hostname"),
        trick("folder-link", "CVE-2025-52881 CVE-2024-45310", "the folder of files that the launcher writes is a link into /proc", End::Either)
            .script("rm -r etc && ln -s /proc/sys/kernel etc"),
        trick("folder-up", "CVE-2024-45310", "the folder of files that the launcher makes leads above the root", End::Either)
            .script("rm -r etc && ln -s ../../../../var/tmp/utsuwa-hostile-canary etc"),
        trick("tmp-link", "CVE-2021-30465", "/tmp, whose mode the launcher sets, is a link out", End::Either)
            .script("rmdir tmp && ln -s /proc/self/fd tmp"),
        trick("volumes", "CVE-2022-23648 CVE-2021-30465", "volumes of the image lead above the root", End::Confined)
            .config(json!({"Volumes": {"/../../../../etc": {}, "/proc/self/root": {}, "/srv/../../..": {}}})),
        trick("passwd-link", "", "/etc/passwd is a link to the launcher's memory", End::Fails(&["somebody"]))
            .script("ln -sf /proc/self/mem etc/passwd")
            .config(json!({"User": "somebody"})),
        trick("user-overflow", "CVE-2024-40635 CVE-2026-46680", "a user whose number comes round to root's", End::Fails(&["4294967296"]))
            .config(json!({"User": "4294967296"})),
        trick("user-outside", "CVE-2024-40635 CVE-2026-46680", "a user beyond the instance's ids", End::Fails(&["65536"]))
            .config(json!({"User": "65536:65536"})),
        trick("many-groups", "CVE-2026-47262 CVE-2025-4437", "a list of groups without end", End::Confined)
            .script("seq 1 400000 | sed 's/.*/g:x:&:user/' >etc/group")
            .config(json!({"User": "user"})),
        trick("labels", "CVE-2026-53488 CVE-2022-0811", "labels that a launcher would take for orders", End::Confined)
            .config(json!({"Labels": {"io.kubernetes.cri-o.userns-mode": "host", "run.oci.hooks": "$(touch /var/tmp/utsuwa-hostile-canary)", "io.containerd.image.sysctl": "kernel.core_pattern=|/x"}})),
        trick("home-lines", "CVE-2022-4318", "a home with a line for /etc/passwd in it", End::Confined)
            .config(json!({"Env": ["HOME=/root\nevil:x:0:0::/:/bin/sh"]})),
        trick("passwd-pipe", "", "/etc/passwd is a pipe that nobody writes to", End::Fails(&["somebody"]))
            .script("rm etc/passwd && mkfifo etc/passwd")
            .config(json!({"User": "somebody"})),
        trick("entry-exe", "CVE-2019-5736", "the program is /proc/self/exe, the launcher", End::Fails(&["/proc/self/exe"]))
            .config(json!({"Entrypoint": ["/proc/self/exe"]})),
        trick("entry-script", "CVE-2019-5736", "the program is a script for /proc/self/exe", End::Fails(&["/srv/script"]))
            .script("echo '#!/proc/self/exe' >srv/script && chmod 755 srv/script")
            .config(json!({"Entrypoint": ["/srv/script"]})),
        trick("entry-descriptor", "CVE-2024-21626", "the program is one of the launcher's descriptors", End::Fails(&["/proc/self/fd/3"]))
            .config(json!({"Entrypoint": ["/proc/self/fd/3"]})),
        trick("libraries", "CVE-2019-14271", "libraries that a launcher would load from the image", End::Confined)
            .script("mkdir -p lib/x86_64-linux-gnu && cp hostile lib/x86_64-linux-gnu/libnss_files.so.2 && echo 'passwd: files evil' >etc/nsswitch.conf")
            .config(json!({"User": "user", "Env": ["LD_PRELOAD=/lib/x86_64-linux-gnu/libnss_files.so.2"]})),
    ];
    for number in 3..=12 {
        // Leaked for the length of the test: names are static everywhere else.
        let name: &'static str = format!("workdir-fd-{number}").leak();
        all.push(
            trick(
                name,
                "CVE-2024-21626",
                "a working directory by a descriptor of the launcher",
                End::Either,
            )
            .config(json!({"WorkingDir": format!("/proc/self/fd/{number}")})),
        );
    }
    all
}

#[test]
fn images_that_attack_at_start() {
    let Some(folder) = inputs(here!()) else {
        return;
    };
    let dir = tempfile::Builder::new()
        .prefix("utsuwa-tricks-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let core_pattern = || std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = core_pattern();
    let mut server = Server::start(&[]);
    for name in tricks().iter().map(|t| t.name) {
        server.expect_warning(name);
    }
    let mut wrong = Vec::new();
    for trick in tricks() {
        let verdict = deploy(&server, &folder, dir.path(), &trick);
        let line = format!(
            "{} {:16} {}: {}",
            if verdict.is_ok() { "ok  " } else { "FAIL" },
            trick.name,
            trick.what,
            verdict.as_ref().unwrap_or_else(|e| e)
        );
        println!("{line} {}", trick.cve);
        if verdict.is_err() {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A setuid file of an image must be nothing that a user of the host can execute (CVE-2021-41091).
    let images = server.data_dir().join("images");
    let seen = Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "ls"])
        .arg(&images)
        .output()
        .unwrap();
    assert!(images.is_dir() && !seen.status.success(), "{seen:?}");
    assert_eq!(core_pattern(), before);
    assert!(!Path::new("/var/tmp/utsuwa-hostile-canary").exists());
    server.finish();
}

/// What came of it; an error if it isn't what must.
fn deploy(server: &Server, folder: &Path, dir: &Path, trick: &Trick) -> Result<String, String> {
    let archive = image(folder, dir, trick.name, trick.script, &trick.config);
    let output = server.utsuwa(&[
        "deploy",
        trick.name,
        "--allow-unauthenticated",
        "--image",
        &archive,
    ]);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = said.lines().find(|l| l.starts_with("error:"));
        let said = said.unwrap_or("no reason").to_owned();
        return match trick.end {
            End::Fails(words) if words.iter().all(|w| said.contains(w)) => Ok(said),
            End::Either => Ok(said),
            _ => Err(format!("the deploy failed: {said}")),
        };
    }
    if let End::Fails(_) = trick.end {
        return Err("it was deployed".to_owned());
    }
    server.until_public(trick.name);
    let mut told = Vec::new();
    for attempt in ["cwd", "descriptors", "proc-root", "core-pattern", "console"] {
        let verdict = make(server, trick.name, attempt, "");
        if verdict.outcome != "refused" {
            return Err(format!("{attempt}: {} {}", verdict.outcome, verdict.detail));
        }
        told.push(verdict.detail);
    }
    Ok(format!("runs; {}", told[0]))
}

/// Packs such an image; answers how `deploy` is to name it.
fn image(folder: &Path, dir: &Path, name: &str, script: &str, config: &Value) -> String {
    let root = dir.join(name);
    let prepare = format!(
        "mkdir -p \"$1\" && cd \"$1\" && mkdir etc srv tmp proc sys dev && cp \"$0\" hostile && \
         printf 'root:x:0:0::/:/\\nuser:x:1000:1000::/:/\\n' >etc/passwd && {script}"
    );
    let made = Command::new("sh")
        .args(["-c", &prepare])
        .arg(folder.join("hostile"))
        .arg(&root)
        .status()
        .unwrap();
    assert!(made.success(), "{name}");
    let mut whole = json!({"Entrypoint": ["/hostile"]});
    for (key, value) in config.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let archive = pack(&root, &whole, host_architecture(), false);
    format!("oci-archive:{}", archive.display())
}

/// CVE-2019-5736 to its end: the image brings the loader of the launcher's own program and has that executed.
pub(crate) fn overwrite_launcher(server: &Server, folder: &Path, dir: &Path) -> Option<String> {
    if !folder.join("loader").exists() {
        return None;
    }
    let script = format!(
        "mkdir lib64 && cp '{}' lib64/ld-linux-x86-64.so.2",
        folder.join("loader").display()
    );
    let config = json!({"Entrypoint": ["/proc/self/exe"]});
    let archive = image(folder, dir, "loader", &script, &config);
    server.deploy("loader", &["--image", &archive]);
    Some(server.get("loader", "/").1)
}

#[test]
fn the_launcher_is_not_overwritten() {
    let Some(folder) = inputs(here!()) else {
        return;
    };
    let dir = tempfile::Builder::new()
        .prefix("utsuwa-loader-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let server = Server::start(&[]);
    match overwrite_launcher(&server, &folder, dir.path()) {
        Some(outcome) => assert_eq!(outcome, "refused"),
        None => crate::harness::skip(here!(), "the false loader is for x86-64"),
    }
    server.finish();
}
