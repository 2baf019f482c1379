//! [`Trainer`]: contrastive training of a dual encoder on images with captions.
//!
//! An epoch visits every image once, in an order and with one of its captions drawn from the seed. A step is
//! pooled (B,E) → features (B,D) → logits (B,B) → loss → gradients → AdamW → clamped logit scale. A frozen tower that sees the same
//! input every epoch runs once: then a step is a choice of rows and two projections.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Tensor, Var};

use super::config::{Evaluation, TrainConfig};
use super::gradient_check::check_gradients;
use super::halves::{Images, Texts};
use super::optimizer::{AdamW, ParamGroup};
use super::pooled::{paths, recalls};
use super::progress::{Progress, Step, TrainReport};
use crate::data::{Sampler, Split};
use crate::logit_scale::LogitScale;
use crate::loss::ClipLoss;
use crate::model::ClipConfig;
use crate::retrieval::RetrievalReport;
use crate::weights::Pattern;
use crate::{ClipModel, ErrorKind, Result};

/// Parameters whose gradient is zero by mathematics: softmax does not see what is added to all keys.
const MAY_BE_ZERO: &str = "*.k_proj.bias";

/// How many of a batch's images an error names.
const NAMED_IMAGES: usize = 8;

/// Trains a model in place: its variables are the caller's.
pub struct Trainer<'a> {
    model: &'a ClipModel,
    config: TrainConfig,
    trainable: Vec<(String, Var)>,
    optimizer: AdamW,
    taken: usize,
}

/// What a run works on: the training and evaluation splits, and the outputs of frozen towers that see the same input every epoch.
pub struct TrainData<'s> {
    train: &'s Split,
    evaluation: Option<&'s Split>,
    images: Images,
    texts: Texts,
    test_files: Vec<PathBuf>,
    test_texts: Vec<&'s str>,
    seconds: f64,
}

impl<'s> TrainData<'s> {
    /// Prepares `train` and `evaluation`, whose images lie under `folder`, for `model`: each frozen tower runs once, if no
    /// augmentation stands before it.
    ///
    /// # Errors
    /// [`File`](ErrorKind::File) if images are missing, and any error of reading one.
    pub fn prepare(
        model: &ClipModel,
        config: &TrainConfig,
        train: &'s Split,
        folder: impl AsRef<Path>,
        evaluation: Option<&'s Split>,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Self> {
        config.steps(train.image_count())?;
        let (started, folder) = (Instant::now(), folder.as_ref());
        [Some(train), evaluation].into_iter().flatten().try_for_each(|split| split.check_images(folder))?;
        let test_files: Vec<PathBuf> = evaluation.map(|split| paths(folder, split.images())).unwrap_or_default();
        let test_texts = evaluation.map(|split| split.flat_captions().0).unwrap_or_default();
        let train_files = paths(folder, train.images());
        let images = Images::new(model, config, train_files, &test_files, &mut progress)?;
        let texts = Texts::new(model, train.captions(), &test_texts, &mut progress)?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Self { train, evaluation, images, texts, test_files, test_texts, seconds })
    }

    /// Recall on the evaluation split, if there is one.
    fn evaluate(
        &self,
        model: &ClipModel,
        workers: usize,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<RetrievalReport>> {
        let Some(split) = self.evaluation else { return Ok(None) };
        let images = self.images.evaluation(model, &self.test_files, workers, progress)?;
        let texts = self.texts.evaluation(model, &self.test_texts, progress)?;
        recalls(model, split, &images, &texts).map(Some)
    }
}

/// What one step of a fit works on.
struct Batch<'a> {
    image_pooled: Tensor,
    text_pooled: Tensor,
    images: &'a [usize],
}

/// What one step found.
struct Outcome {
    loss: f64,
    logit_scale: f64,
    grad_norm: f64,
}

impl<'a> Trainer<'a> {
    /// A trainer of whatever is trainable in `model`: towers at the towers' rate, everything else at the heads'.
    ///
    /// # Errors
    /// [`Argument`](ErrorKind::Argument) if nothing is trainable or the recipe has a rate out of range.
    pub fn new(model: &'a ClipModel, config: TrainConfig) -> Result<Self> {
        let trainable = model.trainable();
        if trainable.is_empty() {
            return Err(crate::Error::argument("model", "every parameter is frozen; there is nothing to train"));
        }
        let in_tower = |(name, _): &(String, Var)| {
            [ClipConfig::TEXT, ClipConfig::IMAGE].iter().any(|tower| name.split('.').next() == Some(tower))
        };
        let (towers, heads): (Vec<_>, Vec<_>) = trainable.iter().cloned().partition(in_tower);
        let mut groups = ParamGroup::split_decay(heads, config.lr, config.weight_decay).to_vec();
        groups.extend(ParamGroup::split_decay(towers, config.tower_lr, config.weight_decay));
        let optimizer = AdamW::new(groups, config.optimizer)?;
        Ok(Self { model, config, trainable, optimizer, taken: 0 })
    }

    /// Trains on `train` and evaluates on `evaluation`, whose images lie under `folder`. `progress` is told of every batch.
    ///
    /// # Errors
    /// [`Argument`](ErrorKind::Argument) if the recipe does not fit the split; [`Training`](ErrorKind::Training) if a trainable parameter gets no
    /// gradient in the first step, or a loss or gradient is not finite, with the batch's images; [`File`](ErrorKind::File) if images are missing, and any error of reading one.
    pub fn fit(
        self,
        train: &Split,
        folder: impl AsRef<Path>,
        evaluation: Option<&Split>,
        mut progress: impl FnMut(&Progress),
    ) -> Result<TrainReport> {
        let data = TrainData::prepare(self.model, &self.config, train, folder, evaluation, &mut progress)?;
        self.fit_prepared(&data, progress)
    }

    /// [`Trainer::fit`] on data prepared before: runs that differ in seed or recipe, on models with the same frozen towers and the
    /// same augmentation, prepare once.
    ///
    /// # Errors
    /// As [`Trainer::fit`].
    pub fn fit_prepared(mut self, data: &TrainData<'_>, mut progress: impl FnMut(&Progress)) -> Result<TrainReport> {
        let steps = self.config.steps(data.train.image_count())?;
        let started = Instant::now();
        let (mut loss, mut found) = (f64::NAN, None);
        for epoch in 0..self.config.epochs {
            loss = self.epoch(epoch, steps, data, &mut progress)?;
            let due = self.config.evaluation == Evaluation::EachEpoch || epoch + 1 == self.config.epochs;
            if due {
                found = data.evaluate(self.model, self.config.workers, &mut progress)?;
            }
            if let (true, Some(report)) = (due, found) {
                progress(&Progress::Evaluated { epoch: epoch + 1, report });
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(TrainReport { steps, loss, evaluation: found, prepare_seconds: data.seconds, seconds })
    }

    /// One pass over the training images; returns the mean loss.
    fn epoch(
        &mut self,
        epoch: usize,
        steps: usize,
        data: &TrainData<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<f64> {
        let (batch_size, train) = (self.config.batch_size, data.train);
        let sampler = Sampler::new(self.config.seed);
        let order = sampler.order(epoch, train.image_count());
        let mut loader = data.images.epoch(&self.config, epoch, &order)?;
        let (started, mut sum, mut done) = (Instant::now(), 0.0, 0);
        for chosen in order.chunks_exact(batch_size) {
            let caption = |&i: &usize| (i, sampler.caption(epoch, i, train.captions()[i].len()));
            let captions: Vec<(usize, usize)> = chosen.iter().map(caption).collect();
            let image_pooled = loader.next(self.model, chosen)?;
            let text_pooled = data.texts.batch(self.model, train.captions(), &captions)?;
            let lr_factor = self.config.schedule.factor(self.taken, steps);
            let outcome = self.step(&Batch { image_pooled, text_pooled, images: chosen }, train, lr_factor)?;
            sum += outcome.loss;
            done += 1;
            progress(&Progress::Step(Step {
                epoch: epoch + 1,
                step: self.taken,
                steps,
                loss: outcome.loss,
                lr: self.config.lr * lr_factor,
                grad_norm: outcome.grad_norm,
                logit_scale: outcome.logit_scale,
                pairs_per_second: (done * batch_size) as f64 / started.elapsed().as_secs_f64().max(1e-9),
            }));
        }
        Ok(sum / f64::from(done.max(1) as u32))
    }

    fn step(&mut self, batch: &Batch<'_>, train: &Split, lr_factor: f64) -> Result<Outcome> {
        let model = self.model;
        let image_features = model.project_image(&batch.image_pooled)?;
        let output = model.output(image_features, model.project_text(&batch.text_pooled)?)?;
        let loss = ClipLoss::new().from_logits(&output.logits_per_image)?;
        let value = number(&loss)?;
        if !value.is_finite() {
            let named: Vec<&str> =
                batch.images.iter().take(NAMED_IMAGES).map(|&i| train.images()[i].as_str()).collect();
            let message = format!("the loss is {value}; the batch's images are {}, …", named.join(", "));
            return Err(ErrorKind::Training { step: self.taken + 1, message }.into());
        }
        let grads = loss.backward()?;
        if self.taken == 0 {
            check_gradients(1, &self.trainable, &grads, &[Pattern::new(MAY_BE_ZERO)?])?;
        }
        let grad_norm = self.optimizer.step(&grads, lr_factor)?;
        model.clamp_logit_scale(0.0, LogitScale::LARGEST)?;
        self.taken += 1;
        Ok(Outcome { loss: value, logit_scale: number(&output.logit_scale)?, grad_norm })
    }
}

fn number(scalar: &Tensor) -> Result<f64> {
    Ok(scalar.detach().to_dtype(DType::F64)?.flatten_all()?.get(0)?.to_scalar()?)
}
