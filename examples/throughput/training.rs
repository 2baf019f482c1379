//! Whole training steps on random inputs, and what they take.

use std::time::Instant;

use clap::{Args, ValueEnum};
use diptych::adapt::LoraConfig;
use diptych::candle::Tensor;
use diptych::loss::ClipLoss;
use diptych::ops::{Packing, Weight};
use diptych::text::TokenBatch;
use diptych::towers::{PooledToken, TextTowerConfig};
use diptych::train::{Optimizer, OptimizerConfig, ParamGroup};
use diptych::weights::Activations;
use diptych::{ClipModel, Loader};

use crate::common::{Outcome, keep_freed_memory, peak_rss_mb, rounded, say};

/// What a step trains, with --what train.
#[derive(Args)]
pub struct Options {
    /// Which towers are frozen
    #[arg(long, default_value = "none")]
    freeze: Freeze,
    /// Tokens a text
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    text_length: u16,
    /// Train adapters of this rank on the queries' and values' projections instead
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// Keep each block's input alone, and run the block again for its gradients
    #[arg(long)]
    recompute: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Freeze {
    None,
    Image,
    Both,
}

impl Options {
    /// Times `rounds` steps after one that warms up, and prints the median as JSON.
    pub fn run(&self, loader: &Loader, model: &str, batch: usize, rounds: usize) -> Outcome<()> {
        keep_freed_memory();
        let mut model = self.model(loader, model)?;
        if self.recompute {
            model = model.with_activations(Activations::Recomputed)?;
        }
        let floats = |(_, weight): (_, &Weight)| !matches!(weight, Weight::Packed(w) if w.packing() == Packing::Int8);
        if self.lora.is_none() && !model.parameters().weights().all(floats) {
            return Err(
                "the model is quantised, and integers are not trained; `convert --quantize none` gives floats".into()
            );
        }
        let (pixels, tokens) = inputs(&model, batch, self.text_length.into())?;
        let group = ParamGroup { vars: model.trainable(), lr: 1e-5, weight_decay: 0.1 };
        let mut optimizer = Optimizer::new(vec![group], OptimizerConfig::default())?;
        let mut times = Vec::with_capacity(rounds);
        for round in 0..=rounds {
            let start = Instant::now();
            step(&model, &mut optimizer, &pixels, &tokens)?;
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[rounds / 2];
        say(serde_json::json!({
            "peer": "diptych", "what": "train", "batch": batch, "freeze": self.name(), "lora": self.lora,
            "recompute": self.recompute,
            "ms_per_step": rounded(seconds * 1e3),
            "images_per_second": rounded(batch as f64 / seconds), "peak_rss_mb": peak_rss_mb(),
        }))
    }

    fn name(&self) -> &'static str {
        match self.freeze {
            Freeze::None => "none",
            Freeze::Image => "image",
            Freeze::Both => "both",
        }
    }

    fn model(&self, loader: &Loader, model: &str) -> Outcome<ClipModel> {
        if let Some(rank) = self.lora {
            return Ok(loader.clone().trainable(false).clip(model)?.with_lora(&LoraConfig::new(rank)?)?);
        }
        let freeze = self.freeze;
        let trained = move |name: &str| match freeze {
            Freeze::None => true,
            Freeze::Image => !name.starts_with("vision_model."),
            Freeze::Both => !name.starts_with("vision_model.") && !name.starts_with("text_model."),
        };
        match freeze {
            Freeze::None => Ok(loader.clip(model)?),
            // What stays frozen is packed as it is read.
            Freeze::Image | Freeze::Both => Ok(loader.clone().trainable(false).clip(model)?.with_trainable(trained)?),
        }
    }
}

/// Random pixels and ids; each text ends where the tower looks for its end.
fn inputs(model: &ClipModel, batch: usize, length: usize) -> Outcome<(Tensor, TokenBatch)> {
    let side = model.config().image.tower.image_size();
    let pixels = Tensor::randn(0f32, 1.0, (batch, 3, side, side), model.image_encoder().device())?;
    let tower = &model.config().text.tower;
    let end = match tower {
        TextTowerConfig::TextTransformer(config) => match config.pooled_token {
            PooledToken::FirstId(id) => id,
            PooledToken::FirstLargest => config.vocab_size as u32 - 1,
        },
        _ => 2,
    };
    let most = (tower.vocab_size() as u32 - 1).min(40_000);
    let mut state = 1u64;
    let mut id = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        5 + (state >> 33) as u32 % (most - 5).max(1)
    };
    let row = |_| (1..length).map(|_| id()).chain([end]).collect();
    let rows: Vec<Vec<u32>> = (0..batch).map(row).collect();
    Ok((pixels, TokenBatch::from_rows(&rows, 0)?))
}

/// Forward, backward, AdamW.
fn step(model: &ClipModel, optimizer: &mut Optimizer, pixels: &Tensor, tokens: &TokenBatch) -> Outcome<()> {
    let output = model.forward(pixels, tokens)?;
    let loss = ClipLoss::new().from_logits(&output.logits_per_image)?;
    let grads = loss.backward()?;
    // The graph is not needed any more.
    drop((output, loss));
    optimizer.step(&grads, 1.0)?;
    Ok(())
}
