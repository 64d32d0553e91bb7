//! Revisions: the template with every default written out and the images pinned.

use utsuwa_model::revision::Revision;
use utsuwa_wire::google::cloud::run::v2;

use super::read::number;
use super::service::{etag, launch_stage, signed};
use super::{condition, container, is_autoscaler_setting, none, shown, template, timestamp};
use crate::v2::name;

/// A revision for the wire.
pub(in crate::v2) fn revision(revision: &Revision) -> v2::Revision {
    let meta = &revision.meta;
    let full = revision.template.defaulted();
    let (_, reconciling) = condition::summary(
        &revision.status.conditions,
        revision.status.observed_generation,
        meta.generation,
    );
    let mut containers = template::containers(&full);
    for (container, digest) in containers.iter_mut().zip(&revision.status.image_digests) {
        if !digest.is_empty() {
            container.image.clone_from(digest);
        }
    }
    let mut labels = shown(&meta.labels, none);
    labels.extend(shown(&full.labels, none));
    let mut annotations = shown(&meta.annotations, is_autoscaler_setting);
    annotations.extend(shown(&full.annotations, is_autoscaler_setting));
    v2::Revision {
        name: name::of_revision(&revision.key.service, &revision.key.revision),
        uid: meta.uid.clone(),
        generation: signed(meta.generation),
        labels,
        annotations,
        create_time: Some(timestamp(meta.create_time)),
        update_time: Some(timestamp(meta.update_time)),
        delete_time: meta.delete_time.map(timestamp),
        expire_time: meta.delete_time.map(timestamp),
        launch_stage: launch_stage("").into(),
        service: revision.key.service.service.to_string(),
        scaling: template::scaling(&full),
        timeout: full.timeout_secs.map(|s| prost_types::Duration {
            seconds: i64::from(s),
            nanos: 0,
        }),
        service_account: full.service_account.clone().unwrap_or_default(),
        containers,
        volumes: full.volumes.iter().map(container::write_volume).collect(),
        execution_environment: template::environment(&full).into(),
        reconciling,
        conditions: revision
            .status
            .conditions
            .iter()
            .map(condition::write)
            .collect(),
        observed_generation: signed(revision.status.observed_generation),
        log_uri: String::new(),
        max_instance_request_concurrency: number(full.concurrency),
        session_affinity: full.session_affinity.unwrap_or(false),
        scaling_status: Some(v2::RevisionScalingStatus {
            desired_min_instance_count: number(full.min_instances),
        }),
        node_selector: template::node_selector(&full),
        creator: meta.creator.clone(),
        etag: etag(meta.version),
    }
}
