//! Where a step's pooled outputs come from: kept from one pass over a frozen tower, or worked out anew from files and texts.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use candle_core::Tensor;

use super::broken::{readable, reason};
use super::config::TrainConfig;
use super::pooled::{pool_images, pool_texts, pool_tolerated, select};
use super::progress::Progress;
use crate::data::{BatchLoader, LastBatch, LoaderConfig};
use crate::image::image_crate::RgbImage;
use crate::image::{Augment, ImageProcessor, ImageSource, PixelArray};
use crate::text::TokenBatch;
use crate::towers::{PatchDepth, PatchDropout};
use crate::{ClipModel, Error, Result, ops};

/// Pooled outputs (N,E) of different inputs, and which row each input has; none where it could not be read.
pub(super) struct Kept {
    rows: Tensor,
    train: Vec<Option<u32>>,
    evaluation: Vec<u32>,
    /// Training inputs without a row, and why.
    broken: Vec<(usize, String)>,
}

impl Kept {
    /// `pool` gives the rows of its inputs, and the inputs that have none, in their order.
    fn new<T: std::hash::Hash + Eq + Clone>(
        train: &[T],
        evaluation: &[T],
        pool: impl FnOnce(&[T]) -> Result<(Tensor, Vec<(usize, Error)>)>,
    ) -> Result<Self> {
        let (inputs, mut places) = distinct(train.iter().chain(evaluation));
        let evaluation = places.split_off(train.len());
        let (rows, without) = pool(&inputs)?;
        Self::of(rows, without, &places, &evaluation)
    }

    /// Takes rows that are there: of input `i` of those that `train` and `evaluation` count in, unless `without` names it, whose
    /// order is the inputs'.
    pub(super) fn of(
        rows: Tensor,
        mut without: Vec<(usize, Error)>,
        train: &[u32],
        evaluation: &[u32],
    ) -> Result<Self> {
        let find =
            |without: &[(usize, Error)], input: u32| without.binary_search_by_key(&(input as usize), |(i, _)| *i);
        // What is measured must not depend on what can be read.
        if let Some(at) = evaluation.iter().find_map(|&input| find(&without, input).ok()) {
            return Err(without.swap_remove(at).1);
        }
        let row = |&input: &u32| find(&without, input).err().map(|before| input - before as u32);
        let broken = train.iter().enumerate().filter_map(|(i, &input)| Some((i, find(&without, input).ok()?)));
        let broken = broken.map(|(i, at)| (i, reason(&without[at].1))).collect();
        let evaluation = evaluation.iter().filter_map(row).collect();
        Ok(Self { rows, train: train.iter().map(row).collect(), evaluation, broken })
    }

    /// The same inputs with other rows.
    pub(super) fn with_rows(&self, rows: Tensor) -> Self {
        let (train, evaluation, broken) = (self.train.clone(), self.evaluation.clone(), self.broken.clone());
        Self { rows, train, evaluation, broken }
    }

    /// The rows of these training inputs, all of which have one.
    fn train(&self, indices: &[usize]) -> Result<Tensor> {
        select(&self.rows, &indices.iter().filter_map(|&i| self.train[i]).collect::<Vec<_>>())
    }

    /// Those of these training inputs that have a row, and their rows (inputs,E), if there are any.
    pub(super) fn readable(&self, indices: &[usize]) -> Result<(Vec<usize>, Option<Tensor>)> {
        let indices: Vec<usize> = indices.iter().copied().filter(|&i| self.train[i].is_some()).collect();
        let rows = if indices.is_empty() { None } else { Some(self.train(&indices)?) };
        Ok((indices, rows))
    }

    /// How many training inputs there are, with a row or without.
    pub(super) fn train_len(&self) -> usize {
        self.train.len()
    }

    /// The training inputs without a row, and why.
    pub(super) fn broken(&self) -> &[(usize, String)] {
        &self.broken
    }

    /// The rows of all evaluation inputs.
    fn evaluation(&self) -> Result<Tensor> {
        select(&self.rows, &self.evaluation)
    }
}

/// The different ones of `inputs`, in the order in which they first appear, and which of them each input is.
pub(super) fn distinct<'i, T: std::hash::Hash + Eq + Clone + 'i>(
    inputs: impl IntoIterator<Item = &'i T>,
) -> (Vec<T>, Vec<u32>) {
    let (mut place, mut different) = (HashMap::new(), Vec::new());
    let mut row = |input: &T| {
        *place.entry(input.clone()).or_insert_with(|| {
            different.push(input.clone());
            (different.len() - 1) as u32
        })
    };
    let rows = inputs.into_iter().map(&mut row).collect();
    (different, rows)
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
    /// Pixel values from the worker threads, and what decides which patches are dropped.
    Loaded(BatchLoader<Result<PixelArray>>, Draws),
}

/// Which patches an epoch drops.
#[derive(Clone, Copy)]
pub(super) struct Draws {
    keep: f64,
    seed: u64,
    epoch: usize,
}

impl Draws {
    /// Of these images, if the tower is trained and patches are dropped at all.
    fn of(self, model: &ClipModel, indices: &[usize]) -> Result<Option<PatchDropout>> {
        let Self { keep, seed, epoch } = self;
        if keep == 1.0 || model.image_encoder().is_frozen() {
            return Ok(None);
        }
        let draw = |i: &usize| crate::random::hash(format!("{seed}/{epoch}/{i}").into_bytes());
        PatchDropout::new(keep, indices.iter().map(draw).collect()).map(Some)
    }
}

impl Images {
    pub(super) fn new(
        model: &ClipModel,
        config: &TrainConfig,
        train: Vec<ImageSource>,
        evaluation: &[ImageSource],
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Self> {
        let encoder = model.image_encoder();
        config.augment.validate()?;
        if encoder.is_frozen() && config.augment == Augment::default() {
            let total = train.len();
            let pool = |images: &[ImageSource]| pool_tolerated(model, images, config, total, progress);
            return Ok(Self::Kept(Kept::new(&train, evaluation, pool)?));
        }
        let processor = encoder.processor().clone();
        let images = ResizedImages::new(processor, config.augment, train, config.image_cache_bytes);
        Ok(Self::Files(Arc::new(images)))
    }

    /// Starts an epoch that visits the images in `order`.
    pub(super) fn epoch(&self, config: &TrainConfig, epoch: usize, order: &[usize]) -> Result<EpochImages<'_>> {
        match self {
            Self::Kept(kept) => Ok(EpochImages::Kept(kept)),
            Self::Files(images) => {
                let (images, seed, view) = (images.clone(), config.seed, config.view_of(epoch));
                let job = move |i| readable(images.view(i, seed, view));
                let TrainConfig { batch_size, workers, patch_keep: keep, .. } = *config;
                let config = LoaderConfig { batch_size, workers, prefetch: 2, last: LastBatch::Drop };
                let draws = Draws { keep, seed, epoch };
                Ok(EpochImages::Loaded(BatchLoader::new(order.to_vec(), config, job)?, draws))
            }
        }
    }

    /// The training images that are known to be unreadable before the first step, and why.
    pub(super) fn broken(&self) -> &[(usize, String)] {
        match self {
            Self::Kept(kept) => kept.broken(),
            Self::Files(_) => &[],
        }
    }

    /// The pooled outputs (N,E) of all evaluation images, which are `images`.
    pub(super) fn evaluation(
        &self,
        model: &ClipModel,
        images: &[ImageSource],
        workers: usize,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Tensor> {
        match self {
            Self::Kept(kept) => kept.evaluation(),
            Self::Files(_) => pool_images(model, images, workers, progress),
        }
    }
}

/// The next batch of an epoch.
pub(super) struct NextImages {
    /// The images that could be read, in order.
    pub(super) indices: Vec<usize>,
    /// What is known of them; `None` if there are none.
    pub(super) images: Option<ImageBatch>,
    /// The others, and why, unless they were known before.
    pub(super) broken: Vec<(usize, String)>,
}

impl NextImages {
    /// Without those that are not among `others`, which are of the same batch.
    pub(super) fn only(self, others: &[usize]) -> Result<Self> {
        let places = places(&self.indices, others);
        if places.len() == self.indices.len() {
            return Ok(self);
        }
        let indices = places.iter().map(|&place| self.indices[place]).collect();
        let images = self.images.filter(|_| !places.is_empty()).map(|images| images.rows(&places)).transpose()?;
        Ok(Self { indices, images, ..self })
    }
}

/// Where in `all` those are that are among `some`.
pub(super) fn places(all: &[usize], some: &[usize]) -> Vec<usize> {
    let some: HashSet<usize> = some.iter().copied().collect();
    all.iter().enumerate().filter(|(_, i)| some.contains(i)).map(|(place, _)| place).collect()
}

impl EpochImages<'_> {
    /// The images of the next batch, which `indices` are.
    pub(super) fn next(&mut self, model: &ClipModel, indices: &[usize]) -> Result<NextImages> {
        let mut broken = Vec::new();
        match self {
            Self::Kept(kept) => {
                let (indices, rows) = kept.readable(indices)?;
                Ok(NextImages { indices, images: rows.map(ImageBatch::Pooled), broken })
            }
            Self::Loaded(loader, draws) => {
                let ended = || Error::argument("order", "the loader ended before the epoch");
                let (mut good, mut arrays) = (Vec::with_capacity(indices.len()), Vec::with_capacity(indices.len()));
                for (&i, image) in indices.iter().zip(loader.next().ok_or_else(ended)??) {
                    match image {
                        Ok(array) => {
                            good.push(i);
                            arrays.push(array);
                        }
                        Err(error) => broken.push((i, reason(&error))),
                    }
                }
                if arrays.is_empty() {
                    return Ok(NextImages { indices: good, images: None, broken });
                }
                let pixels = PixelArray::stack(&arrays, model.image_encoder().device())?;
                let images = ImageBatch::Pixels(pixels, draws.of(model, &good)?);
                Ok(NextImages { indices: good, images: Some(images), broken })
            }
        }
    }
}

/// A batch's images, as far as they are known before the step.
pub(super) enum ImageBatch {
    /// Outputs of the frozen tower (B,E).
    Pooled(Tensor),
    /// Pixel values (B,C,H,W), and which of their patches the tower looks at, if not at all.
    Pixels(Tensor, Option<PatchDropout>),
}

impl ImageBatch {
    /// Features (rows,D) of some rows, with the graph of what is trained, in the projections' type.
    pub(super) fn features(&self, model: &ClipModel, rows: Range<usize>) -> Result<Tensor> {
        let part =
            |t: &Tensor| if rows.len() == t.dim(0)? { Ok(t.clone()) } else { t.narrow(0, rows.start, rows.len()) };
        match self {
            Self::Pooled(pooled) => model.project_image(&part(pooled)?),
            Self::Pixels(pixels, dropout) => {
                let (encoder, pixels) = (model.image_encoder(), part(pixels)?.contiguous()?);
                let pooled = match dropout {
                    Some(dropout) => encoder.pooled_of_some(&pixels, &dropout.rows(rows))?,
                    None => encoder.pooled(&pixels)?,
                };
                model.project_image(&pooled.to_dtype(model.dtype())?)
            }
        }
    }

    /// [`ImageBatch::features`] with the tokens of each image's patches behind them (rows, D + K·E), for a student whose patches are compared
    /// with its teacher's.
    pub(super) fn features_and_patches(&self, model: &ClipModel, rows: Range<usize>) -> Result<Tensor> {
        let Self::Pixels(pixels, dropout) = self else {
            return Err(Error::argument("patches", "cannot be compared: the image tower is frozen"));
        };
        let pixels = pixels.narrow(0, rows.start, rows.len())?.contiguous()?;
        let dropout = dropout.as_ref().map(|dropout| dropout.rows(rows));
        let (pooled, patches) =
            model.image_encoder().pooled_and_patches(&pixels, dropout.as_ref(), PatchDepth::TwoThirds)?;
        let features = model.project_image(&pooled.to_dtype(model.dtype())?)?;
        Ok(Tensor::cat(&[features, patches.flatten_from(1)?.to_dtype(model.dtype())?], 1)?)
    }

    /// Those of all `patches` (B,P,E) that the tower looks at (B,K,E).
    pub(super) fn kept_patches(&self, patches: &Tensor) -> Result<Tensor> {
        match self {
            Self::Pixels(_, Some(dropout)) => dropout.apply(patches, 0),
            Self::Pixels(_, None) | Self::Pooled(_) => Ok(patches.clone()),
        }
    }

    /// Some of the images, in this order.
    fn rows(&self, rows: &[usize]) -> Result<Self> {
        let part = |t: &Tensor| select(t, &rows.iter().map(|&row| row as u32).collect::<Vec<_>>());
        Ok(match self {
            Self::Pooled(pooled) => Self::Pooled(part(pooled)?),
            Self::Pixels(pixels, dropout) => {
                let dropout = dropout.as_ref().map(|dropout| dropout.rows(rows.iter().copied()));
                Self::Pixels(part(pixels)?, dropout)
            }
        })
    }

    /// Unit rows (B,D) of all, without a graph.
    pub(super) fn embeds_detached(&self, model: &ClipModel) -> Result<Tensor> {
        let pooled = match self {
            Self::Pooled(pooled) => pooled.clone(),
            Self::Pixels(pixels, _) => model.image_encoder().pooled_detached(pixels)?,
        };
        ops::l2_normalize(&model.project_image(&pooled)?.detach())
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

/// Training images as far as they are the same every epoch: kept in memory as far as the budget goes, read again beyond it.
pub(super) struct ResizedImages {
    processor: ImageProcessor,
    augment: Augment,
    sources: Vec<ImageSource>,
    kept: Vec<OnceLock<RgbImage>>,
    bytes: AtomicUsize,
    budget: usize,
}

impl ResizedImages {
    pub(super) fn new(processor: ImageProcessor, augment: Augment, sources: Vec<ImageSource>, budget: usize) -> Self {
        let kept = sources.iter().map(|_| OnceLock::new()).collect();
        Self { processor, augment, sources, kept, bytes: AtomicUsize::new(0), budget }
    }

    /// The pixel values of image `i` in its view `number`.
    pub(super) fn view(&self, i: usize, seed: u64, number: usize) -> Result<PixelArray> {
        let read;
        let resized = match self.kept[i].get() {
            Some(resized) => resized,
            None => {
                read = self.processor.augmentable(&self.sources[i], &self.augment)?;
                let bytes = read.as_raw().len();
                let room = |used: usize| used.checked_add(bytes).filter(|&used| used <= self.budget);
                if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
                    self.kept[i].get_or_init(|| read.clone());
                }
                &read
            }
        };
        let mut rng = Augment::rng(seed, number as u64, i as u64);
        self.processor.augmented(resized, &self.augment, &mut rng)
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
        let pool = |texts: &[&str]| Ok((pool_texts(model, texts, progress)?, Vec::new()));
        let kept = Kept::new(&all, evaluation, pool)?;
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
