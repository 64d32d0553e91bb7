//! `utsuwa trust`: the machine's store and the databases of browsers, there and back.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{Server, can_run, skip};

/// Runs the command with `home` as home, over a copy of the machine's store that only it sees.
pub(crate) fn trust(server: &Server, home: &Path, store: &Path, args: &str) -> Output {
    trust_over(&server.data_dir(), home, store, args)
}

/// The same with a data directory of the caller's choice.
fn trust_over(data: &Path, home: &Path, store: &Path, args: &str) -> Output {
    let script = format!(
        "mount --bind {store} /usr/local/share/ca-certificates && mount --bind {certs} /etc/ssl/certs && \
         exec {program} trust --data-dir {data} {args}",
        store = store.join("own").display(),
        certs = store.join("certs").display(),
        program = env!("CARGO_BIN_EXE_utsuwa"),
        data = data.display(),
    );
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env("HOME", home)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_authority_is_installed_and_removed() {
    let name = "trust::the_authority_is_installed_and_removed";
    if !can_run(name) {
        return;
    }
    if !Path::new("/usr/local/share/ca-certificates").is_dir() {
        skip(name, "this machine's store is not Debian's");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    for folder in ["own", "certs"] {
        std::fs::create_dir_all(store.join(folder)).unwrap();
    }
    let home = dir.path().join("home");
    let database = home.join(".pki/nssdb");
    std::fs::create_dir_all(&database).unwrap();
    let sql = format!("sql:{}", database.display());
    let made = Command::new("certutil")
        .args(["-N", "--empty-password", "-d", &sql])
        .status();
    let browsers = made.is_ok_and(|status| status.success());
    let server = Server::start(&[]);
    let bundle = store.join("certs/ca-certificates.crt");
    let pem = std::fs::read_to_string(server.data_dir().join("keys/services-ca.pem")).unwrap();
    assert_eq!(said(&trust(&server, &home, &store, "--print")), pem);

    let installed: Vec<PathBuf> = {
        let told = said(&trust(&server, &home, &store, ""));
        assert!(told.contains("update-ca-certificates"), "{told}");
        assert_eq!(told.contains("nssdb"), browsers, "{told}");
        let files = std::fs::read_dir(store.join("own")).unwrap();
        files.map(|file| file.unwrap().path()).collect()
    };
    assert_eq!(installed.len(), 1);
    assert!(
        std::fs::read_to_string(&bundle)
            .unwrap()
            .contains(pem.trim())
    );
    assert_eq!(
        said(&trust(&server, &home, &store, "")),
        "",
        "once is enough"
    );

    // With a directory that isn't the server's, nothing can be looked for.
    let elsewhere = trust_over(&dir.path().join("gone"), &home, &store, "--remove");
    let told = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert_eq!(elsewhere.status.code(), Some(1), "{told}");
    let file = installed[0].file_name().unwrap().to_string_lossy();
    for part in ["gone/id", "--data-dir", &*file, "update-ca-certificates"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // With another server's it is, and what else is there is named.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("id"), "another\n").unwrap();
    let elsewhere = trust_over(&other, &home, &store, "--remove");
    let told = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert_eq!(elsewhere.status.code(), Some(0), "{told}");
    for part in ["there is no", "utsuwa-another.crt", &*file, "--data-dir"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(installed[0].exists());

    let told = said(&trust(&server, &home, &store, "--remove"));
    assert!(told.contains("removed"), "{told}");
    assert!(!installed[0].exists());
    assert!(
        !std::fs::read_to_string(&bundle)
            .unwrap()
            .contains(pem.trim())
    );
    if browsers {
        let left = Command::new("certutil")
            .args(["-L", "-d", &sql])
            .output()
            .unwrap();
        assert!(!String::from_utf8_lossy(&left.stdout).contains("utsuwa"));
    }
    server.finish();
}
