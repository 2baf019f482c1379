//! How many threads a loaded model computes on.

use super::{Loaded, Loader};
use crate::Result;
use crate::threads::Threads;

impl Loader {
    /// How many threads the model computes on, its own, which end with its last clone (those of rayon's current pool: one a core,
    /// unless the program or `RAYON_NUM_THREADS` says otherwise). Loading uses them too, and as many decode images while it embeds.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// Runs `load` on the threads that the model is to have, and gives them to it.
    pub(super) fn on_threads<M: Send>(
        &self,
        load: impl FnOnce() -> Result<M> + Send,
        give: fn(M, Threads) -> M,
    ) -> Result<M> {
        let threads = self.threads.map_or_else(|| Ok(Threads::default()), Threads::new)?;
        let model = threads.install(load)?;
        Ok(give(model, threads))
    }
}

impl Loaded {
    pub(super) fn with_threads(self, threads: Threads) -> Self {
        match self {
            Self::Clip(model) => Self::Clip(Box::new(model.with_threads(threads))),
            Self::Text(encoder) => Self::Text(Box::new(encoder.with_threads(threads))),
            Self::Image(encoder) => Self::Image(Box::new(encoder.with_threads(threads))),
        }
    }
}
