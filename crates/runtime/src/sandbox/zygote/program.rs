//! Whether a program is a Python that can be made to wait before it runs anything of the app's.
//!
//! Reads files of the image, inside its root and as the instance's user. What isn't understood for certain is refused: a program
//! that doesn't wait would run before anybody asked for it.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Links of interpreters, `env` and shells before a program is given up.
const STEPS: usize = 6;
/// What the kernel looks at of a script's first line.
const FIRST_LINE: usize = 256;
const SHELLS: &[&str] = &["sh", "bash", "dash", "ash"];

/// Whether `arguments` run Python in this very process; else why that isn't certain. `environment` as the program gets it.
pub(super) fn check(
    arguments: &[String],
    path: &str,
    environment: &[CString],
) -> Result<(), String> {
    let mut words = arguments.to_vec();
    for _ in 0..STEPS {
        let program = words.first().cloned().unwrap_or_default();
        let file =
            find(&program, path).ok_or_else(|| format!("{program:?} is not found in the image"))?;
        let real = std::fs::canonicalize(&file).unwrap_or_else(|_| file.clone());
        let (called, name) = (base(&file), base(&real));
        if is_python(&name) {
            return python(&words[1..]);
        }
        if SHELLS.contains(&called.as_str()) {
            if let Some(name) = environment.iter().find_map(run_by_shells) {
                return Err(format!(
                    "its shell would run what the variable {name} says before a request"
                ));
            }
            words = shell(&words[1..])?;
        } else if called == "env" {
            words.remove(0);
            if words
                .first()
                .is_none_or(|word| word.starts_with('-') || word.contains('='))
            {
                return Err(
                    "env with options or variables of its own is not looked through".to_owned(),
                );
            }
        } else if let Some(line) = first_line(&file) {
            let mut before = vec![line.0];
            before.extend(line.1);
            before.push(file.display().to_string());
            before.extend(words.drain(1..));
            words = before;
        } else {
            return Err(format!(
                "its program {program:?} is not Python, the only runtime that this is built for"
            ));
        }
    }
    Err("it runs too many programs one after another".to_owned())
}

/// The name of a variable by which a shell runs, or may run, more than its command line says: a script, a function, what traces it.
fn run_by_shells(entry: &CString) -> Option<String> {
    let entry = entry.to_string_lossy();
    let (name, value) = entry.split_once('=')?;
    let runs = matches!(name, "BASH_ENV" | "SHELLOPTS" | "BASHOPTS" | "PS4")
        || name.starts_with("BASH_FUNC_");
    (runs && !value.is_empty()).then(|| name.to_owned())
}

fn base(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// `python3`, `python3.11`.
fn is_python(name: &str) -> bool {
    name.strip_prefix("python3").is_some_and(|rest| {
        rest.is_empty()
            || rest.strip_prefix('.').is_some_and(|minor| {
                !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit())
            })
    })
}

/// The options before a script, a module or a command.
fn python(options: &[String]) -> Result<(), String> {
    let mut options = options.iter();
    while let Some(option) = options.next() {
        if option.contains(['$', '\'', '"']) {
            return Err("what its shell gives to Python is not written out".to_owned());
        }
        let Some(letters) = option
            .strip_prefix('-')
            .filter(|letters| !letters.is_empty())
        else {
            return if option == "-" {
                Err(interactive())
            } else {
                Ok(())
            };
        };
        if letters.starts_with('-') {
            // --help, --version, --check-hash-based-pycs VALUE
            return Err(format!("Python's option {option} is not looked through"));
        }
        for (at, letter) in letters.char_indices() {
            match letter {
                'c' | 'm' => return Ok(()),
                'E' | 'I' | 'S' => {
                    return Err(format!(
                        "Python's option -{letter} keeps it from waiting: it reads no PYTHONPATH"
                    ));
                }
                'i' | 'V' | 'h' | '?' => return Err(interactive()),
                'W' | 'X' => {
                    if at + 1 == letters.len() {
                        options.next();
                    }
                    break;
                }
                _ => {}
            }
        }
    }
    Err(interactive())
}

fn interactive() -> String {
    "it runs Python without a program".to_owned()
}

/// What `sh -c` runs in its place, for a command line of one simple command: the shell itself expands it later.
fn shell(arguments: &[String]) -> Result<Vec<String>, String> {
    let [option, line] = arguments else {
        return match arguments.first() {
            Some(file) if !file.starts_with('-') => Err(format!(
                "it runs the shell script {file}, whose commands would run before a request"
            )),
            _ => Err("a shell with other options than -c is not looked through".to_owned()),
        };
    };
    if option != "-c" {
        return Err("a shell with other options than -c is not looked through".to_owned());
    }
    if line.contains([
        '\n', ';', '&', '|', '<', '>', '(', ')', '`', '\\', '#', '{', '}', '*', '?', '[', '~', '!',
    ]) {
        return Err(
            "its shell command is more than one simple command, and the others would run before a request: write exec PROGRAM ARGUMENTS"
                .to_owned(),
        );
    }
    let mut words: Vec<String> = line
        .split([' ', '\t'])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    if words.first().is_none_or(|word| word != "exec") {
        // A shell that stays would be the first process, which gets the signals.
        return Err("its shell command does not begin with exec".to_owned());
    }
    words.remove(0);
    let plain = |word: &String| !word.contains(['$', '\'', '"', '=']);
    if !words.first().is_some_and(plain) {
        return Err("the program in its shell command is not written out".to_owned());
    }
    Ok(words)
}

fn find(program: &str, path: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|file| file.is_file());
    }
    path.split(':')
        .map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(program))
        .find(|file| {
            file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
        })
}

/// Interpreter and option of a script.
fn first_line(file: &Path) -> Option<(String, Option<String>)> {
    let mut start = [0u8; FIRST_LINE];
    let mut read = 0;
    let mut file = File::open(file).ok()?;
    while read < FIRST_LINE {
        match file.read(&mut start[read..]) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(_) => return None,
        }
    }
    let line = start[..read].strip_prefix(b"#!")?;
    let end = line.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&line[..end]).ok()?.trim();
    let (interpreter, option) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let option = option.trim();
    Some((
        interpreter.to_owned(),
        (!option.is_empty()).then(|| option.to_owned()),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn image() -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| {
            std::fs::write(at(name), text).unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        for binary in ["python3.11", "sh", "env", "busybox", "node", "python2.7"] {
            write(binary, "\x7fELF");
        }
        std::os::unix::fs::symlink(at("python3.11"), at("python3")).unwrap();
        std::os::unix::fs::symlink(at("python3.11"), at("python")).unwrap();
        std::os::unix::fs::symlink(at("python2.7"), at("python2")).unwrap();
        let python = at("python3").display().to_string();
        write("gunicorn", &format!("#!{python}\nimport re\n"));
        write("isolated", &format!("#!{python} -I\n"));
        write("by-env", &format!("#!{} python3\n", at("env").display()));
        write(
            "start.sh",
            &format!("#!{}\nexec gunicorn\n", at("sh").display()),
        );
        let path = folder.path().display().to_string();
        (folder, path)
    }

    fn look(words: &[&str]) -> Result<(), String> {
        let (_folder, path) = image();
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        check(&words, &path, &[])
    }

    #[test]
    fn what_runs_python_at_once_is_found() {
        for words in [
            &["gunicorn", "main:app"][..],
            &["by-env", "x"],
            &["python", "-u", "main.py"],
            &["python3", "-X", "dev", "-m", "flask"],
            &["python3.11", "-uc", "print(1)"],
            &["env", "python3", "main.py"],
            &["sh", "-c", "exec gunicorn --bind :$PORT main:app"],
            &["sh", "-c", "exec python3 -m gunicorn \"$NAME\""],
        ] {
            assert_eq!(look(words), Ok(()), "{words:?}");
        }
    }

    #[test]
    fn what_a_shell_runs_besides_its_command_is_refused_with_its_name() {
        let (_folder, path) = image();
        let look = |words: &[&str], variable: &str| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            check(&words, &path, &[CString::new(variable).unwrap()])
        };
        let shell = &["sh", "-c", "exec gunicorn main:app"][..];
        for variable in [
            "BASH_ENV=/app/env.sh",
            "BASH_FUNC_exec%%=() { touch /x; }",
            "SHELLOPTS=xtrace",
            "PS4=$(touch /x)",
        ] {
            let name = variable.split('=').next().unwrap();
            let refused = look(shell, variable).unwrap_err();
            assert!(refused.contains(name), "{refused}");
            assert_eq!(look(&["gunicorn", "main:app"], variable), Ok(()));
        }
        assert_eq!(look(shell, "BASH_ENV="), Ok(()));
        assert_eq!(
            look(shell, "ENV=/app/env.sh"),
            Ok(()),
            "read where somebody types"
        );
    }

    #[test]
    fn what_might_not_wait_is_refused_with_the_reason() {
        for (words, why) in [
            (&["node", "main.js"][..], "not Python"),
            (&["python2", "main.py"], "not Python"),
            (&["python3"], "without a program"),
            (&["python3", "-"], "without a program"),
            (&["python3", "-uE", "main.py"], "-E"),
            (&["python3", "-S", "main.py"], "-S"),
            (&["isolated"], "-I"),
            (&["start.sh"], "shell script"),
            (&["sh", "-ec", "exec gunicorn"], "other options"),
            (&["sh", "-c", "gunicorn main:app"], "begin with exec"),
            (&["sh", "-c", "migrate; exec gunicorn"], "more than one"),
            (&["sh", "-c", "exec gunicorn $(touch /x)"], "more than one"),
            (&["sh", "-c", "exec $SERVER"], "not written out"),
            (
                &["sh", "-c", "exec python3 $OPTIONS main.py"],
                "not written out",
            ),
            (&["env", "-i", "python3", "x.py"], "env with options"),
            (&["missing"], "not found"),
        ] {
            let refused = look(words).unwrap_err();
            assert!(refused.contains(why), "{words:?}: {refused}");
        }
    }
}
