//! Pooled outputs of whole lists, without a graph: for frozen towers once a run, for evaluation whenever it is due.

use std::path::Path;

use candle_core::Tensor;

use super::broken::{Broken, readable, reason};
use super::config::TrainConfig;
use super::progress::{Half, Progress};
use crate::data::{BatchLoader, LastBatch, LoaderConfig, Split};
use crate::image::{ImageSource, PixelArray};
use crate::retrieval::{CaptionPairs, RetrievalReport};
use crate::{ClipModel, Embeddings, Error, Result};

/// Images in a forward pass without a graph.
const IMAGES: usize = 32;
/// Texts in a forward pass without a graph.
const TEXTS: usize = 128;

/// Recall in both directions of `model` on the images of `split` under `folder` and all their captions. Images are decoded on
/// `workers` threads ahead of the tower.
///
/// # Errors
/// When the split is empty or an image cannot be read; the error names it.
pub fn evaluate_retrieval(
    model: &ClipModel,
    split: &Split,
    folder: impl AsRef<Path>,
    workers: usize,
    mut progress: impl FnMut(&Progress),
) -> Result<RetrievalReport> {
    let images = pool_images(model, &split.sources(folder), workers, &mut progress)?;
    let texts = pool_texts(model, &split.flat_captions().0, &mut progress)?;
    recalls(model, split, &images, &texts)
}

/// Recall from the pooled outputs of a split's images (N,E) and all its captions (M,E).
pub(super) fn recalls(model: &ClipModel, split: &Split, images: &Tensor, texts: &Tensor) -> Result<RetrievalReport> {
    let pairs = CaptionPairs::new(split.image_count(), &split.flat_captions().1)?;
    let images = Embeddings::from_features(&model.project_image(images)?)?;
    let texts = Embeddings::from_features(&model.project_text(texts)?)?;
    RetrievalReport::from_embeddings(&images, &texts, &pairs)
}

/// # Shapes
/// N images → (N,E).
pub(super) fn pool_images(
    model: &ClipModel,
    images: &[ImageSource],
    workers: usize,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Tensor> {
    let (processor, sources) = (model.image_encoder().processor().clone(), images.to_vec());
    let read = move |i: usize| processor.preprocess(&sources[i]);
    pool_readable(images.len(), read, workers, &mut |_, error| Err(error), &mut pooled_by(model), progress)
}

/// The outputs of `count` images whose pixel values `read` gives, all of which can be read.
pub(super) fn pool_pixels(
    model: &ClipModel,
    count: usize,
    read: impl Fn(usize) -> Result<PixelArray> + Send + Sync + 'static,
) -> Result<Tensor> {
    pool_readable(count, read, 1, &mut |_, error| Err(error), &mut pooled_by(model), &mut |_| {})
}

/// The pooled outputs of a batch's pixel values.
fn pooled_by(model: &ClipModel) -> impl FnMut(&[PixelArray]) -> Result<Tensor> {
    let encoder = model.image_encoder();
    |arrays| encoder.pooled_detached(&PixelArray::stack(arrays, encoder.device())?)
}

/// What `forward` makes of `count` images whose pixel values `read` gives; `broken` may pass over those that cannot be read, which then have
/// no row.
///
/// # Shapes
/// N images → (number that can be read, E).
fn pool_readable(
    count: usize,
    read: impl Fn(usize) -> Result<PixelArray> + Send + Sync + 'static,
    workers: usize,
    broken: &mut dyn FnMut(usize, Error) -> Result<()>,
    forward: &mut dyn FnMut(&[PixelArray]) -> Result<Tensor>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Tensor> {
    let config = LoaderConfig { batch_size: IMAGES, workers, prefetch: 2, last: LastBatch::Keep };
    let loader = BatchLoader::new((0..count).collect(), config, move |i| readable(read(i)))?;
    let (mut rows, mut done) = (Vec::with_capacity(count.div_ceil(IMAGES)), 0);
    for batch in loader {
        let mut arrays = Vec::with_capacity(IMAGES);
        for image in batch? {
            match image {
                Ok(array) => arrays.push(array),
                Err(error) => broken(done, error)?,
            }
            done += 1;
        }
        if !arrays.is_empty() {
            rows.push(forward(&arrays)?);
        }
        progress(&Progress::Pooling { half: Half::Image, done, total: count });
    }
    if rows.is_empty() {
        return Err(Error::argument("images", "there is none that can be read; give at least one"));
    }
    Ok(Tensor::cat(&rows, 0)?)
}

/// Like [`pool_images`], as far as the recipe allows: gives the outputs, and the images that have none with what is wrong with them.
/// The share that may be broken is one of `total` images.
pub(super) fn pool_tolerated(
    model: &ClipModel,
    images: &[ImageSource],
    config: &TrainConfig,
    total: usize,
    progress: &mut dyn FnMut(&Progress),
) -> Result<(Tensor, Vec<(usize, Error)>)> {
    let (processor, sources) = (model.image_encoder().processor().clone(), images.to_vec());
    let read = move |i: usize| processor.preprocess(&sources[i]);
    pool_views(images, images.len(), read, config, total, &mut pooled_by(model), progress)
}

/// Like [`pool_tolerated`] for what `forward` makes of the `count` inputs that `read` gives; input `i` is a view of image `i % N`.
pub(super) fn pool_views(
    images: &[ImageSource],
    count: usize,
    read: impl Fn(usize) -> Result<PixelArray> + Send + Sync + 'static,
    config: &TrainConfig,
    total: usize,
    forward: &mut dyn FnMut(&[PixelArray]) -> Result<Tensor>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<(Tensor, Vec<(usize, Error)>)> {
    let (mut counted, mut without) = (Broken::new(config.broken_images, total), Vec::new());
    let mut broken = |i: usize, error: Error| {
        let image = i % images.len();
        counted.note(image, &images[image].to_string(), &reason(&error))?;
        without.push((i, error));
        Ok(())
    };
    let rows = pool_readable(count, read, config.workers, &mut broken, forward, progress)?;
    Ok((rows, without))
}

/// # Shapes
/// N texts → (N,E), in the order of `texts`.
pub(super) fn pool_texts(model: &ClipModel, texts: &[&str], progress: &mut dyn FnMut(&Progress)) -> Result<Tensor> {
    model.text_encoder().encode_in_batches(texts, TEXTS, |done| {
        progress(&Progress::Pooling { half: Half::Text, done, total: texts.len() });
    })
}

/// Unit rows of captions (M,D).
pub(super) fn embed_captions(
    model: &ClipModel,
    texts: &[&str],
    progress: &mut dyn FnMut(&Progress),
) -> Result<Embeddings> {
    Embeddings::from_features(&model.project_text(&pool_texts(model, texts, progress)?)?)
}

/// The rows `indices` of `rows`.
pub(super) fn select(rows: &Tensor, indices: &[u32]) -> Result<Tensor> {
    Ok(rows.index_select(&Tensor::new(indices, rows.device())?, 0)?)
}
