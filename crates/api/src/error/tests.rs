//! Every error and its code: changing one is a decision that this table shows.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tonic::Status;
use utsuwa_model::{ServiceId, Timestamp, Violations};
use utsuwa_store::StoreError;

use super::*;

#[test]
fn every_code_has_its_status() {
    let table: Vec<String> = Code::ALL
        .iter()
        .map(|c| format!("{} {} {}", c.number(), c.name(), c.http().as_u16()))
        .collect();
    insta::assert_snapshot!(table.join("\n"));
    for code in Code::ALL {
        assert_eq!(Code::from_grpc(code.grpc()), Some(code));
        assert_ne!(
            code.http().as_u16(),
            501,
            "gcloud would retry for half a minute"
        );
    }
    assert_eq!(Code::from_grpc(tonic::Code::Ok), None);
}

#[test]
fn every_error_has_its_code() {
    let path = || PathBuf::from("/data/state.sqlite");
    let what = || "hello".to_owned();
    let service = |text: &str| Box::new(text.parse().expect("a service"));
    let mut violations = Violations::default();
    violations.add("template", "is required");
    let name = "Hello".parse::<ServiceId>().map(drop);
    let io = || std::sync::Arc::new(std::io::Error::other("secret detail"));
    let table: Vec<(&str, ApiError)> = vec![
        ("violations", violations.into()),
        (
            "name",
            name.map_or_else(ApiError::from, |()| ApiError::internal("a good name")),
        ),
        (
            "store not found",
            StoreError::NotFound { what: what() }.into(),
        ),
        (
            "store already exists",
            StoreError::AlreadyExists { what: what() }.into(),
        ),
        (
            "store mapped",
            StoreError::Mapped {
                host: "foo.localhost".to_owned(),
                of: service("demo/r/foo"),
                to: service("demo/other/kn"),
            }
            .into(),
        ),
        (
            "store own address",
            StoreError::OwnAddress {
                host: "mine.localhost".to_owned(),
                of: service("demo/r/mine"),
            }
            .into(),
        ),
        (
            "store conflict",
            StoreError::Conflict {
                what: what(),
                sent: Timestamp(1),
                now: Timestamp(2),
            }
            .into(),
        ),
        ("store stale etag", StoreError::StaleEtag.into()),
        ("store bad page token", StoreError::BadPageToken.into()),
        (
            "store disk full",
            StoreError::DiskFull { path: path() }.into(),
        ),
        (
            "store referenced",
            StoreError::Referenced {
                what: what(),
                children: "2 revisions".to_owned(),
            }
            .into(),
        ),
        ("store closed", StoreError::Closed.into()),
        (
            "store out of user ids",
            StoreError::NoUidRange { used: 7 }.into(),
        ),
        ("store abandoned", StoreError::Abandoned.into()),
        (
            "store newer",
            StoreError::Newer {
                found: 9,
                known: 1,
                path: path(),
            }
            .into(),
        ),
        (
            "store locked",
            StoreError::Locked {
                path: path(),
                pid: "1".to_owned(),
            }
            .into(),
        ),
        (
            "store corrupt",
            StoreError::Corrupt {
                path: path(),
                problem: "secret detail".to_owned(),
            }
            .into(),
        ),
        (
            "store io",
            StoreError::Io {
                path: path(),
                source: io(),
            }
            .into(),
        ),
        (
            "not found",
            ApiError::not_found("SERVICE", "hello", "r", "p"),
        ),
        ("already exists", ApiError::already_exists("hello")),
        (
            "unimplemented",
            ApiError::unimplemented("Jobs are not built yet."),
        ),
        ("internal", ApiError::internal("secret detail")),
    ];
    let shown: Vec<String> = table
        .iter()
        .map(|(name, e)| {
            let id = e.to_json()["error"]["details"][0]["requestId"]
                .as_str()
                .unwrap_or("no id")
                .to_owned();
            format!(
                "{name}: {} {} {}",
                e.code().http().as_u16(),
                e.code().name(),
                e.public().replace(&id, "ID")
            )
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"));
    for (name, error) in table {
        let json = error.to_json().to_string();
        assert!(
            !json.contains("secret") && !json.contains("/data/"),
            "{name}: {json}"
        );
        let status = Status::from(error);
        assert!(!format!("{status:?}").contains("secret"), "{name}");
    }
}

#[test]
fn details_are_the_same_over_rest_and_grpc() {
    let details = [
        Detail::BadRequest(vec![FieldViolation {
            field: "a.b".to_owned(),
            description: "wrong".to_owned(),
        }]),
        Detail::ErrorInfo {
            reason: "R".to_owned(),
            domain: "d".to_owned(),
            metadata: [("k".to_owned(), "v".to_owned())].into(),
        },
        Detail::RetryInfo(Duration::from_millis(1500)),
        Detail::QuotaFailure {
            subject: "s".to_owned(),
            description: "d".to_owned(),
        },
        Detail::RequestInfo {
            request_id: "i".to_owned(),
        },
        Detail::ResourceInfo {
            resource_type: "t".to_owned(),
            resource_name: "n".to_owned(),
        },
    ];
    for detail in details {
        assert_eq!(Detail::from_any(&detail.to_any()), Some(detail.clone()));
        // Our JSON is the canonical JSON of the message.
        let any = utsuwa_wire::google::rpc::Status {
            details: vec![detail.to_any()],
            ..Default::default()
        };
        let descriptor = utsuwa_wire::pool()
            .get_message_by_name("google.rpc.Status")
            .expect("described");
        let bytes = prost::Message::encode_to_vec(&any);
        let message = prost_reflect::DynamicMessage::decode(descriptor, bytes.as_slice())
            .expect("our own bytes");
        let rendered = utsuwa_wire::json::render(&message, utsuwa_wire::json::Style::default())
            .expect("described");
        assert_eq!(rendered["details"][0], detail.to_json());
        let error = ApiError::new(Code::Aborted, "text").with(detail);
        assert_eq!(ApiError::from(Status::from(error.clone())), error);
    }
}

#[test]
fn fields_are_rewritten_in_message_and_details() {
    let error =
        ApiError::invalid("template.timeout", "too long").map_fields(|f| format!("spec.{f}"));
    let json = error.to_json();
    assert_eq!(json["error"]["message"], "spec.template.timeout: too long");
    assert_eq!(
        json["error"]["details"][0]["fieldViolations"],
        json!([{"field": "spec.template.timeout", "description": "too long"}])
    );
    let other = ApiError::already_exists("x");
    assert_eq!(other.clone().map_fields(|f| f.to_owned()), other);
}
