//! A teacher beside the model in training: its unit rows of a batch's images and captions, which a
//! [`DistillLoss`](crate::loss::DistillLoss) compares the model's with.
//!
//! The teacher has its own image size and its own tokenizer, so it reads files and captions itself. Where it sees every image
//! as it is ([`TeacherView::Plain`]) it runs once over all images and all different captions, (N,D′) and (M,D′), f32; a step
//! then chooses rows. So it does where it sees the model's views and each image has K of them ([`TrainConfig::views`]): (K·N,D′),
//! view by view. Rows can be kept in a file: a second run has its teacher for nothing. An image that the teacher cannot read is
//! left out of the batch like one that the model cannot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::broken::readable;
use super::config::TrainConfig;
use super::halves::{EpochImages, Images, Kept, ResizedImages, distinct, places};
use super::pooled::{embed_captions, pool_pixels, pool_views, select};
use super::progress::Progress;
use crate::data::Split;
use crate::image::{Augment, ImageSource, PixelArray};
use crate::loss::Teacher;
use crate::weights::save_safetensors;
use crate::{ClipModel, Embeddings, Error, Result};

/// How many rows of a file a teacher must reproduce before the file counts as its own.
const CHECKED_ROWS: usize = 4;
/// How far such a row may be from the file's.
const CLOSE: f32 = 1e-3;

/// How a teacher takes part in a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TeacherConfig {
    /// What it sees of an image.
    pub view: TeacherView,
    /// A file that keeps its rows of images and captions for the next run; made if it is not there, made anew if it is another
    /// teacher's, of other data or of other views. Where the model sees new views in every epoch there is nothing to keep.
    pub cache: Option<PathBuf>,
}

/// What a teacher sees of an image that is augmented for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TeacherView {
    /// The image as in evaluation, whatever the model sees: the teacher runs once.
    #[default]
    Plain,
    /// The part of the image that the model sees, mirrored alike, drawn from the same random numbers (Beyer et al. 2022, arXiv
    /// 2106.05237, "consistent teaching"), but in its own colours and sharp. Parts agree as far as both processors resize to
    /// the same proportions. The teacher's image tower runs in every step, or once a view if [`TrainConfig::views`] says how many there are.
    Same,
}

/// Where a teacher's rows come from.
pub(super) struct TeacherData {
    images: TeacherImages,
    texts: Rows,
    /// Where each image's captions begin among all.
    first: Vec<usize>,
    logit_scale: f64,
}

enum TeacherImages {
    /// Rows of all `images`, then those of their second views, and so on.
    Rows {
        kept: Kept,
        images: usize,
    },
    Views(Box<ClipModel>, Images),
}

/// Unit rows of different texts, and which row each text has.
struct Rows {
    rows: Tensor,
    place: Vec<u32>,
}

impl Rows {
    fn of(&self, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
        select(&self.rows, &indices.map(|i| self.place[i]).collect::<Vec<_>>())
    }
}

/// What a teacher makes of a batch's images.
pub(super) struct SeenImages {
    /// The images that could be read, in order.
    pub(super) indices: Vec<usize>,
    /// Their unit rows, if there are any.
    rows: Option<Tensor>,
    /// The others, and why, unless they were known before.
    pub(super) broken: Vec<(usize, String)>,
}

/// One epoch of a teacher.
pub(super) struct TeacherEpoch<'t> {
    data: &'t TeacherData,
    view: usize,
    views: Option<(&'t ClipModel, EpochImages<'t>)>,
}

impl TeacherData {
    /// Runs `teacher` over the `images` of `train` and its captions, or reads what it made of them before.
    pub(super) fn new(
        teacher: &ClipModel,
        teaching: &TeacherConfig,
        config: &TrainConfig,
        train: &Split,
        images: Vec<ImageSource>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Self> {
        let teacher = teacher.clone().with_trainable(|_| false)?;
        let captions: Vec<&str> = train.captions().iter().flatten().map(String::as_str).collect();
        let first = train.captions().iter().scan(0, |next, c| Some(std::mem::replace(next, *next + c.len()))).collect();
        let (texts, text_place) = distinct(&captions);
        let logit_scale = teacher.logit_scale()?;
        let windows = TrainConfig { augment: config.augment.windows(), ..config.clone() };
        let same = teaching.view == TeacherView::Same && windows.augment != Augment::default();
        if same && config.views.is_none() {
            if teaching.cache.is_some() {
                let message = "cannot keep rows of views that are new in every epoch; say how many views an image has";
                return Err(Error::argument("cache", message));
            }
            let texts = Rows { rows: embed_captions(&teacher, &texts, progress)?.tensor()?, place: text_place };
            let images = Images::new(&teacher, &windows, images, &[], progress)?;
            return Ok(Self { images: TeacherImages::Views(teacher.into(), images), texts, first, logit_scale });
        }
        let total = images.len();
        let views = if same { config.views } else { None };
        // Views are drawn by an image's index, so that even of one file they differ.
        let (images, places) = match views {
            Some(views) => (images, (0..(total * views) as u32).collect()),
            None => distinct(&images),
        };
        let inputs = Inputs { images: &images, views, total, texts: &texts, config: &windows };
        let Made { images, without, texts } = inputs.rows(&teacher, teaching.cache.as_deref(), progress)?;
        let kept = Kept::of(images.tensor()?, without, &places, &[])?;
        let images = TeacherImages::Rows { kept, images: total };
        Ok(Self { images, texts: Rows { rows: texts.tensor()?, place: text_place }, first, logit_scale })
    }

    /// The training images that the teacher is known not to be able to read, and why.
    pub(super) fn broken(&self) -> &[(usize, String)] {
        match &self.images {
            // Who cannot be read once cannot be read in another view.
            TeacherImages::Rows { kept, images } => {
                let broken = kept.broken();
                &broken[..broken.partition_point(|(i, _)| i < images)]
            }
            TeacherImages::Views(_, images) => images.broken(),
        }
    }

    /// Starts an epoch that visits the images in `order`.
    pub(super) fn epoch(&self, config: &TrainConfig, epoch: usize, order: &[usize]) -> Result<TeacherEpoch<'_>> {
        let views = match &self.images {
            TeacherImages::Rows { .. } => None,
            TeacherImages::Views(teacher, images) => Some((&**teacher, images.epoch(config, epoch, order)?)),
        };
        Ok(TeacherEpoch { data: self, view: config.view_of(epoch), views })
    }
}

impl TeacherEpoch<'_> {
    /// What the teacher makes of the next batch's images, which `indices` are.
    pub(super) fn next(&mut self, indices: &[usize]) -> Result<SeenImages> {
        match (&self.data.images, &mut self.views) {
            (_, Some((teacher, views))) => {
                let next = views.next(teacher, indices)?;
                let rows = next.images.map(|images| images.embeds_detached(teacher)).transpose()?;
                Ok(SeenImages { indices: next.indices, rows, broken: next.broken })
            }
            (TeacherImages::Rows { kept, images }, None) => {
                let first = if kept.train_len() > *images { self.view * images } else { 0 };
                let (rows_of, rows) = kept.readable(&indices.iter().map(|i| first + i).collect::<Vec<_>>())?;
                let indices = rows_of.into_iter().map(|i| i - first).collect();
                Ok(SeenImages { indices, rows, broken: Vec::new() })
            }
            (TeacherImages::Views(..), None) => Err(Error::argument("teacher", "its epoch has no views")),
        }
    }

    /// The teacher of `pairs`, which are an image's index and its caption's index; the images are some of `seen`, in its order.
    pub(super) fn of(&self, seen: SeenImages, pairs: &[(usize, usize)], device: &Device) -> Result<Teacher> {
        let data = self.data;
        let wanted: Vec<usize> = pairs.iter().map(|&(image, _)| image).collect();
        let rows = places(&seen.indices, &wanted).into_iter().map(|row| row as u32).collect::<Vec<_>>();
        let missing = || Error::argument("teacher", "it read no image of the batch");
        let image_embeds = select(&seen.rows.ok_or_else(missing)?, &rows)?;
        let text_embeds = data.texts.of(pairs.iter().map(|&(image, caption)| data.first[image] + caption))?;
        let to = |rows: Tensor| rows.to_device(device);
        Ok(Teacher { image_embeds: to(image_embeds)?, text_embeds: to(text_embeds)?, logit_scale: data.logit_scale })
    }
}

/// What a teacher is run on: images, of which the training set has `total`, as they are or in so many views, and different texts.
struct Inputs<'i> {
    images: &'i [ImageSource],
    views: Option<usize>,
    total: usize,
    texts: &'i [&'i str],
    config: &'i TrainConfig,
}

/// What a teacher makes of its inputs: unit rows of the images that it can read, the others, and unit rows of the texts.
struct Made {
    images: Embeddings,
    without: Vec<(usize, Error)>,
    texts: Embeddings,
}

impl Inputs<'_> {
    /// Unit rows of images and texts, from the file `cache` where they are in it, and kept there where they are not.
    fn rows(&self, teacher: &ClipModel, cache: Option<&Path>, progress: &mut dyn FnMut(&Progress)) -> Result<Made> {
        let key = self.key();
        if let Some(path) = cache.filter(|path| path.exists())
            && let Some(found) = self.read(teacher, path, key)?
        {
            return Ok(found);
        }
        let (count, read) = (self.count(), self.reader(teacher));
        let (pooled, without) = pool_views(teacher, self.images, count, read, self.config, self.total, progress)?;
        let images = Embeddings::from_features(&teacher.project_image(&pooled)?)?;
        let texts = embed_captions(teacher, self.texts, progress)?;
        if let Some(path) = cache {
            let key = Tensor::new(&[key], &Device::Cpu)?;
            let mut tensors = vec![(IMAGES, images.tensor()?), (TEXTS, texts.tensor()?), (KEY, key)];
            if !without.is_empty() {
                let indices: Vec<i64> = without.iter().map(|(i, _)| *i as i64).collect();
                tensors.push((WITHOUT, Tensor::new(indices, &Device::Cpu)?));
            }
            save_safetensors(path, tensors, &[("diptych", "what a teacher makes of images and texts")])?;
        }
        Ok(Made { images, without, texts })
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
        let views = self.views.map(|views| format!("{views} {:?} {}", self.config.augment, self.config.seed));
        let all = images.chain(self.texts.iter().map(|text| format!("{text}\n"))).chain(views);
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
        Ok(same.then_some(Made { images, without, texts }))
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
const KEY: &str = "key";
/// The images that have no row, where there are any.
const WITHOUT: &str = "without";

/// Whether the rows of `some` are the first rows of `all`.
fn agree(some: &Embeddings, all: &Embeddings) -> bool {
    let close = |(a, b): (&[f32], &[f32])| a.iter().zip(b).all(|(a, b)| (a - b).abs() < CLOSE);
    some.dim() == all.dim() && some.rows().zip(all.rows()).all(close)
}
