//! From a template and its images to how instances are started. Pure.

use utsuwa_model::RevisionKey;
use utsuwa_model::image::ResolvedImage;
use utsuwa_model::instance::{Group, Kernel, RootfsSpec, Sidecar};
use utsuwa_model::service::RevisionTemplate;

use super::process::{self, ProcessError};
use crate::settings::ControlSettings;
use crate::world::{GroupPlan, StartPlan};

/// `images` are of the template's containers, in their order; `settings` has the limit of processes of each, and which directories of
/// the host are open.
///
/// # Errors
/// [`ProcessError`]: what can't be run, and what to change.
pub(super) fn start_plan(
    key: &RevisionKey,
    template: &RevisionTemplate,
    images: &[ResolvedImage],
    uid_base: u32,
    settings: &ControlSettings,
) -> Result<StartPlan, ProcessError> {
    let kernel = process::kernel(template);
    if template.containers.len() > 1 && kernel == Kernel::Gvisor {
        return Err(ProcessError::SidecarsOnGvisor(template.containers.len()));
    }
    let after = template.dependencies();
    let mut all = Vec::new();
    for (number, (index, container)) in template.numbered().into_iter().enumerate() {
        let image = images.get(index).ok_or(ProcessError::NoContainer)?;
        all.push(Sidecar {
            name: container.name.clone(),
            waits: !after[number].is_empty(),
            rootfs: RootfsSpec {
                layers: image.layers.clone(),
                uid_base,
            },
            process: process::process(key, template, container, &image.config)?,
            limits: process::limits(container, settings.pids),
            volumes: template.memory_volumes(container),
            host_dirs: template.host_mounts(container, &settings.host_dirs),
        });
    }
    if kernel == Kernel::Gvisor && all.iter().any(|one| !one.host_dirs.is_empty()) {
        return Err(ProcessError::HostDirOnGvisor);
    }
    let zygote = template.zygote();
    if zygote && (kernel == Kernel::Gvisor || all.len() > 1) {
        return Err(ProcessError::ZygoteAlone);
    }
    if all.is_empty() {
        return Err(ProcessError::NoContainer);
    }
    let first = all.remove(0);
    let group = (!all.is_empty()).then(|| GroupPlan {
        spec: Group {
            name: first.name,
            waits: first.waits,
            sidecars: all,
        },
        startup: template.startup_of_each(),
        after,
    });
    Ok(StartPlan {
        rootfs: first.rootfs,
        process: first.process,
        limits: first.limits,
        startup_cpu: process::startup_cpu(template),
        port: template.port(),
        volumes: first.volumes,
        kernel,
        host_dirs: first.host_dirs,
        group,
        zygote,
    })
}
