//! From a template and an image to the process to run (`cloud-run-spec.md` §2.1, §2.2).
//!
//! Owns: the program and its arguments, the environment, the working directory, the limits. Pure: no I/O.
//!
//! Invariants:
//! 1. The result has a program; a template for which there is none is refused with what to do.
//! 2. `PORT` and `K_*` are ours: nothing in the image or the template overrides them.
//! 3. Every name occurs once in the environment.

use utsuwa_decide::boost::boosted;
use utsuwa_model::RevisionKey;
use utsuwa_model::image::ImageConfig;
use utsuwa_model::instance::{Kernel, Limits, ProcessSpec};
use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::service::{
    Container, EnvValue, ExecutionEnvironment, RevisionTemplate, VolumeSource,
};

/// Where programs are looked for when the image doesn't say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a template can't be run. The texts are for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    #[error("the template has no container: name an image")]
    NoContainer,
    #[error(
        "the execution environment gen1 runs one container, and the template has {0}: remove the sidecars, or deploy with \
         --execution-environment=gen2"
    )]
    SidecarsOnGvisor(usize),
    #[error(
        "the execution environment gen1 shows no directory of the host to a container: remove the volume, or deploy with \
         --execution-environment=gen2"
    )]
    HostDirOnGvisor,
    #[error(
        "starts are prepared ahead (utsuwa.local/zygote) for one container in the execution environment gen2 only: remove the annotation, \
         or the sidecars and gen1"
    )]
    ZygoteAlone,
    #[error(
        "image '{image}' names neither an entrypoint nor a command: set the container's command (gcloud: --command) to the \
         program to run"
    )]
    NoProgram { image: String },
    #[error(
        "environment variable {name} takes its value from secret '{secret}', and secrets are not supported yet. Give the value \
         with --set-env-vars, or remove the variable"
    )]
    Secret { name: String, secret: String },
    #[error(
        "volume '{name}' shows secret '{secret}', and secrets are not supported yet. Remove the volume and its mounts"
    )]
    SecretVolume { name: String, secret: String },
}

/// The process of a container of instances of `key`. `PORT` is set where requests come in alone.
///
/// # Errors
/// [`ProcessError`]: what can't be run, and what to change.
pub fn process(
    key: &RevisionKey,
    template: &RevisionTemplate,
    container: &Container,
    image: &ImageConfig,
) -> Result<ProcessSpec, ProcessError> {
    for volume in &template.volumes {
        if let VolumeSource::Secret { secret, .. } = &volume.source {
            return Err(ProcessError::SecretVolume {
                name: volume.name.clone(),
                secret: secret.clone(),
            });
        }
    }
    let cwd = container.working_dir.clone().filter(|dir| !dir.is_empty());
    Ok(ProcessSpec {
        args: arguments(container, image)?,
        env: environment(key, template, container, image)?,
        cwd: cwd.unwrap_or_else(|| image.working_dir.clone()),
        user: image.user.clone(),
    })
}

/// `command` replaces ENTRYPOINT, `args` replaces CMD; a command without args drops CMD.
fn arguments(container: &Container, image: &ImageConfig) -> Result<Vec<String>, ProcessError> {
    let (program, rest) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (&container.command, &container.args),
        (true, false) => (&image.entrypoint, &container.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let args: Vec<String> = program.iter().chain(rest).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(ProcessError::NoProgram {
            image: container.image.clone(),
        });
    }
    Ok(args)
}

/// The image's, then the user's, then ours; later wins, the first place in the order is kept.
fn environment(
    key: &RevisionKey,
    template: &RevisionTemplate,
    container: &Container,
    image: &ImageConfig,
) -> Result<Vec<String>, ProcessError> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut set =
        |name: &str, value: &str| match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => variables.push((name.to_owned(), value.to_owned())),
        };
    set("PATH", DEFAULT_PATH);
    for variable in &image.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(name, value);
    }
    if template.execution_environment == Some(ExecutionEnvironment::Gen1) {
        set("HOME", "/home");
    }
    for variable in &container.env {
        match &variable.value {
            EnvValue::Literal(value) => set(&variable.name, value),
            EnvValue::Secret { secret, .. } => {
                return Err(ProcessError::Secret {
                    name: variable.name.clone(),
                    secret: secret.clone(),
                });
            }
        }
    }
    let service = key.service.service.as_str();
    if template.ingress_container() == Some(container) {
        set("PORT", &template.port().to_string());
    }
    set("K_SERVICE", service);
    set("K_REVISION", key.revision.as_str());
    set("K_CONFIGURATION", service);
    Ok(variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

/// Gen1 is gVisor on Cloud Run too; without an execution environment the service may have either, and gets the faster one.
#[must_use]
pub fn kernel(template: &RevisionTemplate) -> Kernel {
    match template.execution_environment {
        Some(ExecutionEnvironment::Gen1) => Kernel::Gvisor,
        Some(ExecutionEnvironment::Gen2) | None => Kernel::Host,
    }
}

/// CPU and memory as written or by default; `pids` is the server's.
#[must_use]
pub fn limits(container: &Container, pids: u32) -> Limits {
    Limits {
        cpu: container.cpu(),
        memory: container.memory(),
        pids,
    }
}

/// The CPU limit while an instance starts.
#[must_use]
pub fn startup_cpu(template: &RevisionTemplate) -> MilliCpu {
    if template.startup_cpu_boost == Some(true) {
        boosted(template.cpu())
    } else {
        template.cpu()
    }
}

#[cfg(test)]
mod tests {
    use utsuwa_model::service::{ContainerPort, EnvVar, Volume};

    use super::*;

    fn key() -> RevisionKey {
        "demo/here/hello/hello-00001-abc".parse().unwrap()
    }

    fn of(template: &RevisionTemplate, image: &ImageConfig) -> Result<ProcessSpec, ProcessError> {
        process(&key(), template, &template.containers[0], image)
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn template(command: &str, args: &str) -> RevisionTemplate {
        let container = Container {
            command: words(command),
            args: words(args),
            ..Container::default()
        };
        RevisionTemplate {
            containers: vec![container],
            ..RevisionTemplate::default()
        }
    }

    fn literal(name: &str, value: &str) -> EnvVar {
        EnvVar {
            name: name.into(),
            value: EnvValue::Literal(value.into()),
        }
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd() {
        for (entrypoint, cmd, command, args, want) in [
            ("/app", "serve -v", "", "", Some("/app serve -v")),
            ("/app", "serve", "", "other", Some("/app other")),
            ("/app", "serve", "/mine", "", Some("/mine")),
            ("/app", "serve", "/mine", "x y", Some("/mine x y")),
            ("", "python main.py", "", "", Some("python main.py")),
            ("", "python main.py", "", "x", Some("x")),
            ("", "", "", "", None),
            ("", "", "/mine", "", Some("/mine")),
        ] {
            let image = ImageConfig {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..ImageConfig::default()
            };
            let got = of(&template(command, args), &image);
            match want {
                Some(want) => assert_eq!(
                    got.unwrap().args,
                    words(want),
                    "{entrypoint}|{cmd}|{command}|{args}"
                ),
                None => assert!(matches!(got, Err(ProcessError::NoProgram { .. }))),
            }
        }
    }

    #[test]
    fn environment_in_layers_and_ours_last() {
        let image = ImageConfig {
            entrypoint: words("/app"),
            env: vec![
                "PATH=/opt/bin".into(),
                "LANG=C".into(),
                "PORT=1".into(),
                "A=image".into(),
            ],
            ..ImageConfig::default()
        };
        let mut with = template("", "");
        with.containers[0].env = vec![
            literal("A", "user"),
            literal("B", "x=y $(A)"),
            literal("K_SERVICE", "liar"),
        ];
        with.containers[0].ports = vec![ContainerPort {
            name: String::new(),
            container_port: 9000,
        }];
        assert_eq!(
            of(&with, &image).unwrap().env,
            [
                "PATH=/opt/bin",
                "LANG=C",
                "PORT=9000",
                "A=user",
                "B=x=y $(A)",
                "K_SERVICE=hello",
                "K_REVISION=hello-00001-abc",
                "K_CONFIGURATION=hello"
            ]
        );
        with.execution_environment = Some(ExecutionEnvironment::Gen1);
        assert!(
            of(&with, &image)
                .unwrap()
                .env
                .contains(&"HOME=/home".to_owned())
        );
    }

    #[test]
    fn only_gen1_has_a_kernel_of_its_own() {
        use ExecutionEnvironment::{Gen1, Gen2};
        for (asked, want) in [
            (None, Kernel::Host),
            (Some(Gen2), Kernel::Host),
            (Some(Gen1), Kernel::Gvisor),
        ] {
            let mut template = template("", "");
            template.execution_environment = asked;
            assert_eq!(kernel(&template), want, "{asked:?}");
        }
    }

    #[test]
    fn directory_and_user() {
        let image = ImageConfig {
            entrypoint: words("/app"),
            working_dir: "/srv".into(),
            user: "app:app".into(),
            ..ImageConfig::default()
        };
        let plain = of(&template("", ""), &image).unwrap();
        assert_eq!(
            (plain.cwd.as_str(), plain.user.as_str()),
            ("/srv", "app:app")
        );
        let mut moved = template("", "");
        moved.containers[0].working_dir = Some("/elsewhere".into());
        assert_eq!(of(&moved, &image).unwrap().cwd, "/elsewhere");
    }

    #[test]
    fn what_is_not_there_yet_is_said() {
        let image = ImageConfig {
            entrypoint: words("/app"),
            ..ImageConfig::default()
        };
        let mut secret = template("", "");
        let value = EnvValue::Secret {
            secret: "key".into(),
            version: "latest".into(),
        };
        secret.containers[0].env.push(EnvVar {
            name: "API_KEY".into(),
            value,
        });
        let text = of(&secret, &image).unwrap_err().to_string();
        assert!(
            text.contains("API_KEY") && text.contains("'key'") && text.contains("--set-env-vars"),
            "{text}"
        );

        let mut volume = template("", "");
        volume.volumes.push(Volume {
            name: "tmp".into(),
            source: VolumeSource::EmptyDir { size_limit: None },
        });
        assert!(of(&volume, &image).is_ok());
        volume.volumes.push(Volume {
            name: "key".into(),
            source: VolumeSource::Secret {
                secret: "s".into(),
                items: Vec::new(),
                default_mode: None,
            },
        });
        let error = of(&volume, &image).unwrap_err();
        assert!(matches!(&error, ProcessError::SecretVolume { name, .. } if name == "key"));
    }
}
