//! Where a step's pooled outputs come from: kept from one pass over a frozen tower, or worked out anew from files and texts.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use candle_core::Tensor;

use super::config::TrainConfig;
use super::pooled::{pool_images, pool_texts, select};
use super::progress::Progress;
use crate::data::{BatchLoader, LastBatch, LoaderConfig};
use crate::image::image_crate::RgbImage;
use crate::image::{Augment, ImageProcessor, ImageSize, PixelArray};
use crate::text::TokenBatch;
use crate::{ClipModel, Error, Result};

/// Pooled outputs (N,E) of different inputs, and which row each input has.
pub(super) struct Kept {
    rows: Tensor,
    train: Vec<u32>,
    evaluation: Vec<u32>,
}

impl Kept {
    fn new<T: std::hash::Hash + Eq + Clone>(
        train: &[T],
        evaluation: &[T],
        pool: impl FnOnce(&[T]) -> Result<Tensor>,
    ) -> Result<Self> {
        let (mut place, mut inputs) = (HashMap::new(), Vec::new());
        let mut row = |input: &T| {
            *place.entry(input.clone()).or_insert_with(|| {
                inputs.push(input.clone());
                (inputs.len() - 1) as u32
            })
        };
        let train = train.iter().map(&mut row).collect();
        let evaluation = evaluation.iter().map(&mut row).collect();
        Ok(Self { rows: pool(&inputs)?, train, evaluation })
    }

    /// The rows of these training inputs.
    fn train(&self, indices: &[usize]) -> Result<Tensor> {
        select(&self.rows, &indices.iter().map(|&i| self.train[i]).collect::<Vec<_>>())
    }

    /// The rows of all evaluation inputs.
    fn evaluation(&self) -> Result<Tensor> {
        select(&self.rows, &self.evaluation)
    }
}

/// Where a batch's images come from.
pub(super) enum Images {
    /// A frozen tower sees the same pixels every epoch: its outputs are kept.
    Kept(Kept),
    /// The tower runs in every step, on views of these images.
    Files(Arc<ResizedImages>),
}

/// One epoch's images, batch by batch.
pub(super) enum EpochImages<'a> {
    /// Rows to choose from.
    Kept(&'a Kept),
    /// Pixel values from the worker threads.
    Loaded(BatchLoader<PixelArray>),
}

impl Images {
    pub(super) fn new(
        model: &ClipModel,
        config: &TrainConfig,
        train: Vec<PathBuf>,
        evaluation: &[PathBuf],
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Self> {
        let encoder = model.image_encoder();
        if encoder.is_frozen() && config.augment == Augment::default() {
            let pool = |files: &[PathBuf]| pool_images(model, files, config.workers, progress);
            return Ok(Self::Kept(Kept::new(&train, evaluation, pool)?));
        }
        Ok(Self::Files(Arc::new(ResizedImages::new(encoder.processor().clone(), train, config.image_cache_bytes))))
    }

    /// Starts an epoch that visits the images in `order`.
    pub(super) fn epoch(&self, config: &TrainConfig, epoch: usize, order: &[usize]) -> Result<EpochImages<'_>> {
        match self {
            Self::Kept(kept) => Ok(EpochImages::Kept(kept)),
            Self::Files(images) => {
                let (images, augment, seed) = (images.clone(), config.augment, config.seed);
                let job = move |i| images.view(i, &augment, seed, epoch);
                let TrainConfig { batch_size, workers, .. } = *config;
                let config = LoaderConfig { batch_size, workers, prefetch: 2, last: LastBatch::Drop };
                Ok(EpochImages::Loaded(BatchLoader::new(order.to_vec(), config, job)?))
            }
        }
    }

    /// The pooled outputs (N,E) of all evaluation images, whose files are `files`.
    pub(super) fn evaluation(
        &self,
        model: &ClipModel,
        files: &[PathBuf],
        workers: usize,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Tensor> {
        match self {
            Self::Kept(kept) => kept.evaluation(),
            Self::Files(_) => pool_images(model, files, workers, progress),
        }
    }
}

impl EpochImages<'_> {
    /// The images of the next batch, which `indices` are.
    pub(super) fn next(&mut self, model: &ClipModel, indices: &[usize]) -> Result<ImageBatch> {
        match self {
            Self::Kept(kept) => kept.train(indices).map(ImageBatch::Pooled),
            Self::Loaded(loader) => {
                let ended = || Error::argument("order", "the loader ended before the epoch");
                let arrays = loader.next().ok_or_else(ended)??;
                PixelArray::stack(&arrays, model.image_encoder().device()).map(ImageBatch::Pixels)
            }
        }
    }
}

/// A batch's images, as far as they are known before the step.
pub(super) enum ImageBatch {
    /// Outputs of the frozen tower (B,E).
    Pooled(Tensor),
    /// Pixel values (B,C,H,W).
    Pixels(Tensor),
}

impl ImageBatch {
    /// Features (rows,D) of some rows, with the graph of what is trained, in the projections' type.
    pub(super) fn features(&self, model: &ClipModel, rows: Range<usize>) -> Result<Tensor> {
        let part =
            |t: &Tensor| if rows.len() == t.dim(0)? { Ok(t.clone()) } else { t.narrow(0, rows.start, rows.len()) };
        match self {
            Self::Pooled(pooled) => model.project_image(&part(pooled)?),
            Self::Pixels(pixels) => {
                let pooled = model.image_encoder().pooled(&part(pixels)?.contiguous()?)?;
                model.project_image(&pooled.to_dtype(model.dtype())?)
            }
        }
    }
}

/// A batch's texts, as far as they are known before the step.
pub(super) enum TextBatch {
    /// Outputs of the frozen tower (B,E).
    Pooled(Tensor),
    /// Token ids (B,L).
    Tokens(TokenBatch),
}

impl TextBatch {
    /// Features (rows,D) of some rows, with the graph of what is trained.
    pub(super) fn features(&self, model: &ClipModel, rows: Range<usize>) -> Result<Tensor> {
        let tokens = match self {
            Self::Pooled(pooled) => return model.project_text(&pooled.narrow(0, rows.start, rows.len())?),
            Self::Tokens(tokens) => tokens,
        };
        let part = (rows.len() < tokens.batch()).then(|| tokens.select(&rows.collect::<Vec<_>>())).transpose()?;
        let pooled = model.text_encoder().pooled(part.as_ref().unwrap_or(tokens))?;
        model.project_text(&pooled.to_dtype(model.dtype())?)
    }
}

/// Training images after decoding and resizing: kept in memory as far as the budget goes, read again beyond it.
pub(super) struct ResizedImages {
    processor: ImageProcessor,
    files: Vec<PathBuf>,
    kept: Vec<OnceLock<RgbImage>>,
    bytes: AtomicUsize,
    budget: usize,
}

impl ResizedImages {
    pub(super) fn new(processor: ImageProcessor, files: Vec<PathBuf>, budget: usize) -> Self {
        let kept = files.iter().map(|_| OnceLock::new()).collect();
        Self { processor, files, kept, bytes: AtomicUsize::new(0), budget }
    }

    /// The pixel values of image `i` in the view that it has in `epoch`.
    fn view(&self, i: usize, augment: &Augment, seed: u64, epoch: usize) -> Result<PixelArray> {
        let read;
        let resized = match self.kept[i].get() {
            Some(resized) => resized,
            None => {
                read = self.processor.resized(&self.files[i])?;
                let bytes = read.as_raw().len();
                let room = |used: usize| used.checked_add(bytes).filter(|&used| used <= self.budget);
                if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
                    self.kept[i].get_or_init(|| read.clone());
                }
                &read
            }
        };
        let mut rng = Augment::rng(seed, epoch as u64, i as u64);
        let view = augment.view(ImageSize::of(resized), self.processor.config(), &mut rng)?;
        Ok(self.processor.finish(resized, &view))
    }
}

/// Where a batch's texts come from.
pub(super) enum Texts {
    /// A frozen tower: its outputs of all captions are kept; `first` is where each image's captions begin among them.
    Kept {
        /// Rows of all captions.
        kept: Kept,
        /// Where each training image's captions begin.
        first: Vec<usize>,
    },
    /// The tower runs in every step.
    Captions,
}

impl Texts {
    pub(super) fn new(
        model: &ClipModel,
        train: &[Vec<String>],
        evaluation: &[&str],
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Self> {
        if !model.text_encoder().is_frozen() {
            return Ok(Self::Captions);
        }
        let all: Vec<&str> = train.iter().flatten().map(String::as_str).collect();
        let first = train.iter().scan(0, |next, captions| Some(std::mem::replace(next, *next + captions.len())));
        let first = first.collect();
        let kept = Kept::new(&all, evaluation, |texts| pool_texts(model, texts, progress))?;
        Ok(Self::Kept { kept, first })
    }

    /// The captions chosen: pairs of an image's index and its caption's index.
    pub(super) fn batch(
        &self,
        model: &ClipModel,
        train: &[Vec<String>],
        chosen: &[(usize, usize)],
    ) -> Result<TextBatch> {
        match self {
            Self::Kept { kept, first } => {
                let rows: Vec<usize> = chosen.iter().map(|&(image, caption)| first[image] + caption).collect();
                kept.train(&rows).map(TextBatch::Pooled)
            }
            Self::Captions => {
                let texts: Vec<&str> = chosen.iter().map(|&(image, caption)| train[image][caption].as_str()).collect();
                model.text_encoder().tokenize(&texts).map(TextBatch::Tokens)
            }
        }
    }

    /// The pooled outputs (M,E) of all evaluation captions, which are `texts`.
    pub(super) fn evaluation(
        &self,
        model: &ClipModel,
        texts: &[&str],
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Tensor> {
        match self {
            Self::Kept { kept, .. } => kept.evaluation(),
            Self::Captions => pool_texts(model, texts, progress),
        }
    }
}
