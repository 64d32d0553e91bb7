//! From v1's JSON to the model (`cloud-run-spec.md` §1.5; `gcloud-protocol.md` §3.1).
//!
//! Fails by: all problems of form at once, with v1's field paths. Rules of content are the model's (`service::validate`).

use std::cell::RefCell;

use serde_json::Value;
use utsuwa_model::host_dir::{HOST, ONLY_THIS_HOST};
use utsuwa_model::service::{
    RevisionTemplate, SecretItem, ServiceSpec, TrafficTarget, Volume, VolumeSource,
};
use utsuwa_model::{RevisionId, Timestamp, Violations};

use super::encode::LOCATION;
use super::read::Object;
use super::{annotation, decode_container};
use crate::ApiError;
use crate::intent::Draft;

/// What a request says about a service.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) name: String,
    /// Project id or number, empty if absent.
    pub(super) namespace: String,
    /// The version the caller has seen; absent means whatever is there.
    pub(super) version: Option<Timestamp>,
    pub(super) draft: Draft,
}

/// Reads a `Service`.
pub(super) fn service(body: &[u8]) -> Result<Incoming, ApiError> {
    let value: Value = serde_json::from_slice(body).map_err(|e| {
        ApiError::new(
            crate::error::Code::InvalidArgument,
            format!("The request's body is not JSON: {e}."),
        )
    })?;
    let found = RefCell::new(Violations::default());
    let incoming =
        Object::new(&value, String::new(), &found).map(|root| read_service(&root, &found));
    let found = found.into_inner();
    match incoming {
        Some(incoming) if found.0.is_empty() => Ok(incoming),
        _ => Err(found.into()),
    }
}

fn read_service(root: &Object<'_>, found: &RefCell<Violations>) -> Incoming {
    for (key, expected) in [
        ("apiVersion", "serving.knative.dev/v1"),
        ("kind", "Service"),
    ] {
        if let Some(given) = root.word(key)
            && given != expected
        {
            root.wrong(key, format!("must be {expected:?}, not {given:?}"));
        }
    }
    // Clients echo the status they read.
    root.allow(&["status"]);
    let mut incoming = Incoming {
        name: String::new(),
        namespace: String::new(),
        version: None,
        draft: Draft::default(),
    };
    if let Some(metadata) = root.object("metadata") {
        incoming.name = metadata.text("name").unwrap_or_default();
        incoming.namespace = metadata.text("namespace").unwrap_or_default();
        if let Some(version) = metadata.word("resourceVersion") {
            match version.parse() {
                Ok(version) => incoming.version = Some(Timestamp(version)),
                Err(_) => metadata.wrong("resourceVersion", "is not a version that this server has answered: leave it out or read the service again"),
            }
        }
        if metadata.word("generateName").is_some() {
            metadata.wrong("generateName", "is not supported: give the service a name");
        }
        incoming.draft.labels = metadata.map("labels");
        incoming.draft.labels.remove(LOCATION);
        incoming.draft.annotations = metadata.map("annotations");
    } else {
        root.wrong("metadata", "missing: a service needs a name");
    }
    let draft = &mut incoming.draft;
    let client = |name: &str| draft.annotations.get(name).cloned().unwrap_or_default();
    draft.client = client("run.googleapis.com/client-name");
    draft.client_version = client("run.googleapis.com/client-version");
    annotation::read_service(
        &mut draft.annotations,
        &mut draft.spec,
        &mut found.borrow_mut(),
    );
    match root.object("spec") {
        Some(spec) => read_spec(&spec, &mut draft.spec, found),
        None => root.wrong(
            "spec",
            "missing: a service needs a template with a container",
        ),
    }
    root.forbid_rest();
    incoming
}

fn read_spec(spec: &Object<'_>, into: &mut ServiceSpec, found: &RefCell<Violations>) {
    match spec.object("template") {
        Some(template) => into.template = read_template(&template, found),
        None => spec.wrong(
            "template",
            "missing: a service needs a template with a container",
        ),
    }
    into.traffic = spec.objects("traffic").iter().map(read_target).collect();
    spec.forbid_rest();
}

fn read_target(target: &Object<'_>) -> TrafficTarget {
    let revision = target
        .word("revisionName")
        .and_then(|name| revision_id(target, "revisionName", &name));
    let unnamed = target.word("revisionName").is_none();
    let latest = target.flag("latestRevision").unwrap_or(unnamed);
    if target.word("url").is_some() {
        target.wrong("url", "must not be set: it is an output");
    }
    let read = TrafficTarget {
        revision,
        latest,
        percent: target.number("percent", u32::MAX),
        tag: target.word("tag"),
    };
    target.forbid_rest();
    read
}

fn revision_id(at: &Object<'_>, key: &str, name: &str) -> Option<RevisionId> {
    match name.parse() {
        Ok(id) => Some(id),
        Err(error) => {
            let error: utsuwa_model::name::NameError = error;
            at.wrong(
                key,
                format!("not a DNS 1035 label: {name:?} {}", error.rule),
            );
            None
        }
    }
}

fn read_template(template: &Object<'_>, found: &RefCell<Violations>) -> RevisionTemplate {
    let mut read = RevisionTemplate::default();
    if let Some(metadata) = template.object("metadata") {
        read.revision = metadata
            .word("name")
            .and_then(|name| revision_id(&metadata, "name", &name));
        read.labels = metadata.map("labels");
        read.labels.remove(LOCATION);
        let mut annotations = metadata.map("annotations");
        annotation::read_template(&mut annotations, &mut read, &mut found.borrow_mut());
        read.annotations = annotations;
    }
    match template.object("spec") {
        Some(spec) => {
            read_revision_spec(&spec, &mut read);
            annotation::dependencies::read(&mut read, &mut found.borrow_mut());
        }
        None => template.wrong("spec", "missing: a revision needs a container"),
    }
    template.forbid_rest();
    read
}

fn read_revision_spec(spec: &Object<'_>, read: &mut RevisionTemplate) {
    read.concurrency = spec.number("containerConcurrency", u32::MAX);
    read.timeout_secs = spec.number("timeoutSeconds", u32::MAX);
    read.service_account = spec.word("serviceAccountName");
    read.node_selector = spec.map("nodeSelector");
    read.containers = spec
        .objects("containers")
        .iter()
        .map(decode_container::container)
        .collect();
    read.volumes = spec
        .objects("volumes")
        .iter()
        .filter_map(read_volume)
        .collect();
    // Kubernetes' service links don't exist here, so asking for them or not is the same.
    spec.allow(&["enableServiceLinks"]);
    spec.forbid_rest();
}

fn read_volume(volume: &Object<'_>) -> Option<Volume> {
    let name = volume.text("name").unwrap_or_default();
    let source = if let Some(secret) = volume.object("secret") {
        let items = secret.objects("items");
        let items = items.iter().map(|item| SecretItem {
            version: item.text("key").unwrap_or_default(),
            path: item.text("path").unwrap_or_default(),
            mode: item.number("mode", u32::MAX),
        });
        Some(VolumeSource::Secret {
            secret: secret.text("secretName").unwrap_or_default(),
            items: items.collect(),
            default_mode: secret.number("defaultMode", u32::MAX),
        })
    } else if let Some(dir) = volume.object("emptyDir") {
        if let Some(medium) = dir.word("medium")
            && medium != "Memory"
        {
            dir.wrong(
                "medium",
                format!("{medium:?} is not built in this server yet: write Memory"),
            );
        }
        Some(VolumeSource::EmptyDir {
            size_limit: dir.word("sizeLimit"),
        })
    } else if let Some(dir) = volume.object("hostPath") {
        if let Some(kind) = dir.word("type")
            && kind != "Directory"
        {
            let why = format!(
                "{kind:?} is not built in this server: write Directory, or leave the field out"
            );
            dir.wrong("type", why);
        }
        Some(VolumeSource::HostDir {
            path: dir.text("path").unwrap_or_default(),
            read_only: None,
        })
    } else if let Some(nfs) = volume.object("nfs") {
        if nfs.text("server").as_deref() != Some(HOST) {
            nfs.wrong("server", ONLY_THIS_HOST.to_owned());
        }
        Some(VolumeSource::HostDir {
            path: nfs.text("path").unwrap_or_default(),
            read_only: Some(nfs.flag("readOnly") == Some(true)),
        })
    } else {
        for kind in ["csi", "configMap", "persistentVolumeClaim"] {
            if volume.get(kind).is_some() {
                volume.wrong(kind, format!("volumes of kind {kind} are not built in this server yet: leave the field out"));
            }
        }
        None
    };
    volume.forbid_rest();
    source.map(|source| Volume { name, source })
}
