//! Options about what the model knew before, and about whom it learns from.

use std::path::{Path, PathBuf};

use diptych::data::{LabelledImages, Split};
use diptych::loss::{DistillLoss, Loss};
use diptych::report::AlphaCurve;
use diptych::train::{
    Canary, EarlyStop, Leave, TeacherConfig, TeacherView, TrainConfig, TrainData, WiseFt, evaluate_retrieval,
};
use diptych::{ClipModel, Error};

use crate::args::Args;
use crate::common::Outcome;
use crate::data::Rows;
use crate::display::Display;

/// Points the canary may lose in training where nothing else is said.
const CANARY_LOSS: f64 = 5.0;

/// A canary, an early stop, WiSE-FT, a teacher.
#[derive(clap::Args)]
pub struct Keeping {
    /// A zero-shot task to watch: a CSV file with the columns image, folder (the class) and, if wanted, split (test is used)
    #[arg(long, value_name = "CSV")]
    canary: Option<PathBuf>,
    /// The folder that the canary's image names are relative to [default: its CSV file's]
    #[arg(long, value_name = "DIR", requires = "canary")]
    canary_images: Option<PathBuf>,
    /// Points of top-1 that the canary may lose [default: 5 in training, 1 for --wise-ft]
    #[arg(long, allow_negative_numbers = true, value_name = "X", requires = "canary")]
    canary_loss: Option<f64>,
    /// End after so many epochs without a better mean recall, on the split val if there is one; the best weights are left
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// Measure models on the line between before and after training too, and save the best that keeps the canary
    #[arg(long)]
    wise_ft: bool,
    /// A larger model to learn from: a folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID")]
    teacher: Option<String>,
    /// How much the likeness of the logits to the teacher's counts, beside the loss
    #[arg(long, allow_negative_numbers = true, value_name = "X", default_value_t = 1.0, requires = "teacher")]
    distill_weight: f64,
    /// How much the likeness of the embeddings counts; they must be as wide as the teacher's
    #[arg(long, allow_negative_numbers = true, value_name = "X", default_value_t = 0.0, requires = "teacher")]
    distill_features: f64,
    /// How much the likeness of the patches counts, in tokens of two thirds of the image tower's depth; both must be vision transformers
    #[arg(long, allow_negative_numbers = true, value_name = "X", default_value_t = 0.0, requires = "teacher")]
    distill_patches: f64,
    /// Learn from the teacher alone, not from which image belongs to which caption
    #[arg(long, requires = "teacher")]
    distill_only: bool,
    /// The teacher sees the part of an image that the model sees, not the whole; it runs in every step, or with --views once a view
    #[arg(long, requires = "teacher")]
    teacher_views: bool,
    /// A file that keeps what the teacher makes of images and captions, for the next run
    #[arg(long, value_name = "FILE", requires = "teacher")]
    pub teacher_cache: Option<PathBuf>,
    /// How many random views an image has, after which they come again [default: a new one in each epoch]
    #[arg(long, value_name = "N")]
    views: Option<usize>,
    /// The share of an image's patches that the image tower looks at in a step
    #[arg(long, allow_negative_numbers = true, value_name = "X", default_value_t = 1.0)]
    pub patch_keep: f64,
}

impl Keeping {
    /// The recipe with what these flags say.
    pub fn apply(&self, mut config: TrainConfig) -> TrainConfig {
        (config.patch_keep, config.views) = (self.patch_keep, self.views);
        if self.stops() {
            let canary_loss = self.canary.as_ref().map(|_| self.canary_loss.unwrap_or(CANARY_LOSS));
            config.early_stop = Some(EarlyStop { patience: self.patience, canary_loss, leave: Leave::Best });
        }
        if self.teacher.is_some() {
            let base = (!self.distill_only).then_some(config.loss);
            let loss = DistillLoss::new(base).with_weights(self.distill_weight, self.distill_features);
            config.loss = Loss::Distill(loss.with_patches(self.distill_patches));
        }
        config
    }

    fn stops(&self) -> bool {
        self.patience.is_some() || self.canary_loss.is_some()
    }

    /// The rows by which it is decided when to stop and which model is saved: the split val, if there is one.
    pub fn deciding_rows(&self, args: &Args) -> Outcome<Option<Split>> {
        if !(self.stops() || self.wise_ft) {
            return Ok(None);
        }
        let data = args.reading.options().open(&args.data)?;
        let val = data.split_names().iter().any(|name| name == "val");
        if !val {
            eprintln!(
                "no split val, so the rows that are measured decide: what it says of the model in the end is a little too good"
            );
        }
        Ok(val.then(|| data.split("val")).transpose()?)
    }

    /// The zero-shot task to watch.
    pub fn canary(&self) -> Outcome<Option<Canary>> {
        let Some(csv) = &self.canary else { return Ok(None) };
        let data = LabelledImages::from_csv(csv)?;
        let split = if data.split_names().is_empty() { data.all() } else { data.split("test")? };
        Ok(Some(Canary::from_split(&data, &split, data.image_folder(self.canary_images.as_deref()))?))
    }

    /// The data with what a teacher makes of it, if there is one.
    pub fn teach<'a>(
        &self,
        data: TrainData<'a>,
        args: &Args,
        config: &TrainConfig,
        folder: &Path,
        display: &mut Display,
    ) -> Outcome<TrainData<'a>> {
        let Some(name) = &self.teacher else { return Ok(data) };
        let teacher = args.machine.loader()?.trainable(false).clip(name)?;
        let view = if self.teacher_views { TeacherView::Same } else { TeacherView::Plain };
        let teaching = TeacherConfig { view, cache: self.teacher_cache.clone() };
        Ok(data.with_teacher(&teacher, &teaching, config, folder, |event| display.show(event))?)
    }

    /// What the model is before training, if it is to be gone back to.
    pub fn before(&self, model: &ClipModel, rows: Rows<'_>) -> Outcome<Option<WiseFt>> {
        if self.wise_ft && rows.measured.is_none() {
            return Err("--wise-ft needs a split val or test to choose by".into());
        }
        Ok(self.wise_ft.then(|| WiseFt::before(model)).transpose()?)
    }

    /// The model between `before` and `after` that is to be saved, and what was measured between them.
    pub fn choose(
        &self,
        before: &WiseFt,
        after: &ClipModel,
        rows: Rows<'_>,
        canary: Option<&Canary>,
        workers: usize,
    ) -> Outcome<(ClipModel, Option<AlphaCurve>)> {
        let Some(split) = rows.measured else { return Ok((after.clone(), None)) };
        let measure = |model: &ClipModel| -> Result<(f64, Option<f64>), Error> {
            let target = evaluate_retrieval(model, split, rows.folder, workers, |_| {})?.mean_recall();
            let canary = canary.map(|canary| canary.measure(model, workers, |_| {})).transpose()?;
            Ok((target, canary.map(|report| report.top1)))
        };
        let curve = before.curve(after, &WiseFt::ALPHAS, measure)?;
        for point in &curve.points {
            let canary = point.canary.map(|top1| format!(", canary {top1:.1}")).unwrap_or_default();
            eprintln!("α {:.1}: mean recall {:.1}{canary}", point.alpha, point.target);
        }
        let chosen = curve.choose(self.canary_loss.unwrap_or(WiseFt::CANARY_LOSS))?;
        eprintln!("the model at α = {:.1} is chosen", chosen.alpha);
        let names = ("mean recall".to_string(), "canary top-1".to_string());
        let curve = AlphaCurve { target: names.0, canary: names.1, points: curve.points, chosen: Some(chosen.alpha) };
        Ok((before.at(after, chosen.alpha)?, Some(curve)))
    }
}
