//! `utsuwa unit`: a systemd unit with the flags given here; for whoever asks, root or an ordinary user.

use std::path::Path;

use utsuwa_runtime::privilege::is_root;

use super::words::shell_quote;
use super::{ClientArgs, ServerArgs};
use crate::client::Failure;
use crate::config::Layers;
use crate::output::line;

pub(crate) fn run(args: &ServerArgs, client: &ClientArgs) -> Result<(), Failure> {
    let usage = |e: crate::config::ConfigError| Failure::usage(e.to_string());
    let given = args.given(client);
    Layers::read(&given)
        .map_err(usage)?
        .check()
        .map_err(usage)?;
    let program =
        std::env::current_exe().map_err(|e| Failure::failed(format!("find this program: {e}")))?;
    let mut flags: Vec<(&str, String)> = Vec::new();
    if let Some(file) = &args.config {
        flags.push(("config", file.display().to_string()));
    }
    for (name, values) in &given.flags {
        let flag = match *name {
            "insecure-registries" => "insecure-registry",
            "image-rewrites" => "image-rewrite",
            other => other,
        };
        flags.extend(values.iter().map(|value| (flag, value.clone())));
    }
    let program = program.display().to_string();
    // A line's end would end a setting, and begin another.
    let values = flags.iter().map(|(_, value)| value).chain([&program]);
    if let Some(value) = values
        .into_iter()
        .find(|value| value.contains(char::is_control))
    {
        let value = value.escape_debug();
        return Err(Failure::usage(format!(
            "a unit can't hold \"{value}\": it has a control character; rename it"
        )));
    }
    let program = quote_program(&program);
    let command = with_flags(&format!("{program} up"), &flags, quote);
    let data = given.flags.get("data-dir").and_then(|dirs| dirs.first());
    let down = data.map_or_else(
        || "utsuwa down".to_owned(),
        |dir| super::down_command(Path::new(dir)),
    );
    let common = common(&command, &down);
    // Without the flags it would print, and install, another unit than this one.
    let unit = with_flags("utsuwa unit", &flags, shell_quote);
    line(&if is_root() {
        of_system(&unit, &common)
    } else {
        of_user(&unit, &common)
    });
    Ok(())
}

/// `command` with flags, their values quoted for who reads it.
fn with_flags(command: &str, flags: &[(&str, String)], quoted: fn(&str) -> String) -> String {
    let flags = flags
        .iter()
        .map(|(flag, value)| format!(" --{flag} {}", quoted(value)));
    format!("{command}{}", flags.collect::<String>())
}

/// For a server that root starts.
fn of_system(unit: &str, common: &str) -> String {
    format!(
        "# Install: {unit} > /etc/systemd/system/utsuwa.service && systemctl daemon-reload && systemctl enable --now utsuwa\n\
         [Unit]\n\
         Description=Utsuwa: Cloud Run that you own\n\
         Wants=network-online.target\n\
         # Firewalls first, where there are any: what they set up at boot is there when ours is added.\n\
         After=network-online.target docker.service ufw.service firewalld.service nftables.service\n\
         \n\
         [Service]\n\
         {common}\
         # An instance that used up its memory is no reason to stop the server.\n\
         OOMPolicy=continue\n\
         TasksMax=infinity\n\
         LimitNOFILE=1048576\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target"
    )
}

/// For an ordinary user's own manager, which delegates them a cgroup.
fn of_user(unit: &str, common: &str) -> String {
    format!(
        "# Install: mkdir -p ~/.config/systemd/user && {unit} > ~/.config/systemd/user/utsuwa.service &&\n\
         #          systemctl --user daemon-reload && systemctl --user enable --now utsuwa\n\
         # To have it run while you are not logged in: loginctl enable-linger\n\
         [Unit]\n\
         Description=Utsuwa: Cloud Run that you own\n\
         \n\
         [Service]\n\
         {common}\
         OOMPolicy=continue\n\
         \n\
         [Install]\n\
         WantedBy=default.target"
    )
}

fn common(command: &str, down: &str) -> String {
    format!(
        "Type=exec\n\
         ExecStart={command}\n\
         Restart=always\n\
         RestartSec=100ms\n\
         # The keeper and the instances outlive the server: a restart or an upgrade does not touch them. `{down}` ends all.\n\
         KillMode=process\n\
         # The server runs in a leaf of the unit's own cgroup (systemd 254 and later), and the keeper makes the instances' cgroups\n\
         # beside that leaf, within the unit. Without leaves (older systemd warns of the unknown line) and on cgroup v1 they lie\n\
         # at the top, beside system.slice: a tree directly below the unit would keep systemd from starting the server again.\n\
         Delegate=yes\n\
         DelegateSubgroup=server\n"
    )
}

/// systemd's own quoting: only when needed. It expands `%` in every word and `$` in all but the program's, each of which doubled
/// stands for itself; within quotes `\` escapes.
fn quote(text: &str) -> String {
    escaped(text, true)
}

/// The same for the program's own path, where `$` is a letter like any other.
fn quote_program(text: &str) -> String {
    escaped(text, false)
}

fn escaped(text: &str, expands: bool) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,=%".contains(c);
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' => escaped.push_str("%%"),
            '$' if expands => escaped.push_str("$$"),
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            other => escaped.push(other),
        }
    }
    if !text.is_empty() && text.chars().all(plain) {
        escaped
    } else {
        format!("\"{escaped}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_installs_a_unit_prints_the_same_unit() {
        let flags = [
            ("domain", "run.example.com".to_owned()),
            ("image-rewrite", "docker.io/=mirror.example/50%/".to_owned()),
        ];
        let unit = with_flags("utsuwa unit", &flags, shell_quote);
        assert_eq!(
            unit,
            "utsuwa unit --domain run.example.com --image-rewrite 'docker.io/=mirror.example/50%/'"
        );
        let command = with_flags("/bin/utsuwa up", &flags, quote);
        assert!(command.ends_with("--image-rewrite docker.io/=mirror.example/50%%/"));
        for text in [of_system(&unit, ""), of_user(&unit, "")] {
            let install = text.lines().next().unwrap();
            assert!(install.contains(&format!("{unit} > ")), "{install}");
        }
        assert_eq!(with_flags("utsuwa unit", &[], shell_quote), "utsuwa unit");
    }

    #[test]
    fn systemd_expands_nothing_of_what_is_given() {
        for (given, written) in [
            ("/srv/data", "/srv/data"),
            ("50%", "50%%"),
            ("$HOME and ${HOME}", r#""$$HOME and $${HOME}""#),
            (r"a\x41", r#""a\\x41""#),
            (r#"a "b" 'c'"#, r#""a \"b\" 'c'""#),
            ("a;b", r#""a;b""#),
            ("", r#""""#),
        ] {
            assert_eq!(quote(given), written);
        }
        assert_eq!(quote_program("/opt/$a %b"), r#""/opt/$a %%b""#);
    }

    #[test]
    fn the_whole_unit() {
        let common = common(
            "/usr/local/bin/utsuwa up --domain run.example.com",
            "utsuwa down",
        );
        let unit = "utsuwa unit --domain run.example.com";
        assert_eq!(
            of_system(unit, &common),
            include_str!("unit/system.service").trim_end()
        );
        assert_eq!(
            of_user(unit, &common),
            include_str!("unit/user.service").trim_end()
        );
    }

    /// What is known of this systemd, if it isn't silent: one before 254 has no leaves, and goes on without.
    fn is_known(complaint: &str) -> bool {
        complaint.contains("DelegateSubgroup") && complaint.contains("ignoring")
    }

    #[test]
    fn systemd_reads_the_unit_without_complaint() {
        let folder = tempfile::tempdir().unwrap();
        let program = quote_program(&std::env::current_exe().unwrap().display().to_string());
        let flags = [("data-dir", r#"/srv/$HOME 50% \x41 "q""#.to_owned())];
        let common = common(
            &with_flags(&format!("{program} up"), &flags, quote),
            "utsuwa down",
        );
        for (scope, text) in [
            ("--system", of_system("utsuwa unit", &common)),
            ("--user", of_user("utsuwa unit", &common)),
        ] {
            let file = folder.path().join("utsuwa.service");
            std::fs::write(&file, text).unwrap();
            let verified = std::process::Command::new("systemd-analyze")
                .args([scope, "--man=no", "verify"])
                .arg(&file)
                .env("XDG_RUNTIME_DIR", folder.path())
                .output();
            let Ok(verified) = verified else {
                crate::skip::skip(crate::skip::here!(), "systemd-analyze isn't installed");
                return;
            };
            let said = String::from_utf8_lossy(&verified.stderr);
            let complaints: Vec<&str> = said.lines().filter(|line| !is_known(line)).collect();
            assert!(complaints.is_empty(), "{scope}: {said}");
        }
    }
}
