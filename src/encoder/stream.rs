//! [`ImageStream`]: pooled outputs of images that other threads decode while the tower works on those before them.
//!
//! ```text
//! image ─ decode ─ resize ─ normalise (a worker) ─▶ (C,H,W) ─ a batch of them ─▶ tower ─▶ (B,E)
//! ```

use candle_core::Tensor;

use super::ImageEncoder;
use crate::Result;
use crate::image::image_crate::RgbImage;
use crate::image::{ImageInput, ImageProcessor, NaflexProcessor, PixelArray};
use crate::threads::Ahead;

/// Batches of pooled outputs, in the order of the images.
pub(super) struct ImageStream<'a, S: Iterator<Item = ImageInput>> {
    encoder: &'a ImageEncoder,
    /// None once it is under way.
    source: Option<S>,
    prepared: Option<Ahead<S, Prepared>>,
}

/// What a worker makes of an image, with the name that errors call it.
enum Prepared {
    /// Pixel values of the tower's size.
    Pixels(String, PixelArray),
    /// Whole patches, for towers that take images of any proportions.
    Patches(RgbImage),
}

/// What the workers do.
enum Prepare {
    Pixels(ImageProcessor),
    Patches(NaflexProcessor),
}

impl Prepare {
    fn run(&self, index: usize, input: &ImageInput) -> Result<Prepared> {
        let name = input.name(Some(index));
        match self {
            Self::Pixels(processor) => {
                let array = processor.preprocess_named(input, &name)?;
                Ok(Prepared::Pixels(name, array))
            }
            Self::Patches(processor) => processor.resized(input, &name).map(Prepared::Patches),
        }
    }
}

impl<'a, S: Iterator<Item = ImageInput>> ImageStream<'a, S> {
    pub(super) fn new(encoder: &'a ImageEncoder, source: S) -> Self {
        Self { encoder, source: Some(source), prepared: None }
    }

    /// Starts the workers with the first batch.
    fn start(&mut self, source: S) -> Result<()> {
        let pool = self.encoder.threads().decoders()?;
        let prepare = match self.encoder.naflex() {
            Some(naflex) => Prepare::Patches(naflex.clone()),
            None => Prepare::Pixels(self.encoder.processor().clone()),
        };
        let most = self.encoder.batch_size().saturating_add(pool.current_num_threads());
        self.prepared = Some(Ahead::new(source, pool, most, move |index, input| prepare.run(index, &input)));
        Ok(())
    }

    fn pooled(&self, batch: Vec<Prepared>) -> Result<Tensor> {
        let (mut names, mut pixels, mut images) = (Vec::new(), Vec::new(), Vec::new());
        for prepared in batch {
            match prepared {
                Prepared::Pixels(name, array) => {
                    names.push(name);
                    pixels.push(array);
                }
                Prepared::Patches(image) => images.push(image),
            }
        }
        let device = self.encoder.device();
        match self.encoder.naflex() {
            Some(naflex) => self.encoder.pooled_patches(&naflex.stack(&images, device)?),
            None => {
                let pixel_values = PixelArray::stack_named(&pixels, |i| format!("image {}", names[i]), device)?;
                drop(pixels);
                self.encoder.pooled_detached(&pixel_values)
            }
        }
    }
}

impl<S: Iterator<Item = ImageInput>> Iterator for ImageStream<'_, S> {
    type Item = Result<Tensor>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(Err(error)) = self.source.take().map(|source| self.start(source)) {
            return Some(Err(error));
        }
        let prepared = self.prepared.as_mut()?;
        let outcome = prepared.batch(self.encoder.batch_size())?.and_then(|batch| self.pooled(batch));
        if outcome.is_err() {
            self.prepared = None;
        }
        Some(outcome)
    }
}
