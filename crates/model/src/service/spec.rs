//! What users ask for. `None` means "not given": the default is applied when a revision is made, so that both APIs read back
//! what was written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::RevisionId;

/// The part of a service that users write.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub description: String,
    pub ingress: IngressSetting,
    pub launch_stage: String,
    pub scaling: ServiceScaling,
    pub template: RevisionTemplate,
    /// In the user's order, never normalised. Empty means 100 % latest.
    pub traffic: Vec<TrafficTarget>,
    pub invoker_iam_disabled: bool,
    pub default_uri_disabled: bool,
    pub custom_audiences: Vec<String>,
}

/// From where a service may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IngressSetting {
    #[default]
    All,
    InternalOnly,
    InternalLoadBalancer,
    None,
}

/// Service-level bounds, divided over revisions by traffic share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceScaling {
    pub min: Option<u32>,
    pub max: Option<u32>,
    pub mode: ScalingMode,
    pub manual: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ScalingMode {
    #[default]
    Automatic,
    Manual,
}

/// Where a share of the requests goes. Exactly one of `latest` and `revision` names the revision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrafficTarget {
    pub revision: Option<RevisionId>,
    pub latest: bool,
    /// `None` reads as 0 but is written back as absent.
    pub percent: Option<u32>,
    pub tag: Option<String>,
}

/// What a revision is made from. A change here, and only here, makes a new revision (§1.7).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RevisionTemplate {
    /// Explicit revision name.
    pub revision: Option<RevisionId>,
    pub labels: BTreeMap<String, String>,
    /// All template annotations that have no typed field below, as written.
    pub annotations: BTreeMap<String, String>,
    pub min_instances: Option<u32>,
    pub max_instances: Option<u32>,
    /// Requests in flight per instance; `None` or 0 ⇒ 80 (1 with less than one CPU).
    pub concurrency: Option<u32>,
    /// Seconds a request may take, 300 by default, at most 3600.
    pub timeout_secs: Option<u32>,
    pub service_account: Option<String>,
    pub execution_environment: Option<ExecutionEnvironment>,
    pub session_affinity: Option<bool>,
    pub health_check_disabled: Option<bool>,
    /// `run.googleapis.com/cpu-throttling` / `cpuIdle`: `Some(false)` keeps CPU between requests.
    pub cpu_idle: Option<bool>,
    pub startup_cpu_boost: Option<bool>,
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    pub node_selector: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecutionEnvironment {
    Gen1,
    Gen2,
}

impl RevisionTemplate {
    /// Whether an instance has its CPU between requests too. Unset means as on Cloud Run: during requests only.
    #[must_use]
    pub fn keeps_cpu(&self) -> bool {
        self.cpu_idle == Some(false)
    }

    /// Whether starts may be prepared ahead ([`ZYGOTE`]). Unset means no.
    #[must_use]
    pub fn zygote(&self) -> bool {
        self.says(ZYGOTE)
    }

    /// Whether paths that scanners ask for are refused ([`REFUSE_SCANNERS`]). Unset means no.
    #[must_use]
    pub fn refuses_scanners(&self) -> bool {
        self.says(REFUSE_SCANNERS)
    }

    /// Whether browsers are shown a page while an instance starts ([`WAITING_PAGE`]). Unset means no.
    #[must_use]
    pub fn waiting_page(&self) -> bool {
        self.says(WAITING_PAGE)
    }

    fn says(&self, annotation: &str) -> bool {
        self.annotations
            .get(annotation)
            .is_some_and(|value| value == "true")
    }
}

/// The annotation of a template whose service answers paths that scanners ask for 404, awake or asleep: `"true"` or `"false"`.
pub const REFUSE_SCANNERS: &str = "utsuwa.local/refuse-scanners";

/// The annotation of a template whose service shows browsers a page while an instance starts: `"true"` or `"false"`.
pub const WAITING_PAGE: &str = "utsuwa.local/waiting-page";

/// The annotation of a template that has its starts prepared ahead: `"true"` or `"false"`. Ours: Cloud Run has nothing like it.
pub const ZYGOTE: &str = "utsuwa.local/zygote";

/// One container of an instance. The one with a port (or the only one) takes the requests.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Container {
    pub name: String,
    /// As the user wrote it; the digest is pinned in the revision.
    pub image: String,
    /// Replaces the image's ENTRYPOINT when not empty.
    pub command: Vec<String>,
    /// Replaces the image's CMD when not empty. Command without args drops CMD.
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<EnvVar>,
    /// `cpu`, `memory`, as written.
    pub limits: BTreeMap<String, String>,
    pub ports: Vec<ContainerPort>,
    pub volume_mounts: Vec<VolumeMount>,
    pub startup_probe: Option<Probe>,
    pub liveness_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
    pub depends_on: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    pub name: String,
    pub value: EnvValue,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    Literal(String),
    /// Secret and version (`latest`, a number or an alias).
    Secret {
        secret: String,
        version: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// `http1` (also when empty) or `h2c`.
    pub name: String,
    pub container_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    pub sub_path: Option<String>,
    pub read_only: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub source: VolumeSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    EmptyDir {
        size_limit: Option<String>,
    },
    Secret {
        secret: String,
        items: Vec<SecretItem>,
        default_mode: Option<u32>,
    },
    /// A directory of the host, where the operator allows it.
    HostDir {
        path: String,
        /// As written in a volume of kind nfs; `None` for one of kind hostPath, which has no such field.
        read_only: Option<bool>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretItem {
    pub version: String,
    pub path: String,
    pub mode: Option<u32>,
}

/// A probe as written; `None` fields take the defaults of §1.3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub initial_delay_secs: Option<u32>,
    pub timeout_secs: Option<u32>,
    pub period_secs: Option<u32>,
    pub failure_threshold: Option<u32>,
    /// Of readiness probes alone; all others succeed with the first success.
    #[serde(default)]
    pub success_threshold: Option<u32>,
    pub action: ProbeAction,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    Tcp {
        port: Option<u16>,
    },
    Http {
        path: String,
        port: Option<u16>,
        headers: Vec<(String, String)>,
    },
    Grpc {
        port: Option<u16>,
        service: String,
    },
}
