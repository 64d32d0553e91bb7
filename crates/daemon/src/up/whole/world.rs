//! What stands for the world outside: images without content, room for everything, no logs of instances.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::BoxStream;
use utsuwa_api::seam::{ImageInsight, LoadError, LoadedImage, PullInsight};
use utsuwa_control::seam::{Environment, ImageError};
use utsuwa_model::image::{ImageConfig, ResolvedImage};
use utsuwa_model::{ServiceKey, Timestamp};

use super::super::environment::Machine;

/// Every image is there.
#[derive(Debug)]
pub(super) struct Shelf;

impl utsuwa_control::seam::Images for Shelf {
    fn ensure(&self, reference: &str) -> BoxFuture<'_, Result<ResolvedImage, ImageError>> {
        let digest = format!("sha256:{:064x}", reference.len());
        let image = ResolvedImage {
            reference: reference.to_owned(),
            pinned: format!("{reference}@{digest}"),
            manifest: digest.clone(),
            layers: vec![digest],
            config: ImageConfig {
                entrypoint: vec!["/app".to_owned()],
                ..ImageConfig::default()
            },
            size_bytes: 1,
        };
        std::future::ready(Ok(image)).boxed()
    }

    fn collect(&self, _: Vec<String>) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

impl utsuwa_api::seam::Images for Shelf {
    fn load(
        &self,
        _: BoxStream<'static, std::io::Result<Bytes>>,
        _: Option<String>,
    ) -> BoxFuture<'_, Result<LoadedImage, LoadError>> {
        let refused = LoadError::Unavailable("no test brings images".to_owned());
        std::future::ready(Err(refused)).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Vec<ImageInsight>> {
        std::future::ready(Vec::new()).boxed()
    }

    fn pulling(&self, _: &str) -> Option<PullInsight> {
        None
    }
}

/// The machine's time; how much memory it has left at the moment decides no test.
#[derive(Debug)]
pub(super) struct Roomy(pub(super) Machine);

impl Environment for Roomy {
    fn now(&self) -> Timestamp {
        Environment::now(&self.0)
    }

    fn wall(&self) -> Timestamp {
        Environment::wall(&self.0)
    }

    fn random(&self) -> u64 {
        self.0.random()
    }
}

/// Nothing is kept of any service.
#[derive(Debug)]
pub(super) struct NoLogs;

impl utsuwa_control::seam::Logs for NoLogs {
    fn known(&self) -> BoxFuture<'_, Result<Vec<ServiceKey>, String>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn remove(&self, _: ServiceKey, _: Option<Timestamp>) -> BoxFuture<'_, Result<(), String>> {
        std::future::ready(Ok(())).boxed()
    }
}

/// Warnings and errors of the server's own log. A test that provokes none must see none.
#[derive(Debug, Clone, Default)]
pub(super) struct Complaints(std::sync::Arc<parking_lot::Mutex<Vec<String>>>);

impl Complaints {
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Complaints {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        // Errors are less than warnings.
        if *event.metadata().level() <= tracing::Level::WARN {
            let mut fields = BTreeMap::new();
            event.record(
                &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                    fields.insert(field.name(), format!("{value:?}"));
                },
            );
            self.0.lock().push(format!("{fields:?}"));
        }
    }
}
