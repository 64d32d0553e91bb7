//! A template's volumes as an instance gets them.

use super::{Container, RevisionTemplate, VolumeSource};
use crate::host_dir::HostDir;
use crate::instance::{HostMount, MemoryVolume, MountPoint};
use crate::quantity::MemoryBytes;

impl RevisionTemplate {
    /// The directories in memory of a container. One is as large as written, but never larger than the memory that what is in it
    /// is charged to: the container's, or that of all where several see it; so large it is, too, where nothing was written.
    #[must_use]
    pub fn memory_volumes(&self, container: &Container) -> Vec<MemoryVolume> {
        let mut volumes = Vec::new();
        for volume in &self.volumes {
            let VolumeSource::EmptyDir { size_limit } = &volume.source else {
                continue;
            };
            let sees = |one: &&Container| one.volume_mounts.iter().any(|m| m.name == volume.name);
            let shared = self.containers.iter().filter(sees).count() > 1;
            let most = if shared {
                self.memory_of_all()
            } else {
                container.memory()
            };
            let written = size_limit.as_ref().and_then(|limit| limit.parse().ok());
            let size = written
                .filter(|size| *size > MemoryBytes(0))
                .unwrap_or(most);
            let mounts = mounts_of(container, &volume.name);
            if !mounts.is_empty() {
                volumes.push(MemoryVolume {
                    size: size.min(most),
                    mounts,
                    shared: if shared {
                        volume.name.clone()
                    } else {
                        String::new()
                    },
                });
            }
        }
        volumes
    }

    /// The host's directories of a container. One that no rule allows comes along as a rule of its own: whoever starts
    /// the instance refuses it by name, and starts it once the operator has allowed it.
    #[must_use]
    pub fn host_mounts(&self, container: &Container, rules: &[HostDir]) -> Vec<HostMount> {
        let asked = self.volumes.iter().filter_map(|volume| {
            let VolumeSource::HostDir { path, read_only } = &volume.source else {
                return None;
            };
            let (rule, beneath, writable) = match HostDir::find(rules, path) {
                Some((rule, beneath)) => (rule.path.clone(), beneath, rule.writable),
                None => (path.clone(), String::new(), true),
            };
            Some(HostMount {
                rule,
                beneath,
                read_only: *read_only == Some(true) || !writable,
                mounts: mounts_of(container, &volume.name),
            })
        });
        asked.filter(|mount| !mount.mounts.is_empty()).collect()
    }
}

/// Where `container` shows the volume.
fn mounts_of(container: &Container, volume: &str) -> Vec<MountPoint> {
    let of_it = container.volume_mounts.iter();
    of_it
        .filter(|mount| mount.name == volume)
        .map(|mount| MountPoint {
            path: mount.mount_path.clone(),
            sub_path: mount.sub_path.clone().unwrap_or_default(),
            read_only: mount.read_only == Some(true),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Volume, VolumeMount};
    use super::*;

    #[test]
    fn a_volume_is_no_larger_than_the_memory_and_seen_where_it_is_mounted() {
        let volume = |name: &str, limit: Option<&str>| Volume {
            name: name.to_owned(),
            source: VolumeSource::EmptyDir {
                size_limit: limit.map(str::to_owned),
            },
        };
        let mount = |name: &str, path: &str, sub: Option<&str>| VolumeMount {
            name: name.to_owned(),
            mount_path: path.to_owned(),
            sub_path: sub.map(str::to_owned),
            read_only: sub.map(|_| true),
        };
        let template = RevisionTemplate {
            containers: vec![Container {
                limits: [("memory".to_owned(), "256Mi".to_owned())].into(),
                volume_mounts: vec![
                    mount("a", "/a", None),
                    mount("b", "/b", None),
                    mount("a", "/c", Some("part")),
                    mount("c", "/d", None),
                ],
                ..Container::default()
            }],
            volumes: vec![
                volume("a", Some("10Mi")),
                volume("b", None),
                volume("c", Some("1Gi")),
                volume("unused", None),
            ],
            ..RevisionTemplate::default()
        };
        let volumes = template.memory_volumes(&template.containers[0]);
        let sizes: Vec<u64> = volumes.iter().map(|volume| volume.size.0 >> 20).collect();
        assert_eq!(sizes, [10, 256, 256]);
        let point = |path: &str, sub: &str, read_only| MountPoint {
            path: path.to_owned(),
            sub_path: sub.to_owned(),
            read_only,
        };
        assert_eq!(
            volumes[0].mounts,
            [point("/a", "", false), point("/c", "part", true)]
        );
    }
}
