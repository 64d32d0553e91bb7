//! Images by reference.

use super::*;

/// Images by reference.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    pub(super) images: Mutex<BTreeMap<String, Result<ResolvedImage, ImageError>>>,
    pub(crate) collected: Mutex<Vec<Vec<String>>>,
    pub(super) gate: Mutex<Option<Arc<Gate>>>,
    /// When pulls under way will have ended, whoever waits.
    pub(super) arrives: Mutex<BTreeMap<String, Instant>>,
}

impl Shelf {
    /// The pull of `reference` ends only after `time` from now.
    pub(crate) fn takes(&self, reference: &str, time: Duration) {
        let at = Instant::now() + time;
        self.arrives.lock().insert(reference.to_owned(), at);
    }

    pub(crate) fn put(&self, reference: &str) {
        let digest = format!(
            "sha256:{:064x}",
            reference
                .bytes()
                .fold(7_u128, |hash, b| hash.wrapping_mul(31) + u128::from(b))
        );
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
        let mut images = self.images.lock();
        images.insert(image.pinned.clone(), Ok(image.clone()));
        images.insert(reference.to_owned(), Ok(image));
    }

    pub(crate) fn refuse(&self, reference: &str, error: ImageError) {
        self.images.lock().insert(reference.to_owned(), Err(error));
    }
}

impl Images for Shelf {
    fn ensure(&self, reference: &str) -> BoxFuture<'_, Result<ResolvedImage, ImageError>> {
        let gate = self.gate.lock().clone();
        let found = self.images.lock().get(reference).cloned();
        let arrives = self.arrives.lock().get(reference).copied();
        let reference = reference.to_owned();
        async move {
            if let Some(arrives) = arrives {
                tokio::time::sleep_until(arrives).await;
            }
            if let Some(gate) = gate {
                gate.pass("ensure").await;
            }
            found.unwrap_or_else(|| {
                Err(ImageError {
                    reason: "ContainerMissing".to_owned(),
                    message: format!("Image '{reference}' not found."),
                    transient: false,
                })
            })
        }
        .boxed()
    }

    fn collect(&self, pinned: Vec<String>) -> BoxFuture<'_, ()> {
        self.collected.lock().push(pinned);
        std::future::ready(()).boxed()
    }
}
