//! [`ZeroShot`]: a model and a head made of class names.

use crate::image::ImageInput;
use crate::zero_shot::{Classification, Template, ZeroShotHead, prompts};
use crate::{ClipModel, LogitConfig, Result};

/// A zero-shot classifier: each class is the mean of its prompts' embeddings (Radford et al. 2021, section 3.1.4; reference:
/// `zero_shot_classifier.py` of open_clip).
#[derive(Clone)]
pub struct ZeroShot<'m> {
    model: &'m ClipModel,
    head: ZeroShotHead,
}

impl<'m> ZeroShot<'m> {
    pub(crate) fn new(model: &'m ClipModel, labels: &[impl AsRef<str>], templates: &[Template]) -> Result<Self> {
        let embeddings = model.embed_texts(&prompts(labels, templates)?)?;
        let scale = model.logit_scale()? as f32;
        let head = ZeroShotHead::from_prompt_embeddings(labels, &embeddings, templates.len(), scale)?;
        let head = match model.config().logits {
            LogitConfig::ScaleAndBias => head.with_bias(model.logit_bias()? as f32)?,
            LogitConfig::Scale | LogitConfig::Cosine => head,
        };
        Ok(Self { model, head })
    }

    /// The classes of one image, most probable first. Probabilities are the softmax over the classes, or, where the model has
    /// a logit bias (SigLIP), the sigmoid of each class alone.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn classify(&self, image: impl Into<ImageInput>) -> Result<Vec<Classification>> {
        Ok(self.classify_all([image])?.pop().unwrap_or_default())
    }

    /// The classes of each image, most probable first.
    ///
    /// # Errors
    /// When the list is empty or an image cannot be read; the error names it.
    pub fn classify_all<I>(&self, images: I) -> Result<Vec<Vec<Classification>>>
    where
        I: IntoIterator,
        I::Item: Into<ImageInput>,
    {
        self.head.probabilities(&self.model.embed_images(images)?)
    }

    /// The head alone: labels and one unit row a class, to keep or to apply to embeddings at hand.
    #[must_use]
    pub fn head(&self) -> &ZeroShotHead {
        &self.head
    }
}
