//! A teacher beside the model in training: its unit rows of a batch's images and captions, which a
//! [`DistillLoss`](crate::loss::DistillLoss) compares the model's with.
//!
//! The teacher has its own image size and its own tokenizer, so it reads files and captions itself. Where it sees every image
//! as it is ([`TeacherView::Plain`]) it runs once over all images and all different captions, (N,D′) and (M,D′), f32; a step
//! then chooses rows. They can be kept in a file: a second run has its teacher for nothing.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::config::TrainConfig;
use super::halves::{EpochImages, Images, distinct};
use super::pooled::{embed_captions, embed_files, select};
use super::progress::Progress;
use crate::data::Split;
use crate::image::Augment;
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
    /// A file that keeps its rows of plain images and captions for the next run; made if it is not there, made anew if it is
    /// another teacher's or of other data.
    pub cache: Option<PathBuf>,
}

/// What a teacher sees of an image that is augmented for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TeacherView {
    /// The image as in evaluation, whatever the model sees: the teacher runs once.
    #[default]
    Plain,
    /// The model's view, drawn from the same random numbers (Beyer et al. 2022, arXiv 2106.05237, "consistent teaching"): the
    /// teacher's image tower runs in every step. Windows agree as far as both processors resize to the same proportions.
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
    Rows(Rows),
    Views(Box<ClipModel>, Images),
}

/// Unit rows of different inputs, and which row each input has.
struct Rows {
    rows: Tensor,
    place: Vec<u32>,
}

impl Rows {
    fn of(&self, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
        select(&self.rows, &indices.map(|i| self.place[i]).collect::<Vec<_>>())
    }
}

/// One epoch of a teacher.
pub(super) struct TeacherEpoch<'t> {
    data: &'t TeacherData,
    views: Option<(&'t ClipModel, EpochImages<'t>)>,
}

impl TeacherData {
    /// Runs `teacher` over the images `files` of `train` and its captions, or reads what it made of them before.
    pub(super) fn new(
        teacher: &ClipModel,
        teaching: &TeacherConfig,
        config: &TrainConfig,
        train: &Split,
        files: Vec<PathBuf>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Self> {
        let teacher = teacher.clone().with_trainable(|_| false)?;
        let captions: Vec<&str> = train.captions().iter().flatten().map(String::as_str).collect();
        let first = train.captions().iter().scan(0, |next, c| Some(std::mem::replace(next, *next + c.len()))).collect();
        let (texts, text_place) = distinct(&captions);
        let logit_scale = teacher.logit_scale()?;
        if teaching.view == TeacherView::Same && config.augment != Augment::default() {
            let texts = Rows { rows: embed_captions(&teacher, &texts, progress)?.tensor()?, place: text_place };
            let images = Images::new(&teacher, config, files, &[], progress)?;
            return Ok(Self { images: TeacherImages::Views(teacher.into(), images), texts, first, logit_scale });
        }
        let (files, image_place) = distinct(&files);
        let inputs = Inputs { files: &files, texts: &texts, workers: config.workers };
        let (images, texts) = inputs.rows(&teacher, teaching.cache.as_deref(), progress)?;
        let images = TeacherImages::Rows(Rows { rows: images.tensor()?, place: image_place });
        Ok(Self { images, texts: Rows { rows: texts.tensor()?, place: text_place }, first, logit_scale })
    }

    /// Starts an epoch that visits the images in `order`.
    pub(super) fn epoch(&self, config: &TrainConfig, epoch: usize, order: &[usize]) -> Result<TeacherEpoch<'_>> {
        let views = match &self.images {
            TeacherImages::Rows(_) => None,
            TeacherImages::Views(teacher, images) => Some((&**teacher, images.epoch(config, epoch, order)?)),
        };
        Ok(TeacherEpoch { data: self, views })
    }
}

impl TeacherEpoch<'_> {
    /// The teacher's rows of the next batch: pairs of an image's index and its caption's index.
    pub(super) fn next(&mut self, pairs: &[(usize, usize)], device: &Device) -> Result<Teacher> {
        let indices: Vec<usize> = pairs.iter().map(|&(image, _)| image).collect();
        let data = self.data;
        let image_embeds = match (&data.images, &mut self.views) {
            (_, Some((teacher, views))) => views.next(teacher, &indices)?.embeds_detached(teacher)?,
            (TeacherImages::Rows(rows), None) => rows.of(indices.into_iter())?,
            (TeacherImages::Views(..), None) => return Err(Error::argument("teacher", "its epoch has no views")),
        };
        let text_embeds = data.texts.of(pairs.iter().map(|&(image, caption)| data.first[image] + caption))?;
        let to = |rows: Tensor| rows.to_device(device);
        Ok(Teacher { image_embeds: to(image_embeds)?, text_embeds: to(text_embeds)?, logit_scale: data.logit_scale })
    }
}

/// What a teacher is run on.
struct Inputs<'i> {
    files: &'i [PathBuf],
    texts: &'i [&'i str],
    workers: usize,
}

impl Inputs<'_> {
    /// Unit rows of files and texts, from the file `cache` where they are in it, and kept there where they are not.
    fn rows(
        &self,
        teacher: &ClipModel,
        cache: Option<&Path>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(Embeddings, Embeddings)> {
        let key = self.key();
        if let Some(path) = cache.filter(|path| path.exists())
            && let Some(found) = self.read(teacher, path, key)?
        {
            return Ok(found);
        }
        let images = embed_files(teacher, self.files, self.workers, progress)?;
        let texts = embed_captions(teacher, self.texts, progress)?;
        if let Some(path) = cache {
            let key = Tensor::new(&[key], &Device::Cpu)?;
            let tensors = [(IMAGES, images.tensor()?), (TEXTS, texts.tensor()?), (KEY, key)];
            save_safetensors(path, tensors, &[("diptych", "what a teacher makes of images and texts")])?;
        }
        Ok((images, texts))
    }

    /// What distinguishes these inputs from others: names and lengths of the files, and the texts.
    fn key(&self) -> i64 {
        let bytes = |file: &PathBuf| std::fs::metadata(file).map_or(0, |found| found.len());
        let files = self.files.iter().map(|file| format!("{}\0{}\n", file.display(), bytes(file)));
        let all = files.chain(self.texts.iter().map(|text| format!("{text}\n")));
        crate::random::hash(all.flat_map(String::into_bytes)).cast_signed()
    }

    /// The rows of a file, if they are of these inputs and the teacher makes the same of the first ones.
    fn read(&self, teacher: &ClipModel, path: &Path, key: i64) -> Result<Option<(Embeddings, Embeddings)>> {
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|e| Error::file(path, e))?;
        let mut take = |name: &str| {
            let message = "is no file of a teacher's rows, and will not be written over; choose another name";
            tensors.remove(name).ok_or_else(|| Error::file(path, message))
        };
        let (images, texts, found) = (take(IMAGES)?, take(TEXTS)?, take(KEY)?);
        let shape = |t: &Tensor, count: usize| t.dtype() == DType::F32 && t.rank() == 2 && t.dims()[0] == count;
        let fits = shape(&images, self.files.len()) && shape(&texts, self.texts.len());
        if !fits || found.dtype() != DType::I64 || found.flatten_all()?.to_vec1::<i64>()? != [key] {
            return Ok(None);
        }
        let rows = (Embeddings::from_features(&images)?, Embeddings::from_features(&texts)?);
        let (files, first) = (self.files.len().min(CHECKED_ROWS), self.texts.len().min(CHECKED_ROWS));
        let ours = embed_files(teacher, &self.files[..files], 1, &mut |_| {})?;
        let same =
            agree(&ours, &rows.0) && agree(&embed_captions(teacher, &self.texts[..first], &mut |_| {})?, &rows.1);
        Ok(same.then_some(rows))
    }
}

/// Names in the file.
const IMAGES: &str = "image_embeds";
const TEXTS: &str = "text_embeds";
const KEY: &str = "key";

/// Whether the rows of `some` are the first rows of `all`.
fn agree(some: &Embeddings, all: &Embeddings) -> bool {
    let close = |(a, b): (&[f32], &[f32])| a.iter().zip(b).all(|(a, b)| (a - b).abs() < CLOSE);
    some.dim() == all.dim() && some.rows().zip(all.rows()).all(close)
}
