//! Services.

use utsuwa_model::service as model;
use utsuwa_model::{Timestamp, Violations};
use utsuwa_wire::google::api::LaunchStage;
use utsuwa_wire::google::cloud::run::v2;
use v2::TrafficTargetAllocationType as Allocation;
use v2::service_scaling::ScalingMode as Mode;

use super::read::{Reader, number};
use super::{condition, hidden, none, shown, template, timestamp};
use crate::ApiError;
use crate::intent::Draft;
use crate::v2::name;

/// What a user's message asks for; what v2 doesn't show of `old` is kept.
pub(in crate::v2) fn draft(
    wire: v2::Service,
    old: Option<&model::Service>,
) -> Result<Draft, ApiError> {
    let mut found = Violations::default();
    let mut at = Reader {
        path: String::new(),
        found: &mut found,
    };
    at.not_built("binaryAuthorization", wire.binary_authorization.is_some());
    at.not_built("iapEnabled", wire.iap_enabled);
    at.not_built("multiRegionSettings", wire.multi_region_settings.is_some());
    at.not_built("buildConfig", wire.build_config.is_some());
    at.keys("labels", &wire.labels, none);
    at.keys("annotations", &wire.annotations, none);
    if wire.template.is_none() {
        at.wrong(
            "template",
            "is required: it says which image to run (template.containers[0].image)",
        );
    }
    let mut labels = wire.labels;
    let mut annotations = wire.annotations;
    if let Some(old) = old {
        labels.extend(hidden(&old.meta.labels, none));
        annotations.extend(hidden(&old.meta.annotations, none));
    }
    let mut spec = model::ServiceSpec {
        description: wire.description,
        ingress: match v2::IngressTraffic::try_from(wire.ingress) {
            Ok(v2::IngressTraffic::Unspecified | v2::IngressTraffic::All) => {
                model::IngressSetting::All
            }
            Ok(v2::IngressTraffic::InternalOnly) => model::IngressSetting::InternalOnly,
            Ok(v2::IngressTraffic::InternalLoadBalancer) => {
                model::IngressSetting::InternalLoadBalancer
            }
            Ok(v2::IngressTraffic::None) => model::IngressSetting::None,
            Err(_) => {
                at.wrong(
                    "ingress",
                    format!("{} is not a value of IngressTraffic", wire.ingress),
                );
                model::IngressSetting::All
            }
        },
        launch_stage: match LaunchStage::try_from(wire.launch_stage) {
            Ok(LaunchStage::Unspecified) => String::new(),
            Ok(stage) => stage.as_str_name().to_owned(),
            Err(_) => wire.launch_stage.to_string(),
        },
        scaling: scaling(at.at("scaling"), wire.scaling),
        template: template::read(
            at.at("template"),
            wire.template.unwrap_or_default(),
            old.map(|o| &o.spec.template),
        ),
        traffic: wire
            .traffic
            .into_iter()
            .enumerate()
            .map(|(i, t)| target(at.at(format_args!("traffic[{i}]")), t))
            .collect(),
        invoker_iam_disabled: wire.invoker_iam_disabled,
        default_uri_disabled: wire.default_uri_disabled,
        custom_audiences: wire.custom_audiences,
    };
    found.into_result()?;
    if let Some(old) = old {
        // v2 has fewer words than the model (absent and default look alike): what looks the same is the same.
        if template::write(&spec.template) == template::write(&old.spec.template) {
            spec.template = old.spec.template.clone();
        }
        if write_traffic(&spec) == write_traffic(&old.spec) {
            spec.traffic.clone_from(&old.spec.traffic);
        }
        if launch_stage(&spec.launch_stage) == launch_stage(&old.spec.launch_stage) {
            spec.launch_stage.clone_from(&old.spec.launch_stage);
        }
    }
    Ok(Draft {
        labels,
        annotations,
        client: wire.client,
        client_version: wire.client_version,
        spec,
    })
}

fn scaling(mut at: Reader<'_>, wire: Option<v2::ServiceScaling>) -> model::ServiceScaling {
    let wire = wire.unwrap_or_default();
    let manual = match wire.manual_instance_count.map(u32::try_from) {
        None => None,
        // Zero is a wish of its own: stopped by hand.
        Some(Ok(count)) => Some(count),
        Some(Err(_)) => {
            at.wrong("manualInstanceCount", "must not be negative");
            None
        }
    };
    model::ServiceScaling {
        min: at.count("minInstanceCount", wire.min_instance_count),
        max: at.count("maxInstanceCount", wire.max_instance_count),
        mode: match Mode::try_from(wire.scaling_mode) {
            Ok(Mode::Manual) => model::ScalingMode::Manual,
            Ok(Mode::Automatic | Mode::Unspecified) => model::ScalingMode::Automatic,
            Err(_) => {
                let given = wire.scaling_mode;
                at.wrong(
                    "scalingMode",
                    format!("{given} is not a value of ScalingMode: write AUTOMATIC or MANUAL"),
                );
                model::ScalingMode::Automatic
            }
        },
        manual,
    }
}

fn target(mut at: Reader<'_>, wire: v2::TrafficTarget) -> model::TrafficTarget {
    let latest = match Allocation::try_from(wire.r#type) {
        Ok(Allocation::Latest) => true,
        Ok(Allocation::Revision) => {
            if wire.revision.is_empty() {
                at.wrong(
                    "revision",
                    "must name a revision when type is TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION",
                );
            }
            false
        }
        Ok(Allocation::Unspecified) => wire.revision.is_empty(),
        Err(_) => {
            at.wrong(
                "type",
                format!(
                    "{} is not a value of TrafficTargetAllocationType",
                    wire.r#type
                ),
            );
            false
        }
    };
    model::TrafficTarget {
        revision: at.parsed("revision", &wire.revision),
        latest,
        percent: at.count("percent", wire.percent),
        tag: super::read::given(&wire.tag),
    }
}

/// A service for the wire, with the reconciling contract of §1.2.
pub(in crate::v2) fn service(service: &model::Service) -> v2::Service {
    let model::Service {
        key,
        meta,
        spec,
        status,
    } = service;
    let (terminal, reconciling) = condition::summary(
        &status.conditions,
        status.observed_generation,
        meta.generation,
    );
    let revision = |id: &Option<utsuwa_model::RevisionId>| {
        id.as_ref()
            .map(|r| name::of_revision(key, r))
            .unwrap_or_default()
    };
    v2::Service {
        name: name::of_service(key),
        description: spec.description.clone(),
        uid: meta.uid.clone(),
        generation: signed(meta.generation),
        labels: shown(&meta.labels, none),
        annotations: shown(&meta.annotations, none),
        create_time: Some(timestamp(meta.create_time)),
        update_time: Some(timestamp(meta.update_time)),
        delete_time: meta.delete_time.map(timestamp),
        expire_time: meta.delete_time.map(timestamp),
        creator: meta.creator.clone(),
        last_modifier: meta.last_modifier.clone(),
        client: meta.client.clone(),
        client_version: meta.client_version.clone(),
        ingress: match spec.ingress {
            model::IngressSetting::All => v2::IngressTraffic::All,
            model::IngressSetting::InternalOnly => v2::IngressTraffic::InternalOnly,
            model::IngressSetting::InternalLoadBalancer => v2::IngressTraffic::InternalLoadBalancer,
            model::IngressSetting::None => v2::IngressTraffic::None,
        }
        .into(),
        launch_stage: launch_stage(&spec.launch_stage).into(),
        template: Some(template::write(&spec.template)),
        traffic: write_traffic(spec),
        scaling: write_scaling(&spec.scaling),
        invoker_iam_disabled: spec.invoker_iam_disabled,
        default_uri_disabled: spec.default_uri_disabled,
        urls: status.urls(),
        custom_audiences: spec.custom_audiences.clone(),
        observed_generation: signed(status.observed_generation),
        terminal_condition: Some(terminal),
        conditions: status
            .conditions
            .iter()
            .filter(|c| c.kind != "Ready")
            .map(condition::write)
            .collect(),
        latest_ready_revision: revision(&status.latest_ready),
        latest_created_revision: revision(&status.latest_created),
        traffic_statuses: status
            .traffic
            .iter()
            .map(|t| v2::TrafficTargetStatus {
                r#type: allocation(t.latest).into(),
                revision: t.revision.to_string(),
                percent: number(t.percent),
                tag: t.tag.clone().unwrap_or_default(),
                uri: t.url.clone(),
            })
            .collect(),
        uri: status.url.clone(),
        reconciling,
        etag: etag(meta.version),
        ..v2::Service::default()
    }
}

/// The version that an etag names; empty names none.
pub(in crate::v2) fn version(field: &str, etag: &str) -> Result<Option<Timestamp>, ApiError> {
    if etag.is_empty() {
        return Ok(None);
    }
    let text = etag.trim_matches('"');
    let wrong = || {
        ApiError::invalid(
            field,
            format!("{etag:?} is not an etag of this server: send the one you have read, or none"),
        )
    };
    text.parse()
        .map(|v| Some(Timestamp(v)))
        .map_err(|_| wrong())
}

/// A version as an etag.
pub(super) fn etag(version: Timestamp) -> String {
    format!("\"{}\"", version.0)
}

pub(super) fn launch_stage(text: &str) -> LaunchStage {
    if text.is_empty() {
        LaunchStage::Ga
    } else {
        LaunchStage::from_str_name(text).unwrap_or(LaunchStage::Unspecified)
    }
}

fn allocation(latest: bool) -> Allocation {
    if latest {
        Allocation::Latest
    } else {
        Allocation::Revision
    }
}

fn write_traffic(spec: &model::ServiceSpec) -> Vec<v2::TrafficTarget> {
    spec.traffic
        .iter()
        .map(|t| v2::TrafficTarget {
            r#type: allocation(t.latest).into(),
            revision: t
                .revision
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            percent: number(t.percent),
            tag: t.tag.clone().unwrap_or_default(),
        })
        .collect()
}

fn write_scaling(scaling: &model::ServiceScaling) -> Option<v2::ServiceScaling> {
    use v2::service_scaling::ScalingMode;
    if *scaling == model::ServiceScaling::default() {
        return None;
    }
    Some(v2::ServiceScaling {
        min_instance_count: number(scaling.min),
        max_instance_count: number(scaling.max),
        scaling_mode: match scaling.mode {
            model::ScalingMode::Automatic => ScalingMode::Unspecified,
            model::ScalingMode::Manual => ScalingMode::Manual,
        }
        .into(),
        manual_instance_count: scaling.manual.and_then(|m| i32::try_from(m).ok()),
    })
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
