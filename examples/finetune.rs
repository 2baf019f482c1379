//! Trains a dual encoder on captioned images: from two towers and fresh projections, or from a whole model.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use common::{Machine, Outcome, dtype, exit, keep_freed_memory, progress, say};
use diptych::adapt::LoraConfig;
use diptych::data::{PairDataset, Split};
use diptych::image::Augment;
use diptych::loss::{ClipLoss, Loss, SigLipLoss};
use diptych::towers::{ImagePooling, TextPooling};
use diptych::train::{
    CheckpointConfig, Duplicates, Evaluation, Half, OptimizerConfig, Precision, Progress, Schedule, Selection,
    SgdConfig, TrainConfig, TrainReport, Trainer,
};
use diptych::weights::{Activations, Pattern, check_save_target};
use diptych::{ClipModel, InputNorm, Loader, ProjectionConfig};
use indicatif::ProgressBar;

/// Train a dual encoder on captioned images.
///
/// The CSV file has the columns image, caption and split; rows of the split `train` are trained on. What is learned is measured
/// on the split `test`: recall at 1, 5, 10 in both directions, in percent.
#[derive(Parser)]
struct Args {
    /// The text tower: a folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID", requires = "image_encoder", required_unless_present = "model")]
    text_encoder: Option<String>,
    /// The image tower: a folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID", requires = "text_encoder")]
    image_encoder: Option<String>,
    /// A whole dual encoder to go on from: a folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID", conflicts_with_all = ["text_encoder", "image_encoder", "project", "embed_dim", "normalize_inputs"])]
    model: Option<String>,
    /// The captions: a CSV file with the columns image, caption and split
    #[arg(long, value_name = "CSV")]
    data: PathBuf,
    /// The folder that image names are relative to [default: the CSV file's]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Towers that are not trained
    #[arg(long, value_delimiter = ',')]
    freeze: Vec<Tower>,
    /// Parameters that are not trained: a pattern over names, as 'vision_model.embeddings.*'; may be given more than once
    #[arg(long, value_name = "PATTERN")]
    freeze_params: Vec<Pattern>,
    /// Towers that start from random weights; only their configuration is read
    #[arg(long, value_delimiter = ',')]
    random_init: Vec<Tower>,
    /// The projections: Linear → GELU → LayerNorm, or one matrix [default: mlp]
    #[arg(long)]
    project: Option<Project>,
    /// Whether pooled outputs are scaled to unit length before they are projected [default: true for mlp, false for linear]
    #[arg(long, value_name = "true|false")]
    normalize_inputs: Option<bool>,
    /// Width of the shared space [default: 256]
    #[arg(long, value_name = "N")]
    embed_dim: Option<usize>,
    /// mean, cls, pooler or eos [default: as the checkpoint says]
    #[arg(long)]
    text_pool: Option<TextPooling>,
    /// cls, mean, pooler or logits [default: as the checkpoint says]
    #[arg(long)]
    image_pool: Option<ImagePooling>,
    /// Side of the image input in pixels [default: as the checkpoint says]
    #[arg(long, value_name = "N")]
    image_size: Option<u32>,
    /// Random views of training images: crop, flip, or crop,flip [default: none]
    #[arg(long)]
    augment: Option<Augment>,
    /// How often every image is seen
    #[arg(long, default_value_t = 30)]
    epochs: usize,
    /// Pairs a step
    #[arg(long, default_value_t = 512)]
    batch_size: usize,
    /// Peak learning rate of projections and scale
    #[arg(long, allow_negative_numbers = true, default_value_t = 1e-3)]
    lr: f64,
    /// Peak learning rate of the towers
    #[arg(long, allow_negative_numbers = true, default_value_t = 5e-5)]
    tower_lr: f64,
    /// Decoupled weight decay of matrices
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.05)]
    weight_decay: f64,
    /// Steps in which the learning rate rises
    #[arg(long, default_value_t = 50)]
    warmup_steps: usize,
    /// Norm that gradients are clipped to [default: not clipped]
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    clip_norm: Option<f64>,
    /// Seed of fresh weights, order, captions and augmentation
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// When to measure: after each epoch or at the end [default: each, where a tower is trained]
    #[arg(long)]
    evaluate: Option<When>,
    /// Where to save the model
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The type the model is saved in: f32 keeps every bit, f16 and bf16 take half the room
    #[arg(long, default_value = "f32")]
    save_dtype: String,
    /// Print one JSON object on the last line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    strategy: Strategy,
    #[command(flatten)]
    machine: Machine,
}

/// What is trained, by what loss, and how a long run is kept.
#[derive(clap::Args)]
struct Strategy {
    /// What is trained: all, projections, lock-image, lock-text or last-N (the last N blocks of each tower)
    #[arg(long, default_value = "all", value_name = "WHAT")]
    train: Selection,
    /// Train low-rank adapters of this rank instead of the weights they stand on
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// The layers that get adapters: a pattern over their names; may be given more than once [default: *.q_proj, *.v_proj]
    #[arg(long, value_name = "PATTERN", requires = "lora")]
    lora_targets: Vec<Pattern>,
    /// Where to save the adapters alone, in PEFT's format; --out saves the merged model
    #[arg(long, value_name = "DIR", requires = "lora")]
    lora_out: Option<PathBuf>,
    /// clip (cross-entropy) or siglip (sigmoid)
    #[arg(long, default_value = "clip")]
    loss: LossName,
    /// How far from 0 and 1 the targets are
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    label_smoothing: f64,
    /// Pairs of a batch with the same caption belong together
    #[arg(long)]
    duplicates_match: bool,
    /// Rows whose activations are in memory at a time; the gradients are the whole batch's [default: all]
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Keep each block's input alone and run the block again for its gradients: less memory, the same gradients, more time
    #[arg(long)]
    recompute: bool,
    /// The towers compute in bf16 on copies of the f32 parameters (for GPUs)
    #[arg(long)]
    bf16: bool,
    /// Batches a step, whose gradients are averaged
    #[arg(long, default_value_t = 1, value_name = "N")]
    accumulate: usize,
    /// How the learning rate goes on after the warm-up
    #[arg(long, default_value = "cosine")]
    schedule: Course,
    /// Steps of the cool-down at the end, with --schedule cooldown
    #[arg(long, default_value_t = 100, value_name = "N")]
    cooldown_steps: usize,
    /// Gradient descent with momentum instead of AdamW
    #[arg(long)]
    sgd: bool,
    /// By what each block's rate is multiplied to give that of the block before it
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    layer_decay: f64,
    /// Decay of a moving average of the weights, which is then measured and saved [default: none]
    #[arg(long, value_name = "X")]
    ema: Option<f64>,
    /// Where the run is kept, so that it can go on after a crash
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Steps between two checkpoints
    #[arg(long, default_value_t = 500, value_name = "N")]
    checkpoint_every: usize,
    /// How many checkpoints are kept
    #[arg(long, default_value_t = 2, value_name = "N")]
    keep: usize,
    /// Go on from the newest checkpoint
    #[arg(long, requires = "checkpoints")]
    resume: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LossName {
    Clip,
    Siglip,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Course {
    Cosine,
    Linear,
    Constant,
    Cooldown,
}

impl Strategy {
    /// The recipe with what these flags say.
    fn apply(&self, warmup_steps: usize, mut config: TrainConfig) -> TrainConfig {
        config.schedule = match self.schedule {
            Course::Cosine => Schedule::WarmupCosine { warmup_steps },
            Course::Linear => Schedule::WarmupLinear { warmup_steps },
            Course::Constant => Schedule::WarmupConstant { warmup_steps },
            Course::Cooldown => Schedule::WarmupCooldown { warmup_steps, cooldown_steps: self.cooldown_steps },
        };
        config.loss = match self.loss {
            LossName::Clip => Loss::Clip(ClipLoss::new().with_label_smoothing(self.label_smoothing)),
            LossName::Siglip => Loss::SigLip(SigLipLoss::new().with_label_smoothing(self.label_smoothing)),
        };
        if self.sgd {
            config.optimizer = OptimizerConfig::Sgd(SgdConfig::default());
        }
        if self.recompute {
            config.activations = Activations::Recomputed;
        }
        if self.bf16 {
            config.precision = Precision::Bf16;
        }
        if self.duplicates_match {
            config.duplicates = Duplicates::Positives;
        }
        config.checkpoints = self.checkpoints.clone().map(|folder| CheckpointConfig {
            folder,
            every: self.checkpoint_every,
            keep: self.keep,
            resume: self.resume,
        });
        let Self { micro_batch, accumulate, layer_decay, ema, .. } = *self;
        TrainConfig { micro_batch, accumulate, layer_decay, ema, ..config }
    }

    /// The model with adapters, where they are asked for.
    fn adapt(&self, model: ClipModel) -> Outcome<ClipModel> {
        let Some(rank) = self.lora else { return Ok(self.train.apply(model)?) };
        if self.train != Selection::all() {
            return Err("--lora trains adapters alone; leave --train away".into());
        }
        let mut config = LoraConfig::new(rank)?;
        if !self.lora_targets.is_empty() {
            config.targets = self.lora_targets.clone();
        }
        Ok(model.with_lora(&config)?)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tower {
    Text,
    Image,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Project {
    Mlp,
    Linear,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    Each,
    End,
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    keep_freed_memory();
    let (train, test) = splits(args)?;
    let folder = args.images.clone().or_else(|| args.data.parent().map(Into::into)).unwrap_or_default();
    let save_dtype = dtype("--save-dtype", &args.save_dtype)?;
    if let Some(out) = &args.out {
        check_save_target(out)?;
    }
    let model = freeze(args, build(args)?)?;
    let trained: usize = model.trainable().iter().map(|(_, var)| var.elem_count()).sum();
    eprintln!("{} parameters, {trained} of them trained", model.parameters().element_count());
    let trainer = Trainer::new(&model, recipe(args, &model))?;
    let mut display = Display::default();
    let report = trainer.fit(&train, &folder, test.as_ref(), |progress| display.show(progress))?;
    display.clear();
    if let Some(folder) = &args.strategy.lora_out {
        model.save_lora(folder, args.model.as_deref().unwrap_or_default())?;
        eprintln!("saved {}", folder.display());
    }
    if let Some(out) = &args.out {
        model.clone().merge_lora()?.save_pretrained_as(out, save_dtype)?;
        eprintln!("saved {}", out.display());
    }
    print(args, &report)
}

/// The rows to train on and those to measure on.
fn splits(args: &Args) -> Outcome<(Split, Option<Split>)> {
    let data = PairDataset::from_csv(&args.data)?;
    if data.split_names().is_empty() {
        eprintln!("{}: no column split, so all rows are trained on and none are measured", args.data.display());
        return Ok((data.all(), None));
    }
    let test = data.split_names().iter().any(|name| name == "test");
    if !test {
        eprintln!("{}: no split test, so nothing is measured", args.data.display());
    }
    Ok((data.split("train")?, test.then(|| data.split("test")).transpose()?))
}

fn build(args: &Args) -> Outcome<ClipModel> {
    let mut loader = args.machine.loader()?;
    if let Some(pooling) = args.text_pool {
        loader = loader.text_pooling(pooling);
    }
    if let Some(pooling) = args.image_pool {
        loader = loader.image_pooling(pooling);
    }
    if let Some(size) = args.image_size {
        loader = loader.image_size(size);
    }
    let for_tower = |tower: Tower| -> Loader {
        if args.random_init.contains(&tower) { loader.clone().random_weights(args.seed) } else { loader.clone() }
    };
    match (&args.model, &args.text_encoder, &args.image_encoder) {
        (Some(model), ..) if args.random_init.is_empty() => Ok(loader.clip(model)?),
        (Some(model), ..) if args.random_init.len() == 2 => Ok(loader.random_weights(args.seed).clip(model)?),
        (Some(_), ..) => Err("--random-init: with --model, give both towers or none".into()),
        (None, Some(text), Some(image)) => {
            let text = for_tower(Tower::Text).text_encoder(text)?;
            let image = for_tower(Tower::Image).image_encoder(image)?;
            Ok(ClipModel::with_projection(text, image, projection(args), args.seed)?)
        }
        _ => Err("give --model, or both --text-encoder and --image-encoder".into()),
    }
}

fn projection(args: &Args) -> ProjectionConfig {
    let width = args.embed_dim.unwrap_or(256);
    let mut projection = match args.project {
        Some(Project::Linear) => ProjectionConfig::linear(width),
        Some(Project::Mlp) | None => ProjectionConfig::mlp(width),
    };
    if let Some(normalize) = args.normalize_inputs {
        projection.input = if normalize { InputNorm::L2 } else { InputNorm::None };
    }
    projection
}

fn freeze(args: &Args, model: ClipModel) -> Outcome<ClipModel> {
    let names = model.parameters();
    for pattern in &args.freeze_params {
        if !names.iter().any(|(name, _)| pattern.matches(name)) {
            let some: Vec<&str> = names.iter().map(|(name, _)| name).take(4).collect();
            return Err(format!(
                "--freeze-params '{pattern}': no parameter has such a name; names are {}, …",
                some.join(", ")
            )
            .into());
        }
    }
    let model = args.strategy.adapt(model)?;
    let trained: Vec<String> = model.trainable().into_iter().map(|(name, _)| name).collect();
    let frozen = |name: &str| {
        let tower = |tower, prefix: &str| args.freeze.contains(&tower) && name.starts_with(prefix);
        tower(Tower::Text, "text_model.")
            || tower(Tower::Image, "vision_model.")
            || args.freeze_params.iter().any(|pattern| pattern.matches(name))
    };
    Ok(model.with_trainable(|name| trained.iter().any(|trained| trained == name) && !frozen(name))?)
}

fn recipe(args: &Args, model: &ClipModel) -> TrainConfig {
    let both_frozen = model.text_encoder().is_frozen() && model.image_encoder().is_frozen();
    let evaluation = match args.evaluate {
        Some(When::Each) => Evaluation::EachEpoch,
        Some(When::End) => Evaluation::AtEnd,
        None if both_frozen => Evaluation::AtEnd,
        None => Evaluation::EachEpoch,
    };
    let mut config = TrainConfig {
        epochs: args.epochs,
        batch_size: args.batch_size,
        lr: args.lr,
        tower_lr: args.tower_lr,
        weight_decay: args.weight_decay,
        seed: args.seed,
        augment: args.augment.unwrap_or_default(),
        evaluation,
        ..TrainConfig::default()
    };
    config = args.strategy.apply(args.warmup_steps, config);
    config.optimizer = config.optimizer.with_clip_norm(args.clip_norm);
    config.workers = args.machine.workers();
    config
}

fn print(args: &Args, report: &TrainReport) -> Outcome<()> {
    let rounded = |seconds: f64| (seconds * 10.0).round() / 10.0;
    let (prepare, seconds) = (rounded(report.prepare_seconds), rounded(report.seconds));
    if args.json {
        let mut value = match &report.evaluation {
            Some(found) => serde_json::to_value(found)?,
            None => serde_json::json!({ "images": 0, "captions": 0 }),
        };
        value["prepare_seconds"] = prepare.into();
        value["seconds"] = seconds.into();
        return say(value);
    }
    if let Some(found) = &report.evaluation {
        for (name, r) in [("text→image", found.text_to_image), ("image→text", found.image_to_text)] {
            say(format!("{name}: R@1 {:.1}  R@5 {:.1}  R@10 {:.1}", r.r1, r.r5, r.r10))?;
        }
    }
    say(format!(
        "{} steps in {seconds} seconds after {prepare} of frozen towers, loss {:.3}",
        report.steps, report.loss
    ))
}

/// The run as a person sees it: one bar at a time on standard error.
#[derive(Default)]
struct Display {
    bar: Option<(String, ProgressBar)>,
}

impl Display {
    fn show(&mut self, event: &Progress) {
        match event {
            Progress::Pooling { half, done, total } => {
                let what = if *half == Half::Image { "images" } else { "texts" };
                self.bar(what, *total).set_position(*done as u64);
            }
            Progress::Step(step) => {
                let bar = self.bar("steps", step.steps);
                bar.set_position(step.step as u64);
                bar.set_message(format!("loss {:.3}, {:.1} pairs/s", step.loss, step.pairs_per_second));
            }
            Progress::Evaluated { epoch, report } => {
                self.clear();
                let (t, i) = (report.text_to_image, report.image_to_text);
                eprintln!(
                    "epoch {epoch}: text→image R@1 {:.1} R@5 {:.1} R@10 {:.1}, image→text R@1 {:.1} R@5 {:.1} R@10 {:.1}",
                    t.r1, t.r5, t.r10, i.r1, i.r5, i.r10
                );
            }
            _ => {}
        }
    }

    fn bar(&mut self, what: &str, total: usize) -> &ProgressBar {
        if self.bar.as_ref().is_none_or(|(shown, _)| shown != what) {
            self.clear();
        }
        &self.bar.get_or_insert_with(|| (what.to_string(), progress(total, what))).1
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
