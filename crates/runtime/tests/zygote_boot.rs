//! The bootstrap of a zygote under a real Python: the program finds nothing of it, and what can't wait is refused.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../../../tests/skip.rs"]
mod skip;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BOOT: &str = include_str!("../src/sandbox/zygote/boot.py");
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with installed modules, and the bootstrap.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(test: &str) -> Option<Self> {
        for program in ["bash", "python3"] {
            if Command::new(program).arg("--version").output().is_err() {
                skip::skip(test, &format!("it needs {program}"));
                return None;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("boot")).unwrap();
        fs::create_dir(folder.path().join("site-packages")).unwrap();
        fs::create_dir(folder.path().join("app")).unwrap();
        fs::create_dir(folder.path().join("code")).unwrap();
        Some(Self { folder })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn module(&self, name: &str, text: &str) {
        fs::write(self.at("site-packages").join(format!("{name}.py")), text).unwrap();
    }

    /// `python3 -c PROGRAM` behind the bootstrap, as the launcher runs it. What it says is in the file `said`.
    fn run(&self, park: bool, modules: &str, program: &str) -> Child {
        let park = if park { "True" } else { "False" };
        let told = format!("PARK = {park}\nSAY = 100\nARCHIVE = 101\nMODULES = \"{modules}\"\n");
        fs::write(self.at("boot/sitecustomize.py"), told + BOOT).unwrap();
        fs::write(self.at("said"), "").unwrap();
        self.python(
            "exec 100>>\"$1\" 101<\"$2\"; PYTHONPATH=/proc/self/fd/101:$3:$5 exec python3 -c \"$4\"",
            program,
        )
    }

    /// The same program without it.
    fn plain(&self, program: &str) -> String {
        let child = self.python("PYTHONPATH=$3:$5 exec python3 -c \"$4\"", program);
        finished(child)
    }

    fn python(&self, how: &str, program: &str) -> Child {
        // As the launcher leaves it: nothing of whoever runs the tests is open.
        let alone = "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -le 2 ] || eval \"exec $fd>&-\"; done";
        Command::new("bash")
            .args(["-c", &format!("{alone} 2>/dev/null; {how}"), "bash"])
            .args([self.at("said"), self.at("boot"), self.at("site-packages")])
            .arg(program)
            .arg(self.at("code"))
            .current_dir(self.at("app"))
            .env_remove("PYTHONPATH")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn said(&self) -> String {
        let began = Instant::now();
        loop {
            let said = fs::read_to_string(self.at("said")).unwrap();
            if !said.is_empty() {
                return said;
            }
            assert!(began.elapsed() < PATIENCE, "it says nothing");
            std::thread::yield_now();
        }
    }

    fn refused(&self, modules: &str) -> String {
        let mut child = self.run(true, modules, "print('ran')");
        let said = self.said();
        let why = said.strip_prefix('R').map(str::to_owned);
        let Some(why) = why else {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it is parked: {said}");
        };
        assert_eq!(finished(child), "", "the program must not run");
        why
    }
}

fn go_on(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
}

fn finished(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.is_empty(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a program can see of how it was started.
const SHOW: &str = "import os, sys, signal
print(sys.path, sys.argv, [type(f) for f in sys.meta_path])
print(sorted(name for name in os.environ if name != '_'), os.environ['PYTHONPATH'], __name__)
print(sorted(os.listdir('/proc/self/fd')), signal.pthread_sigmask(signal.SIG_BLOCK, []))
print('sitecustomize' in sys.modules, os.path.realpath('.'))";

#[test]
fn a_parked_program_finds_nothing_of_the_bootstrap() {
    let Some(bench) = Bench::new("a_parked_program_finds_nothing_of_the_bootstrap") else {
        return;
    };
    bench.module("lib", "import os; os.environ['LIB'] = 'imported'");
    let lib = format!("import lib\n{SHOW}");
    let child = bench.run(true, "json lib", &lib);
    assert_eq!(bench.said(), "P");
    assert!(
        fs::read_link(format!("/proc/{}/fd/101", child.id())).is_err(),
        "closed"
    );
    go_on(&child);
    assert_eq!(finished(child), bench.plain(&lib));
}

#[test]
fn the_modules_are_there_before_it_goes_on_and_the_apps_own_are_not() {
    let Some(bench) =
        Bench::new("the_modules_are_there_before_it_goes_on_and_the_apps_own_are_not")
    else {
        return;
    };
    bench.module("lib", "");
    // The app's own stand before installed ones of the same name.
    bench.module("main", "raise SystemExit('the wrong one')");
    fs::write(bench.at("app/main.py"), "").unwrap();
    let program =
        "import sys; print([name in sys.modules for name in ('lib', 'json', 'main', 'missing')])";
    let child = bench.run(true, "missing missing.part lib main json", program);
    assert_eq!(bench.said(), "P");
    go_on(&child);
    assert_eq!(finished(child), "[True, True, False, False]\n");
}

#[test]
fn chance_begins_anew_when_it_goes_on() {
    let Some(bench) = Bench::new("chance_begins_anew_when_it_goes_on") else {
        return;
    };
    // What would be the same in all without it.
    bench.module("fixed", "import random; random.seed(1)");
    let mut child = Vec::new();
    for _ in 0..2 {
        let program = "import random, logging, time; print(random.random(), time.time() - logging._startTime < 5 or logging._startTime > 1e15)";
        let one = bench.run(true, "random logging ssl fixed", program);
        assert_eq!(bench.said(), "P");
        go_on(&one);
        child.push(finished(one));
    }
    assert_ne!(child[0], child[1]);
    assert!(
        child.iter().all(|text| text.ends_with("True\n")),
        "{child:?}"
    );
}

#[test]
fn what_can_not_wait_is_refused() {
    let Some(bench) = Bench::new("what_can_not_wait_is_refused") else {
        return;
    };
    bench.module("threads", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()");
    bench.module("sockets", "import socket\nkept = socket.socket()");
    bench.module("polls", "import select\nkept = select.epoll()");
    bench.module(
        "children",
        "import subprocess\nkept = subprocess.Popen(['true'])",
    );
    bench.module("ends", "raise SystemExit(3)");
    for (modules, why) in [
        ("json threads", "importing threads started 1 thread"),
        ("sockets", "left a descriptor open (socket)"),
        ("polls", "left a descriptor open (eventpoll)"),
        ("children", "started a child process"),
        ("ends", "importing ends raised SystemExit"),
    ] {
        let refused = bench.refused(modules);
        assert!(refused.contains(why), "{modules}: {refused}");
    }
}

#[test]
fn what_is_imported_is_noted_in_forked_programs_too() {
    let Some(bench) = Bench::new("what_is_imported_is_noted_in_forked_programs_too") else {
        return;
    };
    bench.module("lib", "import json");
    let program = format!(
        "import os\nif not os.fork():\n import lib\n os._exit(0)\nos.wait()\n{}",
        SHOW.replace("[type(f) for f in sys.meta_path]", "")
    );
    let shown = finished(bench.run(false, "", &program));
    let said = bench.said();
    let names: Vec<&str> = said.lines().collect();
    assert!(names.contains(&"lib") && names.contains(&"json"), "{said}");
    let without = |text: &str| text.replace(", '100'", "").replace("'100', ", "");
    assert_eq!(
        without(&shown),
        bench.plain(&program),
        "but for the descriptor it writes to"
    );

    // A program that takes the number for a file of its own keeps it.
    let own = bench.at("own");
    let takes = format!(
        "import os\nos.dup2(os.open({:?}, os.O_CREAT | os.O_WRONLY), 100)\nimport json.tool",
        Path::new(&own)
    );
    finished(bench.run(false, "", &takes));
    assert_eq!(fs::read_to_string(own).unwrap(), "");
}

/// Python runs it before any program, and the bootstrap after it.
#[test]
fn what_the_images_own_sitecustomize_leaves_is_counted() {
    let Some(bench) = Bench::new("what_the_images_own_sitecustomize_leaves_is_counted") else {
        return;
    };
    bench.module("sitecustomize", "import os; os.environ['CUSTOM'] = 'yes'");
    let program = "import os; print(os.environ['CUSTOM'])";
    let child = bench.run(true, "json", program);
    assert_eq!(
        bench.said(),
        "P",
        "an innocent one keeps nothing from waiting"
    );
    go_on(&child);
    assert_eq!(finished(child), "yes\n");
    for (text, why) in [
        (
            "import socket\nkept = socket.socket()",
            "left a descriptor open (socket)",
        ),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "started 1 thread",
        ),
    ] {
        bench.module("sitecustomize", text);
        let refused = bench.refused("json");
        assert!(
            refused.contains("sitecustomize") && refused.contains(why),
            "{refused}"
        );
    }
}

#[test]
fn the_apps_own_code_that_python_runs_by_itself_is_refused_and_never_parked() {
    let Some(bench) =
        Bench::new("the_apps_own_code_that_python_runs_by_itself_is_refused_and_never_parked")
    else {
        return;
    };
    let ran = bench.at("ran");
    let text = format!("open({ran:?}, 'w').close()");
    let own = bench.at("code/sitecustomize.py");
    fs::write(&own, text).unwrap();
    let refused = bench.refused("json");
    assert!(refused.contains("code/sitecustomize.py"), "{refused}");
    assert!(!ran.exists(), "before a request");
    // With one it runs, and whoever learns is told at once.
    assert_eq!(finished(bench.run(false, "", "print('ran')")), "ran\n");
    assert!(ran.exists());
    let said = bench.said();
    assert!(
        said.starts_with('!') && said.contains("code/sitecustomize.py"),
        "{said}"
    );

    // What an installed one imports of it.
    fs::remove_file(own).unwrap();
    bench.module("sitecustomize", "import mine");
    fs::write(bench.at("code/mine.py"), "").unwrap();
    let refused = bench.refused("json");
    assert!(refused.contains("code/mine.py"), "{refused}");
    finished(bench.run(false, "", "print('ran')"));
    assert!(bench.said().starts_with('!'));
}
