//! What is chosen where the options say nothing: rates by what is trained, batch and epochs by how much data there is, and how many
//! rows are in memory at a time by the memory that is free.
//!
//! | what is trained | rate of the projections | of the towers | batch | epochs |
//! |---|---|---|---|---|
//! | fresh projections on frozen towers | 1e-3 | – | 512 | 30 |
//! | fresh projections and towers | 1e-3 | 5e-5 | 128 | 3 to 10 |
//! | a whole model | 1e-4 below 10 million parameters, else 1e-5 | the same | 128 | 3 to 10 |
//! | a whole model's projections | 3e-4 | – | 512 | 30 |
//! | adapters (LoRA) | 3e-4 | 3e-4 | 128 | 3 to 10 |
//! | random towers | 1e-3 | 1e-3 | 128 | 15 to 30 |
//!
//! A batch is at most a quarter of the images, so that an epoch has four steps; between the limits above, epochs are so many that the run
//! has about 400 steps.
//!
//! Measured: the rates of the first two rows (README, Flickr8k), and that of a small whole model: the bundled one on 1,000 photos that it
//! had not seen, three epochs, finds 4.5 % of 500 test photos' captions first at 1e-4 and 3.9 % at 3e-4. The others are customary.

use diptych::ClipModel;

use crate::args::Args;

/// Numbers for one run.
pub struct Defaults {
    pub lr: f64,
    pub tower_lr: f64,
    pub batch_size: usize,
    pub clip_norm: Option<f64>,
    epochs: (usize, usize),
    bytes_per_pair: usize,
}

/// How many steps a run has, where the limits on its epochs allow that.
const STEPS: usize = 400;
/// Parameters from which on a model counts as large.
const LARGE: usize = 10_000_000;

impl Defaults {
    pub fn new(args: &Args, model: &ClipModel, images: usize) -> Self {
        let frozen = model.text_encoder().is_frozen() && model.image_encoder().is_frozen();
        let whole = args.model.is_some() && args.random_init.is_empty();
        let (lr, tower_lr) = match (frozen, whole) {
            _ if args.strategy.lora.is_some() => (3e-4, 3e-4),
            _ if args.random_init.len() == 2 => (1e-3, 1e-3),
            (true, true) => (3e-4, 0.0),
            (true, false) => (1e-3, 0.0),
            (false, true) if model.parameters().element_count() < LARGE => (1e-4, 1e-4),
            (false, true) => (1e-5, 1e-5),
            (false, false) => (1e-3, 5e-5),
        };
        let epochs = if frozen {
            (30, 30)
        } else if args.random_init.is_empty() {
            (3, 10)
        } else {
            (15, 30)
        };
        let largest = if frozen { 512 } else { 128 };
        let batch_size = power_of_two(images / 4).clamp(2, largest);
        let clip_norm = (!frozen).then_some(1.0);
        Self {
            lr,
            tower_lr,
            batch_size,
            clip_norm,
            epochs,
            bytes_per_pair: bytes_per_pair(model, args.keeping.patch_keep),
        }
    }

    pub fn epochs(&self, images: usize, batch_size: usize) -> usize {
        let (least, most) = self.epochs;
        (STEPS / (images / batch_size.max(1)).max(1)).clamp(least, most)
    }

    /// How many rows' activations fit into half of the memory that is free, if that is less than the batch.
    pub fn micro_batch(&self, batch_size: usize) -> Option<usize> {
        let rows = power_of_two(free_memory()? / 2 / self.bytes_per_pair.max(1)).max(1);
        (rows < batch_size).then_some(rows)
    }
}

/// The largest power of two up to `n`; 0 for 0.
fn power_of_two(n: usize) -> usize {
    n.checked_ilog2().map_or(0, |power| 1 << power)
}

/// Roughly what a pair's activations take in towers that are trained: inputs and outputs of their linear layers, in f32. (CLIP ViT-B/32:
/// 61 MB by this reckoning; 60 MB measured with texts of 32 tokens.)
fn bytes_per_pair(model: &ClipModel, patch_keep: f64) -> usize {
    let parameters = model.parameters();
    let image_tokens = (image_tokens(model) as f64 * patch_keep).ceil() as usize;
    let floats = |layer: &String| {
        let (frozen, tokens) = if layer.starts_with("vision_model.") {
            (model.image_encoder().is_frozen(), image_tokens)
        } else {
            (model.text_encoder().is_frozen() || !layer.starts_with("text_model."), 64)
        };
        let size: usize = parameters.get(&format!("{layer}.weight")).map_or(0, |weight| weight.dims().iter().sum());
        if frozen { 0 } else { tokens * size }
    };
    model.linear_layers().iter().map(floats).sum::<usize>() * std::mem::size_of::<f32>()
}

/// Patches of an image, where the tower has patches; for others a guess.
fn image_tokens(model: &ClipModel) -> usize {
    let side = model.image_encoder().config().tower.image_size();
    let side = model.image_encoder().processor().config().crop.map_or(side, |crop| crop.height as usize);
    let parameters = model.parameters();
    let patches = parameters.iter().find(|(name, _)| {
        name.ends_with("patch_embedding.weight") || name.ends_with("patch_embeddings.projection.weight")
    });
    let patch = patches.and_then(|(_, weight)| weight.dims().get(2).copied()).unwrap_or(16);
    (side / patch.max(1)).pow(2) + 1
}

/// Bytes that programs can still take, where the system tells.
fn free_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<usize>().ok().map(|kib| kib * 1024)
}
