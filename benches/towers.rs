//! Time of whole towers without training: CLIP ViT-B/32 with random weights, f32 and int8, by batch, size of the image and length of
//! the text; and of a search among embeddings, by how many there are.
//!
//! `cargo bench --bench towers [-- REGEX]`. The arithmetic is that of every token in every block; the last block computes what is pooled alone, so the
//! share of the limit can come out up to a twelfth too high.

mod common;
#[path = "../tests/common/vit_b_32.rs"]
mod vit_b_32;

use common::Meter;
use diptych::candle::{Device, Tensor};
use diptych::retrieval::top_k;
use diptych::text::TokenBatch;
use diptych::{ClipModel, Embeddings, Loader, Quantization, Result};

fn main() -> Result<()> {
    let mut meter = Meter::new();
    let floats = |side| load(side, Loader::new().trainable(false));
    let integers = load(224, Loader::new().quantize(Quantization::Int8))?;
    for (kind, model) in [("f32", &floats(224)?), ("int8", &integers)] {
        for batch in [1, 8, 32] {
            images(&mut meter, kind, model, batch, 224)?;
        }
        for (batch, length) in [(1, 14), (8, 14), (32, 14), (8, 28), (8, 77)] {
            texts(&mut meter, kind, model, batch, length)?;
        }
    }
    for side in [160, 320, 448] {
        images(&mut meter, "f32", &floats(side)?, 8, side)?;
    }
    for count in [1_000, 10_000, 100_000] {
        search(&mut meter, count)?;
    }
    Ok(())
}

fn load(side: usize, loader: Loader) -> Result<ClipModel> {
    let folder = vit_b_32::folder(side);
    loader.random_weights(0).clip(&folder.path().display().to_string())
}

fn images(meter: &mut Meter, kind: &str, model: &ClipModel, batch: usize, side: usize) -> Result<()> {
    let pixels = Tensor::randn(0f32, 1.0, (batch, 3, side, side), &Device::Cpu)?;
    let patches = (side / 32).pow(2);
    let flops = batch as f64 * (blocks(patches + 1, 768) + 2.0 * (patches * 3 * 32 * 32 * 768 + 768 * 512) as f64);
    let run = |()| model.project_image(&model.image_encoder().pooled_detached(&pixels)?);
    meter.measure(&format!("image {kind}, batch {batch}, {side} px"), flops, || Ok(()), run)
}

fn texts(meter: &mut Meter, kind: &str, model: &ClipModel, batch: usize, length: usize) -> Result<()> {
    let row = |i: usize| (1..length).map(|k| ((i * k) % 100) as u32).chain([103]).collect();
    let tokens = TokenBatch::from_rows(&(0..batch).map(row).collect::<Vec<Vec<u32>>>(), 1)?;
    let flops = batch as f64 * (blocks(length, 512) + 2.0 * (512 * 512) as f64);
    let run = |()| model.project_text(&model.text_encoder().pooled_detached(&tokens)?);
    meter.measure(&format!("text {kind}, batch {batch}, {length} tokens"), flops, || Ok(()), run)
}

/// The ten best of `count` embeddings for one query.
fn search(meter: &mut Meter, count: usize) -> Result<()> {
    let rows = |count| Embeddings::from_features(&Tensor::randn(0f32, 1.0, (count, 512), &Device::Cpu)?);
    let (query, gallery) = (rows(1)?, rows(count)?);
    let run = |()| top_k(&query, &gallery, 10);
    meter.measure(&format!("search among {count}"), (2 * count * 512) as f64, || Ok(()), run)
}

/// Twelve blocks of `length` tokens: four square layers, an MLP of four times the width, scores and their sums.
fn blocks(length: usize, width: usize) -> f64 {
    12.0 * (2 * length * (12 * width * width + 2 * length * width)) as f64
}
