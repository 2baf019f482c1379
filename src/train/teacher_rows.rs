//! The rows that a teacher makes of images and texts, kept in a file where the next run wants them.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::broken::readable;
use super::config::TrainConfig;
use super::halves::ResizedImages;
use super::pooled::{embed_captions, pool_pixels, pool_views};
use super::progress::Progress;
use super::teacher_patches::{PatchShape, PatchTargets};
use crate::image::{Augment, ImageSource, PixelArray};
use crate::towers::PatchDepth;
use crate::weights::save_safetensors;
use crate::{ClipModel, Embeddings, Error, Result};

/// How many rows of a file a teacher must reproduce before the file counts as its own.
const CHECKED_ROWS: usize = 4;
/// How far such a row may be from the file's.
const CLOSE: f32 = 1e-3;

/// What a teacher is run on: images, of which the training set has `total`, as they are or in so many views, and different texts.
pub(super) struct Inputs<'i> {
    pub(super) images: &'i [ImageSource],
    pub(super) views: Option<usize>,
    pub(super) total: usize,
    pub(super) texts: &'i [&'i str],
    pub(super) config: &'i TrainConfig,
    /// The student's patches, where the teacher's are compared with them.
    pub(super) patches: Option<PatchShape>,
}

/// What a teacher makes of its inputs: unit rows of the images that it can read, the others, and unit rows of the texts.
pub(super) struct Made {
    pub(super) images: Embeddings,
    pub(super) without: Vec<(usize, Error)>,
    pub(super) texts: Embeddings,
    /// Unit rows of the images' patches (images, P·E), f16.
    pub(super) patches: Option<Tensor>,
}

impl Inputs<'_> {
    /// Unit rows of images and texts, from the file `cache` where they are in it, and kept there where they are not.
    pub(super) fn rows(
        &self,
        teacher: &ClipModel,
        cache: Option<&Path>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Made> {
        let key = self.key();
        if let Some(path) = cache.filter(|path| path.exists())
            && let Some(found) = self.read(teacher, path, key)?
        {
            return Ok(found);
        }
        let (count, read) = (self.count(), self.reader(teacher));
        let mut patches = self.patches.map(PatchTargets::new);
        let encoder = teacher.image_encoder();
        let mut forward = |arrays: &[PixelArray]| {
            let pixels = PixelArray::stack(arrays, encoder.device())?;
            let Some(patches) = &mut patches else { return encoder.pooled_detached(&pixels) };
            let (pooled, tokens) = encoder.pooled_and_patches(&pixels, None, PatchDepth::Last)?;
            patches.push(&tokens.detach())?;
            Ok(pooled.detach())
        };
        let (pooled, without) = pool_views(self.images, count, read, self.config, self.total, &mut forward, progress)?;
        let patches = patches.map(PatchTargets::finish).transpose()?;
        let images = Embeddings::from_features(&teacher.project_image(&pooled)?)?;
        let texts = embed_captions(teacher, self.texts, progress)?;
        if let Some(path) = cache {
            let key = Tensor::new(&[key], &Device::Cpu)?;
            let mut tensors = vec![(IMAGES, images.tensor()?), (TEXTS, texts.tensor()?), (KEY, key)];
            tensors.extend(patches.iter().map(|patches| (PATCHES, patches.clone())));
            if !without.is_empty() {
                let indices: Vec<i64> = without.iter().map(|(i, _)| *i as i64).collect();
                tensors.push((WITHOUT, Tensor::new(indices, &Device::Cpu)?));
            }
            save_safetensors(path, tensors, &[("diptych", "what a teacher makes of images and texts")])?;
        }
        Ok(Made { images, without, texts, patches })
    }

    /// How many pixel values there are to look at.
    fn count(&self) -> usize {
        self.images.len() * self.views.unwrap_or(1)
    }

    /// Pixel values by their number.
    fn reader(&self, teacher: &ClipModel) -> impl Fn(usize) -> Result<PixelArray> + Send + Sync + use<> {
        let (processor, sources) = (teacher.image_encoder().processor().clone(), self.images.to_vec());
        let TrainConfig { augment, image_cache_bytes, seed, .. } = *self.config;
        let (count, views) = (sources.len(), self.views.is_some());
        let augment = if views { augment } else { Augment::default() };
        let images =
            Arc::new(ResizedImages::new(processor, augment, sources, if views { image_cache_bytes } else { 0 }));
        move |i| images.view(i % count, seed, i / count)
    }

    /// What distinguishes these inputs from others: the images' names, the lengths of those that are files, their views, and the texts.
    fn key(&self) -> i64 {
        let bytes = |image: &ImageSource| match image {
            ImageSource::File(path) => std::fs::metadata(path).map_or(0, |found| found.len()),
            ImageSource::Stored(..) => 0,
        };
        let images = self.images.iter().map(|image| format!("{image}\0{}\n", bytes(image)));
        let patches = self.patches.map(|patches| format!("{patches:?}"));
        let views = self.views.map(|views| format!("{views} {:?} {}", self.config.augment, self.config.seed));
        let all = images.chain(self.texts.iter().map(|text| format!("{text}\n"))).chain(views).chain(patches);
        crate::random::hash(all.flat_map(String::into_bytes)).cast_signed()
    }

    /// The rows of a file, if they are of these inputs and the teacher makes the same of the first ones.
    fn read(&self, teacher: &ClipModel, path: &Path, key: i64) -> Result<Option<Made>> {
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|e| Error::file(path, e))?;
        let mut take = |name: &str| {
            let message = "is no file of a teacher's rows, and will not be written over; choose another name";
            tensors.remove(name).ok_or_else(|| Error::file(path, message))
        };
        let (images, texts, found) = (take(IMAGES)?, take(TEXTS)?, take(KEY)?);
        let Some(without) = self.still_broken(teacher, tensors.remove(WITHOUT))? else { return Ok(None) };
        let shape = |t: &Tensor, count: usize| t.dtype() == DType::F32 && t.rank() == 2 && t.dims()[0] == count;
        let patches = match (self.patches, tensors.remove(PATCHES)) {
            (None, _) => None,
            (Some(shape), Some(patches)) if patches.dims() == [images.dim(0)?, shape.count * shape.width] => {
                Some(patches)
            }
            (Some(_), _) => return Ok(None),
        };
        let fits = without.len() < self.count()
            && shape(&images, self.count() - without.len())
            && shape(&texts, self.texts.len());
        if !fits || found.dtype() != DType::I64 || found.flatten_all()?.to_vec1::<i64>()? != [key] {
            return Ok(None);
        }
        let (images, texts) = (Embeddings::from_features(&images)?, Embeddings::from_features(&texts)?);
        let has_row = |i: &usize| without.binary_search_by_key(i, |(broken, _)| *broken).is_err();
        let first: Vec<usize> = (0..self.count()).filter(has_row).take(CHECKED_ROWS).collect();
        let read = self.reader(teacher);
        let pooled = pool_pixels(teacher, first.len(), move |i| read(first[i]))?;
        let ours = Embeddings::from_features(&teacher.project_image(&pooled)?)?;
        let some_texts = &self.texts[..self.texts.len().min(CHECKED_ROWS)];
        let same = agree(&ours, &images) && agree(&embed_captions(teacher, some_texts, &mut |_| {})?, &texts);
        Ok(same.then_some(Made { images, without, texts, patches }))
    }

    /// The images that have no row in a file, if they still cannot be read, and why.
    fn still_broken(&self, teacher: &ClipModel, indices: Option<Tensor>) -> Result<Option<Vec<(usize, Error)>>> {
        let indices = match indices {
            Some(indices) if indices.dtype() == DType::I64 => indices.flatten_all()?.to_vec1::<i64>()?,
            Some(_) => return Ok(None),
            None => Vec::new(),
        };
        let (read, mut without) = (self.reader(teacher), Vec::with_capacity(indices.len()));
        for index in indices {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let rises = without.last().is_none_or(|&(last, _)| last < index);
            if index >= self.count() || !rises {
                return Ok(None);
            }
            match readable(read(index))? {
                Ok(_) => return Ok(None),
                Err(error) => without.push((index, error)),
            }
        }
        Ok(Some(without))
    }
}

/// Names in the file.
const IMAGES: &str = "image_embeds";
const TEXTS: &str = "text_embeds";
const PATCHES: &str = "patches";
const KEY: &str = "key";
/// The images that have no row, where there are any.
const WITHOUT: &str = "without";

/// Whether the rows of `some` are the first rows of `all`.
fn agree(some: &Embeddings, all: &Embeddings) -> bool {
    let close = |(a, b): (&[f32], &[f32])| a.iter().zip(b).all(|(a, b)| (a - b).abs() < CLOSE);
    some.dim() == all.dim() && some.rows().zip(all.rows()).all(close)
}
