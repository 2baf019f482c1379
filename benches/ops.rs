//! Time of each operation, forward and backward, at the sizes of a ViT-S block, of the whole block, and of products of packed weights.
//!
//! `cargo bench --bench ops [-- REGEX]`. Where arithmetic is what takes the time, its rate and its share of the limit follow; that of integers
//! relates to the limit of floats.

mod common;

use candle_core::{Device, Tensor, Var};
use common::Meter;
use diptych::Result;
use diptych::ops::{self, Activation, AttentionMask, PackedWeight, Packing, Weight};

const BATCH: usize = 128;
const LENGTH: usize = 65;
const SIZE: usize = 384;
const HEADS: usize = 6;
const HIDDEN: usize = 1536;

fn main() -> Result<()> {
    let x = var(&[BATCH, LENGTH, SIZE])?;
    let hidden = var(&[BATCH, LENGTH, HIDDEN])?;
    let (q, k, v) = (var(&[BATCH, LENGTH, SIZE])?, var(&[BATCH, LENGTH, SIZE])?, var(&[BATCH, LENGTH, SIZE])?);
    let tokens = (BATCH * LENGTH) as f64;
    let up = Linear::new(SIZE, HIDDEN)?;
    let down = Linear::new(HIDDEN, SIZE)?;
    let square = Linear::new(SIZE, SIZE)?;
    let row = var(&[SIZE])?;
    let bias = var(&[SIZE])?;
    let positions = var(&[LENGTH, SIZE])?;
    let keep = vec![true; BATCH * LENGTH];

    let mut meter = Meter::new();
    let meter = &mut meter;
    both(meter, "linear E->E", 2.0 * tokens * (SIZE * SIZE) as f64, || square.forward(&x))?;
    both(meter, "linear E->hidden", 2.0 * tokens * (SIZE * HIDDEN) as f64, || up.forward(&x))?;
    both(meter, "linear hidden->E", 2.0 * tokens * (SIZE * HIDDEN) as f64, || down.forward(&hidden))?;
    let fused = || ops::linear_activate(&x, &up.weight, Some(&up.bias), Activation::Gelu);
    both(meter, "linear_activate", 2.0 * tokens * (SIZE * HIDDEN) as f64, fused)?;
    let flops = 4.0 * tokens * (LENGTH * SIZE) as f64;
    both(meter, "attention", flops, || ops::attention(&q, &k, &v, HEADS, &AttentionMask::none()))?;
    both(meter, "gelu", 0.0, || ops::activate(&hidden, Activation::Gelu))?;
    both(meter, "quick_gelu", 0.0, || ops::activate(&hidden, Activation::QuickGelu))?;
    both(meter, "layer_norm", 0.0, || ops::layer_norm(&x, &row, &bias, 1e-6))?;
    both(meter, "scale_row", 0.0, || ops::scale_row(&x, &row))?;
    both(meter, "add_row (positions)", 0.0, || ops::add_row(&x, &positions))?;
    both(meter, "l2_normalize", 0.0, || ops::l2_normalize(&x))?;
    both(meter, "mean_pool", 0.0, || ops::mean_pool(&x, &keep))?;
    both(meter, "candle add", 0.0, || Ok((x.as_tensor() + q.as_tensor())?))?;

    let block = Block::new()?;
    let flops = tokens * (2 * (4 * SIZE * SIZE + 2 * SIZE * HIDDEN) + 4 * LENGTH * SIZE) as f64;
    both(meter, "whole block", flops, || block.forward(&x))?;
    packed(meter)
}

fn var(shape: &[usize]) -> Result<Var> {
    Ok(Var::from_tensor(&Tensor::randn(0f32, 0.05, shape, &Device::Cpu)?)?)
}

/// Forward and backward; the backward pass of a layer has twice the operations of its forward pass.
fn both(meter: &mut Meter, name: &str, flops: f64, run: impl Fn() -> Result<Tensor>) -> Result<()> {
    let grad = run()?.randn_like(0.0, 1.0)?.detach();
    meter.measure(name, flops, || Ok(()), |()| run())?;
    let loss = || Ok(run()?.apply_op2(&grad, Seed)?);
    meter.measure(&format!("{name}, backward"), 2.0 * flops, loss, |loss| Ok(loss.backward()?))
}

/// Products of packed weights, as inference computes them: CLIP ViT-B/32's sizes, eight images of it, one and a short text.
fn packed(meter: &mut Meter) -> Result<()> {
    for (kind, packing) in [("f32", Packing::Float), ("int8", Packing::Int8)] {
        for (outputs, inputs) in [(768, 768), (3072, 768), (768, 3072)] {
            let weight = Tensor::randn(0f32, 0.05, (outputs, inputs), &Device::Cpu)?;
            let Some(weight) = PackedWeight::pack(&weight, packing)?.map(Weight::Packed) else { continue };
            for rows in [14, 50, 400] {
                let x = Tensor::randn(0f32, 1.0, (rows, inputs), &Device::Cpu)?;
                let name = format!("packed {kind} {rows}x{inputs}x{outputs}");
                let flops = 2.0 * (rows * outputs * inputs) as f64;
                meter.measure(&name, flops, || Ok(()), |()| weight.forward(&x, None, None))?;
            }
        }
    }
    Ok(())
}

/// A scalar whose backward pass hands out a given gradient without any work.
struct Seed;

impl candle_core::CustomOp2 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(
        &self,
        _: &candle_core::CpuStorage,
        _: &candle_core::Layout,
        _: &candle_core::CpuStorage,
        _: &candle_core::Layout,
    ) -> candle_core::Result<(candle_core::CpuStorage, candle_core::Shape)> {
        Ok((candle_core::CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        grad: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), None))
    }
}

struct Linear {
    weight: Var,
    bias: Var,
}

impl Linear {
    fn new(inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self { weight: var(&[outputs, inputs])?, bias: var(&[outputs])? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, Some(&self.bias))
    }
}

struct Block {
    norms: [(Var, Var); 2],
    projections: [Linear; 4],
    up: Linear,
    down: Linear,
}

impl Block {
    fn new() -> Result<Self> {
        let norm = || Ok::<_, diptych::Error>((var(&[SIZE])?, var(&[SIZE])?));
        let square = || Linear::new(SIZE, SIZE);
        Ok(Self {
            norms: [norm()?, norm()?],
            projections: [square()?, square()?, square()?, square()?],
            up: Linear::new(SIZE, HIDDEN)?,
            down: Linear::new(HIDDEN, SIZE)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.norms;
        let normal = ops::layer_norm(x, &first.0, &first.1, 1e-6)?;
        let [q, k, v, out] = &self.projections;
        let (q, k, v) = (q.forward(&normal)?, k.forward(&normal)?, v.forward(&normal)?);
        let x = (x + out.forward(&ops::attention(&q, &k, &v, HEADS, &AttentionMask::none())?)?)?;
        let normal = ops::layer_norm(&x, &second.0, &second.1, 1e-6)?;
        let hidden = ops::linear_activate(&normal, &self.up.weight, Some(&self.up.bias), Activation::Gelu)?;
        Ok((x + self.down.forward(&hidden)?)?)
    }
}
