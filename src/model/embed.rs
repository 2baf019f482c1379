//! Embedding with a [`ClipModel`]: images and texts to unit rows, and the threads that this runs on.

use candle_core::Tensor;

use super::ClipModel;
use crate::image::ImageInput;
use crate::threads::Threads;
use crate::{Embeddings, Error, Result};

impl ClipModel {
    /// Unit rows for images: paths, bytes or decoded images. No graph is kept. What [`ClipModel::embed_images_iter`] gives, together.
    ///
    /// # Shapes
    /// N images → (N,D).
    ///
    /// # Errors
    /// When the list is empty or an image cannot be read; the error names its file and its index.
    pub fn embed_images<I>(&self, images: I) -> Result<Embeddings>
    where
        I: IntoIterator,
        I::Item: Into<ImageInput>,
    {
        let features = self.image_features(images).collect::<Result<Vec<_>>>()?;
        if features.is_empty() {
            return Err(Error::argument("images", "the list is empty; give at least one image"));
        }
        Embeddings::from_features(&Tensor::cat(&features, 0)?)
    }

    /// Unit rows for any number of images, a batch at a time, in the order of `images`; the images of the next batch are drawn from
    /// `images` and decoded on other threads meanwhile. How it works and ends is as in [`ImageEncoder::encode_iter`](crate::ImageEncoder::encode_iter).
    ///
    /// # Shapes
    /// Each item (B,D), B being the encoder's batch size (32), fewer in the last.
    ///
    /// # Errors
    /// Of an item: as [`ImageEncoder::encode_iter`](crate::ImageEncoder::encode_iter).
    ///
    /// ```no_run
    /// # let model = diptych::ClipModel::from_pretrained("openai/clip-vit-base-patch32")?;
    /// let files = std::fs::read_dir("photos").into_iter().flatten().flatten().map(|file| file.path());
    /// for batch in model.embed_images_iter(files) {
    ///     println!("{} more", batch?.len());
    /// }
    /// # Ok::<(), diptych::Error>(())
    /// ```
    pub fn embed_images_iter<I>(&self, images: I) -> impl Iterator<Item = Result<Embeddings>> + use<'_, I>
    where
        I: IntoIterator,
        I::Item: Into<ImageInput>,
    {
        self.image_features(images).map(|features| Embeddings::from_features(&features?))
    }

    /// Projected images without a graph, batch by batch.
    fn image_features<I>(&self, images: I) -> impl Iterator<Item = Result<Tensor>> + use<'_, I>
    where
        I: IntoIterator,
        I::Item: Into<ImageInput>,
    {
        let projection = &self.heads.detached().visual_projection;
        self.image.encode_iter(images).map(|pooled| projection.forward(&pooled?))
    }

    /// Unit rows for texts. No graph is kept.
    ///
    /// # Shapes
    /// N texts → (N,D).
    ///
    /// # Errors
    /// When the list is empty.
    pub fn embed_texts(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Embeddings> {
        let embed = || self.heads.detached().text_projection.forward(&self.text.encode(texts)?);
        Embeddings::from_features(&self.text.threads().install_on(self.text.device(), embed)?)
    }

    /// Runs `f` where this model computes: on the threads that [`Loader::threads`](crate::Loader::threads) gave it, else on rayon's current pool. Everything
    /// that embeds does so by itself; backward passes and optimiser steps in a loop of your own do not.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.image.threads().install(f)
    }

    pub(crate) fn with_threads(self, threads: Threads) -> Self {
        Self { text: self.text.with_threads(threads.clone()), image: self.image.with_threads(threads), ..self }
    }
}
