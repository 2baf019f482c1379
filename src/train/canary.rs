//! [`Canary`]: a zero-shot task that is watched while something else is learned, as miners watched a bird: when it does worse,
//! the model is losing what it knew.

use std::path::Path;

use candle_core::Tensor;

use super::pooled::pool_images;
use super::progress::Progress;
use crate::data::{LabelledImages, LabelledSplit};
use crate::image::ImageSource;
use crate::zero_shot::{Template, ZeroShotReport};
use crate::{ClipModel, Embeddings, Error, Result};

/// Labelled images and the words for their classes.
#[derive(Debug, Clone)]
pub struct Canary {
    labels: Vec<String>,
    templates: Vec<Template>,
    images: Vec<ImageSource>,
    targets: Vec<usize>,
}

impl Canary {
    /// The images of `split`, which is one of `data`'s, under `folder`; classes are called as
    /// [`LabelledImages::class_names`] says, in "a photo of a {}".
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if there is no image, [`File`](crate::ErrorKind::File) if one is missing.
    pub fn from_split(data: &LabelledImages, split: &LabelledSplit, folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        split.check_images(folder)?;
        let images = split.images().iter().map(|image| ImageSource::File(folder.join(image))).collect();
        Self::new(data.class_names(), images, split.classes().to_vec())
    }

    /// `images` whose classes are the `targets` among `labels`.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if there is no image, or the numbers do not fit.
    pub fn new(labels: Vec<String>, images: Vec<ImageSource>, targets: Vec<usize>) -> Result<Self> {
        if images.is_empty() || images.len() != targets.len() {
            let message = format!("{} images with {} classes; at least one is needed", images.len(), targets.len());
            return Err(Error::argument("canary", message));
        }
        if let Some(target) = targets.iter().find(|&&target| target >= labels.len()) {
            return Err(Error::argument("canary", format!("class {target} of {} labels", labels.len())));
        }
        Ok(Self { labels, templates: Template::photo(), images, targets })
    }

    /// The same with other prompts, averaged a class.
    #[must_use]
    pub fn with_templates(self, templates: Vec<Template>) -> Self {
        Self { templates, ..self }
    }

    /// How well `model` does, in percent. Images are decoded on `workers` threads.
    ///
    /// # Errors
    /// When a label is blank or named twice, or an image cannot be read.
    pub fn measure(
        &self,
        model: &ClipModel,
        workers: usize,
        mut progress: impl FnMut(&Progress),
    ) -> Result<ZeroShotReport> {
        self.measure_pooled(model, &self.pool(model, workers, &mut progress)?)
    }

    /// The image tower's outputs (N,E), which stay the same where it is frozen.
    pub(super) fn pool(
        &self,
        model: &ClipModel,
        workers: usize,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Tensor> {
        pool_images(model, &self.images, workers, progress)
    }

    pub(super) fn measure_pooled(&self, model: &ClipModel, pooled: &Tensor) -> Result<ZeroShotReport> {
        let images = Embeddings::from_features(&model.project_image(pooled)?)?;
        model.zero_shot_with(&self.labels, &self.templates)?.head().evaluate(&images, &self.targets)
    }

    /// What distinguishes this task from others.
    pub(super) fn key(&self) -> u64 {
        let lines = self.images.iter().zip(&self.targets).map(|(image, target)| format!("{image}\0{target}\n"));
        let words = self.labels.iter().map(|label| format!("{label}\n"));
        let prompts = self.templates.iter().map(|template| format!("{template:?}\n"));
        crate::random::hash(lines.chain(words).chain(prompts).flat_map(String::into_bytes))
    }

    /// Numbers of images and classes.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.images.len(), self.labels.len())
    }
}
