//! The options of the program.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use diptych::image::Augment;
use diptych::towers::{ImagePooling, TextPooling};
use diptych::weights::Pattern;

use crate::common::Machine;
use crate::keeping::Keeping;
use crate::reading::Reading;
use crate::reports::Reports;
use crate::strategy::Strategy;

/// Train a dual encoder on captioned images.
///
/// Three options are enough: --model, --data and --out. The CSV file has the columns image, caption and split; rows of the split `train`
/// are trained on. What is learned is measured on the split `test`: recall at 1, 5, 10 in both directions, in percent. Without the
/// column split, every tenth image is held out to be measured on. Beside the model lie a report (report.html) and a model card (README.md).
#[derive(Parser)]
pub struct Args {
    /// The text tower: a folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID", requires = "image_encoder", required_unless_present = "model")]
    pub text_encoder: Option<String>,
    /// The image tower: a folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID", requires = "text_encoder")]
    pub image_encoder: Option<String>,
    /// A whole dual encoder to go on from: a folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID", conflicts_with_all = ["text_encoder", "image_encoder", "project", "embed_dim", "normalize_inputs"])]
    pub model: Option<String>,
    /// Images with captions: a CSV, TSV or JSONL file, a folder per class, tar shards, or Parquet files
    ///
    /// A `.csv` or `.tsv` file has a header with the columns image, caption and, if wanted, split (or what --image-key and the like
    /// name), and a row per caption. A `.jsonl` file has one object a line with these fields; its caption may be a list. A folder
    /// may hold one folder per class, within folders train, test and val or without; the class's name becomes a caption by
    /// --template. WebDataset shards are `.tar` files, a brace range such as 'shard-{000..012}.tar', or a folder of them, with members
    /// KEY.jpg and KEY.txt or KEY.json; they are read in place. `.parquet` files (feature parquet) have a column of images' bytes or
    /// paths and one of captions. Shards and Parquet files without a split of their own have that of their name, as in train-0001.tar.
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// The folder that image names are relative to [default: the data file's, or images in it]
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    #[command(flatten)]
    pub reading: Reading,
    /// Towers that are not trained
    #[arg(long, value_delimiter = ',')]
    pub freeze: Vec<Tower>,
    /// Parameters that are not trained: a pattern over names, as 'vision_model.embeddings.*'; may be given more than once
    #[arg(long, value_name = "PATTERN")]
    pub freeze_params: Vec<Pattern>,
    /// Towers that start from random weights; only their configuration is read
    #[arg(long, value_delimiter = ',')]
    pub random_init: Vec<Tower>,
    /// The projections: Linear → GELU → LayerNorm, or one matrix [default: mlp]
    #[arg(long)]
    pub project: Option<Project>,
    /// Whether pooled outputs are scaled to unit length before they are projected [default: true for mlp, false for linear]
    #[arg(long, value_name = "true|false")]
    pub normalize_inputs: Option<bool>,
    /// Width of the shared space [default: 256]
    #[arg(long, value_name = "N")]
    pub embed_dim: Option<usize>,
    /// mean, cls, pooler or eos [default: as the checkpoint says]
    #[arg(long)]
    pub text_pool: Option<TextPooling>,
    /// cls, mean, pooler or logits [default: as the checkpoint says]
    #[arg(long)]
    pub image_pool: Option<ImagePooling>,
    /// Side of the image input in pixels [default: as the checkpoint says]
    #[arg(long, value_name = "N")]
    pub image_size: Option<u32>,
    /// Random views of training images: a list of crop or resized-crop, flip, jitter, gray, blur [default: none]
    ///
    /// crop takes any place of the resized image, resized-crop=0.5 a part of at least half of the original one (0.9 without a number), flip
    /// mirrors every second image, jitter=0.8 changes the colours of eight in ten, gray=0.2 takes them from two in ten,
    /// blur=0.5 blurs every second.
    #[arg(long)]
    pub augment: Option<Augment>,
    /// Images of a class (those with the very same captions) that an epoch shall see at least: rare ones are repeated up to four times
    #[arg(long, value_name = "N")]
    pub balance: Option<usize>,
    /// How often every image is seen [default: by what is trained, and about 400 steps]
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// Pairs a step [default: 128, of frozen towers 512; less for few images]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Peak learning rate of projections and scale [default: by what is trained]
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub lr: Option<f64>,
    /// Peak learning rate of the towers [default: by what is trained]
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub tower_lr: Option<f64>,
    /// Decoupled weight decay of matrices
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.05)]
    pub weight_decay: f64,
    /// Steps in which the learning rate rises [default: a tenth of all steps]
    #[arg(long, value_name = "N")]
    pub warmup_steps: Option<usize>,
    /// Norm that gradients are clipped to [default: 1 where a tower is trained, else not clipped]
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub clip_norm: Option<f64>,
    /// Seed of fresh weights, order, captions and augmentation
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// When to measure: after each epoch or at the end; before the first step in any case [default: each]
    #[arg(long)]
    pub evaluate: Option<When>,
    /// Where to save the model
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The type the model is saved in: f32 keeps every bit, f16 and bf16 take half the room
    #[arg(long, default_value = "f32")]
    pub save_dtype: String,
    /// Print one JSON object on the last line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub strategy: Strategy,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub reports: Reports,
    #[command(flatten)]
    pub machine: Machine,
}

impl Args {
    /// Where the report goes, if there is one.
    pub fn report(&self) -> Option<PathBuf> {
        let beside = || Some(self.out.as_ref()?.join("report.html"));
        self.reports.report.clone().or_else(beside)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tower {
    Text,
    Image,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Project {
    Mlp,
    Linear,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    Each,
    End,
}
