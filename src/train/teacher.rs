//! A teacher beside the model in training: its unit rows of a batch's images and captions, which a
//! [`DistillLoss`](crate::loss::DistillLoss) compares the model's with.
//!
//! The teacher has its own image size and its own tokenizer, so it reads files and captions itself. Where it sees every image
//! as it is ([`TeacherView::Plain`]) it runs once over all images and all different captions, (N,D′) and (M,D′), f32; a step
//! then chooses rows. So it does where it sees the model's views and each image has K of them ([`TrainConfig::views`]): (K·N,D′),
//! view by view. Rows can be kept in a file: a second run has its teacher for nothing. An image that the teacher cannot read is
//! left out of the batch like one that the model cannot.

use std::path::PathBuf;

use candle_core::{Device, Tensor};

use super::config::TrainConfig;
use super::halves::{EpochImages, Images, Kept, distinct, places};
use super::pooled::{embed_captions, select};
use super::progress::Progress;
use super::teacher_patches::PatchShape;
use super::teacher_rows::{Inputs, Made};
use crate::data::Split;
use crate::image::{Augment, ImageSource};
use crate::loss::Teacher;
use crate::{ClipModel, Error, Result};

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
        /// Their patches (P·E), and what these are, where a student compares them with its own.
        patches: Option<(Kept, PatchShape)>,
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
    /// Unit rows of their patches (images,P,E), where they are compared.
    patches: Option<Tensor>,
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
        patches: Option<PatchShape>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Self> {
        let teacher = teacher.clone().with_trainable(|_| false)?;
        let captions: Vec<&str> = train.captions().iter().flatten().map(String::as_str).collect();
        let first = train.captions().iter().scan(0, |next, c| Some(std::mem::replace(next, *next + c.len()))).collect();
        let (texts, text_place) = distinct(&captions);
        let logit_scale = teacher.logit_scale()?;
        let windows = TrainConfig { augment: config.augment.windows(), ..config.clone() };
        let same = teaching.view == TeacherView::Same && windows.augment != Augment::default();
        if patches.is_some() && windows.augment != Augment::default() && (!same || config.views.is_none()) {
            let message = "cannot be compared where the teacher does not see the model's view of an image, or the view is new in every \
                epoch; say how many views an image has, and that the teacher sees the same";
            return Err(Error::argument("patches", message));
        }
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
        let inputs = Inputs { images: &images, views, total, texts: &texts, config: &windows, patches };
        let Made { images, without, texts, patches: rows } =
            inputs.rows(&teacher, teaching.cache.as_deref(), progress)?;
        let kept = Kept::of(images.tensor()?, without, &places, &[])?;
        let patches = rows.zip(patches).map(|(rows, shape)| (kept.with_rows(rows), shape));
        let images = TeacherImages::Rows { kept, images: total, patches };
        Ok(Self { images, texts: Rows { rows: texts.tensor()?, place: text_place }, first, logit_scale })
    }

    /// The training images that the teacher is known not to be able to read, and why.
    pub(super) fn broken(&self) -> &[(usize, String)] {
        match &self.images {
            // Who cannot be read once cannot be read in another view.
            TeacherImages::Rows { kept, images, .. } => {
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
                Ok(SeenImages { indices: next.indices, rows, patches: None, broken: next.broken })
            }
            (TeacherImages::Rows { kept, images, patches }, None) => {
                let first = if kept.train_len() > *images { self.view * images } else { 0 };
                let wanted: Vec<usize> = indices.iter().map(|i| first + i).collect();
                let (rows_of, rows) = kept.readable(&wanted)?;
                let of_patches = |(kept, shape): &(Kept, PatchShape)| -> Result<Option<Tensor>> {
                    let rows = kept.readable(&wanted)?.1;
                    Ok(rows.map(|rows| rows.reshape(((), shape.count, shape.width))).transpose()?)
                };
                let patches = patches.as_ref().map_or(Ok(None), of_patches)?;
                let indices = rows_of.into_iter().map(|i| i - first).collect();
                Ok(SeenImages { indices, rows, patches, broken: Vec::new() })
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
        let patches =
            seen.patches.map(|patches| Ok::<_, Error>(select(&patches, &rows)?.to_device(device)?)).transpose()?;
        let (image_embeds, text_embeds) = (image_embeds.to_device(device)?, text_embeds.to_device(device)?);
        Ok(Teacher { image_embeds, text_embeds, logit_scale: data.logit_scale, patches })
    }
}
