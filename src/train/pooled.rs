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
    pool_readable(model, images, workers, &mut |_, error| Err(error), progress)
}

/// Like [`pool_images`], but `broken` may pass over images that cannot be read, which then have no row.
///
/// # Shapes
/// N images → (number that can be read, E).
fn pool_readable(
    model: &ClipModel,
    images: &[ImageSource],
    workers: usize,
    broken: &mut dyn FnMut(usize, Error) -> Result<()>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Tensor> {
    let encoder = model.image_encoder();
    let (processor, sources) = (encoder.processor().clone(), images.to_vec());
    let config = LoaderConfig { batch_size: IMAGES, workers, prefetch: 2, last: LastBatch::Keep };
    let job = move |i: usize| readable(processor.preprocess(&sources[i]));
    let loader = BatchLoader::new((0..images.len()).collect(), config, job)?;
    let (mut rows, mut done) = (Vec::with_capacity(images.len().div_ceil(IMAGES)), 0);
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
            let pixel_values = PixelArray::stack(&arrays, encoder.device())?;
            rows.push(encoder.pooled_detached(&pixel_values)?);
        }
        progress(&Progress::Pooling { half: Half::Image, done, total: images.len() });
    }
    if rows.is_empty() {
        return Err(Error::argument("images", "there is none that can be read; give at least one"));
    }
    Ok(Tensor::cat(&rows, 0)?)
}

/// Like [`pool_readable`], as far as the recipe allows: gives the outputs, and the images that have none with what is wrong with them.
/// The share that may be broken is one of `total` images.
pub(super) fn pool_tolerated(
    model: &ClipModel,
    images: &[ImageSource],
    config: &TrainConfig,
    total: usize,
    progress: &mut dyn FnMut(&Progress),
) -> Result<(Tensor, Vec<(usize, Error)>)> {
    let (mut counted, mut without) = (Broken::new(config.broken_images, total), Vec::new());
    let mut broken = |i: usize, error: Error| {
        counted.note(i, &images[i].to_string(), &reason(&error))?;
        without.push((i, error));
        Ok(())
    };
    let rows = pool_readable(model, images, config.workers, &mut broken, progress)?;
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
