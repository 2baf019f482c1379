//! One step of [`Trainer`]: loss and gradients of its batches, checked, and the optimiser's move.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use super::config::Duplicates;
use super::grad_cache::{CachedSide, GradientSum, cached_backward};
use super::gradient_check::check_gradients;
use super::halves::{ImageBatch, TextBatch};
use super::pitfalls::{Geometry, Pitfall, collapsed, saturated};
use super::progress::Progress;
use super::trainer::Trainer;
use crate::data::Split;
use crate::logit_scale::LogitScale;
use crate::loss::{Pairs, Positives, Teacher};
use crate::weights::Pattern;
use crate::{Error, ErrorKind, Result, ops};

/// Parameters whose gradient mathematics makes zero: softmax does not see what is added to all keys, and LoRA's A is behind a B
/// that starts at zero.
const MAY_BE_ZERO: [&str; 2] = ["*.k_proj.bias", "*.lora_A.weight"];

/// How many of a batch's images an error names.
const NAMED_IMAGES: usize = 8;

/// A batch of one loss.
pub(super) struct Batch {
    /// What is known of the images.
    pub(super) images: ImageBatch,
    /// What is known of the texts.
    pub(super) texts: TextBatch,
    /// Each pair's image and its caption, as indices.
    pub(super) captions: Vec<(usize, usize)>,
    /// What the teacher makes of them, where there is one.
    pub(super) teacher: Option<Teacher>,
}

/// What one step found.
pub(super) struct Outcome {
    /// The mean of the batches' losses.
    pub(super) loss: f64,
    /// The factor that it was worked out with.
    pub(super) logit_scale: f64,
    /// The norm of the gradients before clipping.
    pub(super) grad_norm: f64,
    /// The unit rows of the last batch, without a graph.
    embeds: (Tensor, Tensor),
    /// Pairs whose caption an earlier one of their batch has, and pairs.
    repeated: (usize, usize),
}

impl Trainer<'_> {
    /// One step of the optimiser, on the mean of the batches' losses.
    pub(super) fn step(&mut self, batches: &[Batch], train: &Split, lr_factor: f64) -> Result<Outcome> {
        let logit_scale = self.model.logit_scale()?;
        let embeds = RefCell::new(None);
        let (grads, loss) = match batches {
            [batch] => self.gradients(batch, train, &embeds)?,
            _ => {
                let (mut sum, mut mean) = (GradientSum::new(&self.trainable), 0.0);
                let share = 1.0 / batches.len() as f64;
                for batch in batches {
                    let (grads, loss) = self.gradients(batch, train, &embeds)?;
                    sum.add(&grads, share)?;
                    mean += share * loss;
                }
                (sum.finish(), mean)
            }
        };
        if self.taken == 0 {
            let may_be_zero = MAY_BE_ZERO.map(Pattern::new).into_iter().collect::<Result<Vec<_>>>()?;
            check_gradients(1, &self.trainable, &grads, &may_be_zero)?;
        }
        let stepped = self.optimizer.step(&grads, lr_factor);
        let grad_norm = stepped.map_err(|error| match error.kind() {
            ErrorKind::Training { message, .. } => {
                let message = format!("{message}; the images are {}", named(batches, train));
                ErrorKind::Training { step: self.taken + 1, message }.into()
            }
            _ => error,
        })?;
        if self.config.loss.bounds_scale() {
            self.model.clamp_logit_scale(0.0, LogitScale::LARGEST)?;
        }
        self.taken += 1;
        let embeds = embeds.into_inner().ok_or_else(|| Error::argument("batches", "there is none"))?;
        let repeated = batches.iter().map(|batch| repeated(batch, train)).sum();
        let pairs = batches.iter().map(|batch| batch.captions.len()).sum();
        Ok(Outcome { loss, logit_scale, grad_norm, embeds, repeated: (repeated, pairs) })
    }

    /// Tells of the pitfalls that a step shows; how the embeddings lie is looked at after an epoch's last one.
    pub(super) fn warn(
        &mut self,
        epoch: usize,
        outcome: &Outcome,
        last: bool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<()> {
        let mut met = Vec::new();
        if let (repeated @ 1.., pairs) = outcome.repeated
            && self.config.duplicates == Duplicates::Negatives
            && self.config.loss.sees_duplicates()
        {
            met.push(Pitfall::DuplicateCaptions { repeated, pairs });
        }
        if self.config.loss.bounds_scale() && self.trainable.iter().any(|(name, _)| name == "logit_scale") {
            met.extend(saturated(outcome.logit_scale));
        }
        // A batch of which one image is left has no geometry.
        if last && outcome.embeds.0.dim(0)? > 1 {
            let geometry = Geometry::of(&outcome.embeds.0, &outcome.embeds.1)?;
            self.pitfalls.geometry = Some(geometry);
            met.extend(collapsed(geometry));
        }
        for pitfall in met {
            if let Some(warning) = self.pitfalls.meet(epoch + 1, self.taken, pitfall) {
                progress(&Progress::Warning(warning));
            }
        }
        Ok(())
    }

    /// The gradients of one batch, and its loss.
    fn gradients(
        &self,
        batch: &Batch,
        train: &Split,
        embeds: &RefCell<Option<(Tensor, Tensor)>>,
    ) -> Result<(GradStore, f64)> {
        let positives = self.positives(batch, train)?;
        let compared =
            batch.teacher.as_ref().and_then(|teacher| teacher.patches.as_ref()).map(Tensor::dims3).transpose()?;
        let width = self.model.config().projection.embed_dim;
        let loss = |images: &Tensor, texts: &Tensor| {
            let split = |shape| Ok::<_, Error>(images.narrow(1, width, images.dim(1)? - width)?.reshape(shape)?);
            let patches = compared.map(split).transpose()?;
            let images = &images.narrow(1, 0, width)?;
            let (images, texts) = (ops::l2_normalize(images)?, ops::l2_normalize(texts)?);
            *embeds.borrow_mut() = Some((images.detach(), texts.detach()));
            let (scale, bias) = self.model.logit_factor(&images)?;
            let (positives, teacher) = (positives.as_ref(), batch.teacher.as_ref());
            let logit_bias = bias.as_ref();
            let pairs = Pairs {
                logit_bias,
                positives,
                teacher,
                patches: patches.as_ref(),
                ..Pairs::new(&images, &texts, &scale)
            };
            self.config.loss.of(&pairs)
        };
        let model = &*self.model.for_step(self.config.precision)?;
        let rows = batch.captions.len();
        let of_images = |rows| match compared {
            Some(_) => batch.images.features_and_patches(model, rows),
            None => batch.images.features(model, rows),
        };
        let Some(chunk) = self.config.micro_batch.filter(|&chunk| chunk < rows) else {
            let value = loss(&of_images(0..rows)?, &batch.texts.features(model, 0..rows)?)?;
            let number = self.finite(&value, batch, train)?;
            return Ok((value.backward()?, number));
        };
        let images = CachedSide { rows, encode: &of_images };
        let texts = CachedSide { rows, encode: &|rows| batch.texts.features(model, rows) };
        let (value, grads) = cached_backward(&images, &texts, chunk, &self.trainable, loss)?;
        Ok((grads, self.finite(&value, batch, train)?))
    }

    /// Which pairs have a caption in common, where that counts and there are any.
    fn positives(&self, batch: &Batch, train: &Split) -> Result<Option<Positives>> {
        if self.config.duplicates == Duplicates::Negatives {
            return Ok(None);
        }
        let mut seen = HashMap::new();
        let mut id = |&(image, caption): &(usize, usize)| {
            let next = seen.len() as u64;
            *seen.entry(train.captions()[image][caption].as_str()).or_insert(next)
        };
        let captions: Vec<u64> = batch.captions.iter().map(&mut id).collect();
        let images: Vec<u64> = batch.captions.iter().map(|&(image, _)| image as u64).collect();
        Ok(Some(Positives::from_pairs(&images, &captions)?).filter(|positives| !positives.is_one_by_one()))
    }

    /// The loss as a number, or an error that names the batch's images.
    fn finite(&self, loss: &Tensor, batch: &Batch, train: &Split) -> Result<f64> {
        let value = loss.detach().to_dtype(DType::F64)?.flatten_all()?.get(0)?.to_scalar::<f64>()?;
        if value.is_finite() {
            return Ok(value);
        }
        let images = named(std::slice::from_ref(batch), train);
        let message = format!("the loss is {value}; the batch's images are {images}");
        Err(ErrorKind::Training { step: self.taken + 1, message }.into())
    }
}

/// How many pairs have a caption that an earlier one of the batch has.
fn repeated(batch: &Batch, train: &Split) -> usize {
    let mut seen = HashSet::new();
    let again = |&&(image, caption): &&(usize, usize)| !seen.insert(train.captions()[image][caption].as_str());
    batch.captions.iter().filter(again).count()
}

/// The first images of some batches.
fn named(batches: &[Batch], train: &Split) -> String {
    let all = batches.iter().flat_map(|batch| &batch.captions);
    let mut names: Vec<&str> = all.take(NAMED_IMAGES).map(|&(i, _)| train.images()[i].as_str()).collect();
    if batches.iter().map(|batch| batch.captions.len()).sum::<usize>() > NAMED_IMAGES {
        names.push("…");
    }
    names.join(", ")
}
