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
    let program = quote(&program.display().to_string());
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
         After=network-online.target\n\
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

/// systemd's own quoting: only when needed, `%` doubled.
fn quote(text: &str) -> String {
    let text = text.replace('%', "%%");
    if text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-:,=%".contains(c))
    {
        text
    } else {
        format!("\"{}\"", text.replace('"', "\\\""))
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
}
