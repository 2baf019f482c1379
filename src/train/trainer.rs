//! [`Trainer`]: contrastive training of a dual encoder on images with captions.
//!
//! A run that keeps checkpoints goes on after a crash and ends with the same weights bit for bit (on the CPU, with as many
//! threads): order, captions and views are functions of the seed, the epoch and the image.
//!
//! An epoch visits every image once, in an order and with one of its captions drawn from the seed. A step is
//! pooled (B,E) → features (B,D) → logits (B,B) → loss → gradients → optimiser → clamped logit scale. A frozen tower that sees the same
//! input every epoch runs once: then a step is a choice of rows and two projections.

use std::marker::PhantomData;
use std::path::Path;
use std::time::Instant;

use candle_core::Var;

use super::any_optimizer::Optimizer;
use super::batches::EpochBatches;
use super::broken::Broken;
use super::config::{Evaluation, TrainConfig};
use super::ema::Ema;
use super::groups::Rates;
use super::halves::{Images, Texts};
use super::optimizer::check_rate;
use super::pitfalls::Pitfalls;
use super::pooled::recalls;
use super::progress::{Progress, Step, TrainReport};
use super::teacher::{TeacherConfig, TeacherData};
use super::teacher_patches::PatchShape;
use super::watch::Watch;
use crate::data::{Sampler, Split};
use crate::image::ImageSource;
use crate::loss::Loss;
use crate::retrieval::RetrievalReport;
use crate::{ClipModel, Embeddings, Error, Result};

/// Trains a model in place: its variables are the caller's.
pub struct Trainer<'a> {
    /// A clone, on the caller's variables.
    pub(super) model: ClipModel,
    caller: PhantomData<&'a ClipModel>,
    pub(super) config: TrainConfig,
    pub(super) trainable: Vec<(String, Var)>,
    pub(super) optimizer: Optimizer,
    pub(super) ema: Option<Ema>,
    teacher: Option<(ClipModel, TeacherConfig)>,
    pub(super) watch: Watch,
    pub(super) pitfalls: Pitfalls,
    pub(super) taken: usize,
    /// The sum of the epoch's losses so far.
    pub(super) loss_sum: f64,
    pub(super) broken: Broken,
}

/// What a run works on: the training and evaluation splits, and the outputs of frozen towers that see the same input every epoch.
pub struct TrainData<'s> {
    pub(super) train: &'s Split,
    evaluation: Option<&'s Split>,
    pub(super) images: Images,
    pub(super) texts: Texts,
    test_images: Vec<ImageSource>,
    test_texts: Vec<&'s str>,
    pub(super) teacher: Option<TeacherData>,
    /// Width of the model's embeddings.
    embed_dim: usize,
    /// The model's patches, where a teacher's are compared with them.
    patches: Option<PatchShape>,
    /// Training images that are not there, and what is said of them.
    missing: Vec<(usize, String)>,
    /// What tells these training data from others.
    pub(super) fingerprint: String,
    seconds: f64,
}

impl<'s> TrainData<'s> {
    /// Prepares `train` and `evaluation`, whose images lie under `folder`, for `model`: each frozen tower runs once, if no
    /// augmentation stands before it.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if no training image is there or one of the evaluation is missing,
    /// [`Argument`](crate::ErrorKind::Argument) if more of them are unusable than [`TrainConfig::broken_images`] allows, and any error of
    /// reading one.
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
        let missing = train.missing_images(folder)?;
        let missing: Vec<_> = missing.into_iter().map(|i| (i, "there is no such file".to_string())).collect();
        // Too many are an error before any tower runs.
        let mut broken = Broken::new(config.broken_images, train.image_count());
        missing.iter().try_for_each(|(i, reason)| broken.note(*i, &train.images()[*i], reason).map(drop))?;
        evaluation.map_or(Ok(()), |split| split.check_images(folder))?;
        let test_images = evaluation.map(|split| split.sources(folder)).unwrap_or_default();
        let test_texts = evaluation.map(|split| split.flat_captions().0).unwrap_or_default();
        let images = Images::new(model, config, train.sources(folder), &test_images, &mut progress)?;
        let texts = Texts::new(model, train.captions(), &test_texts, &mut progress)?;
        let seconds = started.elapsed().as_secs_f64();
        let (teacher, fingerprint) = (None, train.fingerprint());
        let embed_dim = model.config().projection.embed_dim;
        let patches = config.loss.wants_patches().then(|| PatchShape::of(model)).transpose()?;
        Ok(Self {
            train,
            evaluation,
            images,
            texts,
            test_images,
            test_texts,
            teacher,
            embed_dim,
            patches,
            missing,
            fingerprint,
            seconds,
        })
    }

    /// The same data with what `teacher` makes of the training images, which lie under `folder`, and of their captions. Images that it
    /// cannot read are left out like those that the model cannot.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if the loss compares embeddings of two widths;
    /// [`File`](crate::ErrorKind::File) if [`TeacherConfig::cache`] names a file of something else or cannot be written, and any
    /// error of reading an image.
    pub fn with_teacher(
        self,
        teacher: &ClipModel,
        teaching: &TeacherConfig,
        config: &TrainConfig,
        folder: impl AsRef<Path>,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Self> {
        let (started, images) = (Instant::now(), self.train.sources(folder));
        if let Loss::Distill(loss) = &config.loss {
            loss.check(self.embed_dim, teacher.config().projection.embed_dim)?;
        }
        let teacher = TeacherData::new(teacher, teaching, config, self.train, images, self.patches, &mut progress)?;
        Ok(Self { teacher: Some(teacher), seconds: self.seconds + started.elapsed().as_secs_f64(), ..self })
    }

    /// Whether there is an evaluation split.
    pub(super) fn has_evaluation(&self) -> bool {
        self.evaluation.is_some()
    }

    /// Recall of `model` on the evaluation split, if there is one: before training, say.
    ///
    /// # Errors
    /// When an image cannot be read; the error names it.
    pub fn evaluate(
        &self,
        model: &ClipModel,
        workers: usize,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<RetrievalReport>> {
        let Some(split) = self.evaluation else { return Ok(None) };
        let images = self.images.evaluation(model, &self.test_images, workers, progress)?;
        let texts = self.texts.evaluation(model, &self.test_texts, progress)?;
        recalls(model, split, &images, &texts).map(Some)
    }

    /// The embeddings of the evaluation split, if there is one: its images (N,D) and all their captions (M,D), in its order.
    ///
    /// # Errors
    /// When an image cannot be read; the error names it.
    pub fn embeddings(
        &self,
        model: &ClipModel,
        workers: usize,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<(Embeddings, Embeddings)>> {
        if self.evaluation.is_none() {
            return Ok(None);
        }
        let images = self.images.evaluation(model, &self.test_images, workers, progress)?;
        let texts = self.texts.evaluation(model, &self.test_texts, progress)?;
        let images = Embeddings::from_features(&model.project_image(&images)?)?;
        Ok(Some((images, Embeddings::from_features(&model.project_text(&texts)?)?)))
    }
}

impl<'a> Trainer<'a> {
    /// A trainer of whatever is trainable in `model`: towers at the towers' rate, everything else at the heads'.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if nothing is trainable or the recipe has a constant out of range.
    pub fn new(model: &'a ClipModel, config: TrainConfig) -> Result<Self> {
        let trainable = model.trainable();
        if trainable.is_empty() {
            return Err(Error::argument("model", "every parameter is frozen; there is nothing to train"));
        }
        for (argument, value) in
            [("lr", config.lr), ("tower_lr", config.tower_lr), ("weight_decay", config.weight_decay)]
        {
            check_rate(argument, value)?;
        }
        let rates = Rates {
            lr: config.lr,
            tower_lr: config.tower_lr,
            weight_decay: config.weight_decay,
            layer_decay: config.layer_decay,
            rules: &config.groups,
        };
        let optimizer = Optimizer::new(rates.groups(&trainable, &model.parameters())?, config.optimizer)?;
        let ema = config.ema.map(|decay| Ema::new(&trainable, decay)).transpose()?;
        let (broken, watch, pitfalls) = (Broken::new(config.broken_images, 0), Watch::default(), Pitfalls::default());
        let model = model.clone().with_activations(config.activations)?;
        Ok(Self {
            model,
            caller: PhantomData,
            config,
            trainable,
            optimizer,
            ema,
            teacher: None,
            watch,
            pitfalls,
            taken: 0,
            loss_sum: 0.0,
            broken,
        })
    }

    /// The same with a teacher for a loss that wants one ([`DistillLoss`](crate::loss::DistillLoss)); nothing of it is trained.
    /// [`Trainer::fit_prepared`] takes [`TrainData::with_teacher`] instead.
    #[must_use]
    pub fn with_teacher(self, teacher: &ClipModel, teaching: TeacherConfig) -> Self {
        Self { teacher: Some((teacher.clone(), teaching)), ..self }
    }

    /// Trains on `train` and evaluates on `evaluation`, whose images lie under `folder`. `progress` is told of every batch.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if the recipe does not fit the split or the checkpoints; [`Training`](crate::ErrorKind::Training) if a
    /// trainable parameter gets no gradient in the first step, or a loss or gradient is not finite, with the batch's images
    /// (the last checkpoint stays); [`File`](crate::ErrorKind::File) if images are missing or a checkpoint cannot be written, and any error of reading one.
    pub fn fit(
        mut self,
        train: &Split,
        folder: impl AsRef<Path>,
        evaluation: Option<&Split>,
        mut progress: impl FnMut(&Progress),
    ) -> Result<TrainReport> {
        self.check_teacher(self.teacher.is_some())?;
        let folder = folder.as_ref();
        let mut data = TrainData::prepare(&self.model, &self.config, train, folder, evaluation, &mut progress)?;
        if let Some((teacher, teaching)) = self.teacher.take() {
            data = data.with_teacher(&teacher, &teaching, &self.config, folder, &mut progress)?;
        }
        self.fit_prepared(&data, progress)
    }

    /// [`Trainer::fit`] on data prepared before: runs that differ in seed or recipe, on models with the same frozen towers and the
    /// same augmentation, prepare once.
    ///
    /// # Errors
    /// As [`Trainer::fit`].
    pub fn fit_prepared(mut self, data: &TrainData<'_>, mut progress: impl FnMut(&Progress)) -> Result<TrainReport> {
        self.check_teacher(data.teacher.is_some())?;
        let images = data.train.image_count();
        let steps = self.config.steps(images)?;
        self.broken = Broken::new(self.config.broken_images, images);
        let found_before = match self.config.checkpoints.clone() {
            Some(checkpoints) => self.begin(&checkpoints, data, &mut progress)?,
            None => Vec::new(),
        };
        self.note_broken(&found_before, data, &mut progress)?;
        self.note_broken(&data.missing, data, &mut progress)?;
        self.note_broken(data.images.broken(), data, &mut progress)?;
        self.note_broken(data.teacher.as_ref().map_or(&[][..], TeacherData::broken), data, &mut progress)?;
        let started = Instant::now();
        let (mut loss, mut found) = (f64::NAN, None);
        self.watch_start(data, &mut progress)?;
        // A run that was over evaluates once more: its caller wants the report.
        let trained = self.taken / self.config.steps_per_epoch(images);
        let first = self.watch.first_epoch(trained, self.config.early_stop.as_ref()).min(self.config.epochs - 1);
        let each = self.config.evaluation == Evaluation::EachEpoch || self.config.early_stop.is_some();
        for epoch in first..self.config.epochs {
            loss = self.epoch(epoch, steps, data, &mut progress)?;
            if each || epoch + 1 == self.config.epochs {
                found = self.evaluate(epoch + 1, data, &mut progress)?;
            }
            if self.watch.stopped().is_some() {
                self.config.checkpoints.iter().try_for_each(|config| self.write(config, data))?;
                break;
            }
        }
        self.swap_average()?;
        let best = self.leave_best(data, &mut progress)?;
        Ok(TrainReport {
            steps: self.taken,
            loss,
            skipped: data.train.skipped().iter().chain(self.broken.list()).cloned().collect(),
            evaluation: best.or(found),
            canary: self.watch.report(),
            best_epoch: self.watch.best_epoch(),
            stopped: self.watch.stopped(),
            geometry: self.pitfalls.geometry,
            warnings: self.pitfalls.all,
            prepare_seconds: data.seconds,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// A loss that wants a teacher must have one, and a teacher a loss that looks at it.
    fn check_teacher(&self, found: bool) -> Result<()> {
        let message = match (self.config.loss.wants_teacher(), found) {
            (true, false) => "wants a teacher: give one by `with_teacher`",
            (false, true) => "does not look at the teacher: put a DistillLoss around it",
            _ => return Ok(()),
        };
        Err(Error::argument("loss", message))
    }

    /// The rest of one pass over the training images; returns the mean loss.
    fn epoch(
        &mut self,
        epoch: usize,
        steps: usize,
        data: &TrainData<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<f64> {
        let (train, accumulate) = (data.train, self.config.accumulate);
        let pairs = self.config.batch_size * accumulate;
        let per_epoch = self.config.steps_per_epoch(train.image_count());
        let sampler = Sampler::new(self.config.seed);
        let mut order = sampler.order(epoch, train.image_count());
        order.truncate(per_epoch * pairs);
        let behind = self.taken - epoch * per_epoch;
        let rest = &order[behind * pairs..];
        let images = data.images.epoch(&self.config, epoch, rest)?;
        let teacher = data.teacher.as_ref().map(|t| t.epoch(&self.config, epoch, rest)).transpose()?;
        let mut of_epoch = EpochBatches { epoch, sampler, images, teacher };
        let started = Instant::now();
        if behind == 0 {
            self.loss_sum = 0.0;
        }
        for (done, chosen) in rest.chunks_exact(pairs).enumerate() {
            let mut batches = Vec::with_capacity(accumulate);
            for chosen in chosen.chunks_exact(self.config.batch_size) {
                batches.push(self.next_batch(&mut of_epoch, chosen, data, progress)?);
            }
            let lr_factor = self.config.schedule.factor(self.taken, steps);
            let model = self.model.clone();
            let outcome = model.install(|| self.step(&batches, train, lr_factor))?;
            self.warn(epoch, &outcome, self.taken == (epoch + 1) * per_epoch, progress)?;
            if let Some(ema) = &mut self.ema {
                ema.update(self.taken)?;
            }
            self.loss_sum += outcome.loss;
            self.keep(steps, data)?;
            progress(&Progress::Step(Step {
                epoch: epoch + 1,
                step: self.taken,
                steps,
                loss: outcome.loss,
                lr: self.config.lr * lr_factor,
                grad_norm: outcome.grad_norm,
                logit_scale: outcome.logit_scale,
                pairs_per_second: ((done + 1) * pairs) as f64 / started.elapsed().as_secs_f64().max(1e-9),
            }));
        }
        Ok(self.loss_sum / per_epoch as f64)
    }

    /// The averages into the model, or out of it.
    pub(super) fn swap_average(&mut self) -> Result<()> {
        self.ema.as_mut().map_or(Ok(()), Ema::swap)
    }
}
