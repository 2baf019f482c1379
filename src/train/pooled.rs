//! Pooled outputs of whole lists, without a graph: for frozen towers once a run, for evaluation whenever it is due.

use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::progress::{Half, Progress};
use crate::data::{BatchLoader, LastBatch, LoaderConfig, Split};
use crate::image::PixelArray;
use crate::retrieval::{CaptionPairs, RetrievalReport};
use crate::{ClipModel, Embeddings, Result};

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
    let images = pool_images(model, &paths(folder.as_ref(), split.images()), workers, &mut progress)?;
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

/// The files of `images` under `folder`.
pub(super) fn paths(folder: &Path, images: &[String]) -> Vec<PathBuf> {
    images.iter().map(|image| folder.join(image)).collect()
}

/// # Shapes
/// N files → (N,E).
pub(super) fn pool_images(
    model: &ClipModel,
    files: &[PathBuf],
    workers: usize,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Tensor> {
    let encoder = model.image_encoder();
    let (processor, paths) = (encoder.processor().clone(), files.to_vec());
    let config = LoaderConfig { batch_size: IMAGES, workers, prefetch: 2, last: LastBatch::Keep };
    let loader = BatchLoader::new((0..files.len()).collect(), config, move |i| processor.preprocess(&paths[i]))?;
    let mut rows = Vec::with_capacity(files.len().div_ceil(IMAGES));
    for batch in loader {
        let pixel_values = PixelArray::stack(&batch?, encoder.device())?;
        rows.push(encoder.pooled_detached(&pixel_values)?);
        let done = files.len().min(rows.len() * IMAGES);
        progress(&Progress::Pooling { half: Half::Image, done, total: files.len() });
    }
    if rows.is_empty() {
        return Err(crate::Error::argument("images", "the list is empty; give at least one"));
    }
    Ok(Tensor::cat(&rows, 0)?)
}

/// # Shapes
/// N texts → (N,E), in the order of `texts`.
pub(super) fn pool_texts(model: &ClipModel, texts: &[&str], progress: &mut dyn FnMut(&Progress)) -> Result<Tensor> {
    model.text_encoder().encode_in_batches(texts, TEXTS, |done| {
        progress(&Progress::Pooling { half: Half::Text, done, total: texts.len() });
    })
}

/// Unit rows of image files (N,D).
pub(super) fn embed_files(
    model: &ClipModel,
    files: &[PathBuf],
    workers: usize,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Embeddings> {
    Embeddings::from_features(&model.project_image(&pool_images(model, files, workers, progress)?)?)
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
