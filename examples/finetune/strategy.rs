//! Options about what is trained and how, and the recipe that all options make.

use std::path::PathBuf;

use clap::ValueEnum;
use diptych::ClipModel;
use diptych::adapt::LoraConfig;
use diptych::loss::{ClipLoss, Loss, SigLipLoss};
use diptych::train::{
    CheckpointConfig, Duplicates, Evaluation, OptimizerConfig, Precision, Schedule, Selection, SgdConfig, TrainConfig,
};
use diptych::weights::{Activations, Pattern};

use crate::args::{Args, When};
use crate::common::Outcome;
use crate::defaults::Defaults;

/// What is trained, by what loss, and how a long run is kept.
#[derive(clap::Args)]
pub struct Strategy {
    /// What is trained: all, projections, lock-image, lock-text or last-N (the last N blocks of each tower)
    #[arg(long, default_value = "all", value_name = "WHAT")]
    pub train: Selection,
    /// Train low-rank adapters of this rank instead of the weights they stand on
    #[arg(long, value_name = "RANK")]
    pub lora: Option<usize>,
    /// The layers that get adapters: a pattern over their names; may be given more than once [default: *.q_proj, *.v_proj]
    #[arg(long, value_name = "PATTERN", requires = "lora")]
    pub lora_targets: Vec<Pattern>,
    /// Where to save the adapters alone, in PEFT's format; --out saves the merged model
    #[arg(long, value_name = "DIR", requires = "lora")]
    pub lora_out: Option<PathBuf>,
    /// clip (cross-entropy) or siglip (sigmoid)
    #[arg(long, default_value = "clip")]
    pub loss: LossName,
    /// How far from 0 and 1 the targets are
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.0, value_name = "X")]
    pub label_smoothing: f64,
    /// Pairs of a batch with the same caption belong together; --loss clip learns the same either way
    #[arg(long)]
    pub duplicates_match: bool,
    /// Rows whose activations are in memory at a time; the gradients are the whole batch's [default: all]
    #[arg(long, value_name = "N")]
    pub micro_batch: Option<usize>,
    /// Keep each block's input alone and run the block again for its gradients: less memory, the same gradients, more time
    #[arg(long)]
    recompute: bool,
    /// The towers compute in bf16 on copies of the f32 parameters (for GPUs)
    #[arg(long)]
    bf16: bool,
    /// Batches a step, whose gradients are averaged
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub accumulate: usize,
    /// How the learning rate goes on after the warm-up
    #[arg(long, default_value = "cosine")]
    pub schedule: Course,
    /// Steps of the cool-down at the end, with --schedule cooldown
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub cooldown_steps: usize,
    /// Gradient descent with momentum instead of AdamW
    #[arg(long)]
    pub sgd: bool,
    /// By what each block's rate is multiplied to give that of the block before it
    #[arg(long, allow_negative_numbers = true, default_value_t = 1.0, value_name = "X")]
    pub layer_decay: f64,
    /// Decay of a moving average of the weights, which is then measured and saved [default: none]
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub ema: Option<f64>,
    /// Where the run is kept, so that it can go on after a crash
    #[arg(long, value_name = "DIR")]
    pub checkpoints: Option<PathBuf>,
    /// Steps between two checkpoints
    #[arg(long, default_value_t = 500, value_name = "N")]
    pub checkpoint_every: usize,
    /// How many checkpoints are kept
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub keep: usize,
    /// Go on from the newest checkpoint
    #[arg(long, requires = "checkpoints")]
    pub resume: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LossName {
    Clip,
    Siglip,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Course {
    Cosine,
    Linear,
    Constant,
    Cooldown,
}

impl Strategy {
    /// The recipe with what these flags say.
    pub fn apply(&self, warmup_steps: usize, mut config: TrainConfig) -> TrainConfig {
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
    pub fn adapt(&self, model: ClipModel) -> Outcome<ClipModel> {
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

/// The recipe that the options make for `images` training images; what they do not say is chosen by what is trained.
pub fn recipe(args: &Args, model: &ClipModel, images: usize) -> TrainConfig {
    let chosen = Defaults::new(args, model, images);
    let batch_size = args.batch_size.unwrap_or(chosen.batch_size);
    let epochs = args.epochs.unwrap_or_else(|| chosen.epochs(images, batch_size));
    let steps = epochs * (images / batch_size.max(1) / args.strategy.accumulate.max(1));
    let mut config = TrainConfig {
        epochs,
        batch_size,
        lr: args.lr.unwrap_or(chosen.lr),
        tower_lr: args.tower_lr.unwrap_or(chosen.tower_lr),
        weight_decay: args.weight_decay,
        seed: args.seed,
        augment: args.augment.unwrap_or_default(),
        evaluation: if args.evaluate == Some(When::End) { Evaluation::AtEnd } else { Evaluation::EachEpoch },
        broken_images: args.reading.tolerance(),
        image_cache_bytes: args.reading.image_cache_bytes(),
        ..TrainConfig::default()
    };
    config = args.strategy.apply(args.warmup_steps.unwrap_or(steps.div_ceil(10)), config);
    config = args.keeping.apply(config);
    config.micro_batch = config.micro_batch.or_else(|| chosen.micro_batch(batch_size));
    config.optimizer = config.optimizer.with_clip_norm(args.clip_norm.or(chosen.clip_norm));
    config.workers = args.machine.workers();
    config
}
