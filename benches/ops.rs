//! Time of each operation, forward and backward, at the sizes of a ViT-S block, and of the whole block.
//!
//! `cargo bench --bench ops`. Prints medians, and for products the rate in GFLOP/s.

use candle_core::{Device, Tensor, Var};
use diptych::Result;
use diptych::ops::{self, Activation, AttentionMask};
use std::hint::black_box;
use std::time::Instant;

const BATCH: usize = 128;
const LENGTH: usize = 65;
const SIZE: usize = 384;
const HEADS: usize = 6;
const HIDDEN: usize = 1536;
const RUNS: usize = 9;

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

    println!("B={BATCH} L={LENGTH} E={SIZE} H={HEADS} hidden={HIDDEN}, {} threads", rayon::current_num_threads());
    println!("{:<24}{:>12}{:>12}{:>12}{:>12}", "", "forward ms", "GFLOP/s", "backward ms", "GFLOP/s");
    measure("linear E->E", 2.0 * tokens * (SIZE * SIZE) as f64, || square.forward(&x))?;
    measure("linear E->hidden", 2.0 * tokens * (SIZE * HIDDEN) as f64, || up.forward(&x))?;
    measure("linear hidden->E", 2.0 * tokens * (SIZE * HIDDEN) as f64, || down.forward(&hidden))?;
    let fused = || ops::linear_activate(&x, &up.weight, Some(&up.bias), Activation::Gelu);
    measure("linear_activate", 2.0 * tokens * (SIZE * HIDDEN) as f64, fused)?;
    let flops = 4.0 * tokens * (LENGTH * SIZE) as f64;
    measure("attention", flops, || ops::attention(&q, &k, &v, HEADS, &AttentionMask::none()))?;
    measure("gelu", 0.0, || ops::activate(&hidden, Activation::Gelu))?;
    measure("quick_gelu", 0.0, || ops::activate(&hidden, Activation::QuickGelu))?;
    measure("layer_norm", 0.0, || ops::layer_norm(&x, &row, &bias, 1e-6))?;
    measure("scale_row", 0.0, || ops::scale_row(&x, &row))?;
    measure("add_row (positions)", 0.0, || ops::add_row(&x, &positions))?;
    measure("l2_normalize", 0.0, || ops::l2_normalize(&x))?;
    measure("mean_pool", 0.0, || ops::mean_pool(&x, &keep))?;
    measure("candle add", 0.0, || Ok((x.as_tensor() + q.as_tensor())?))?;

    let block = Block::new()?;
    let flops = tokens * (2 * (4 * SIZE * SIZE + 2 * SIZE * HIDDEN) + 4 * LENGTH * SIZE) as f64;
    measure("whole block", flops, || block.forward(&x))?;
    Ok(())
}

fn var(shape: &[usize]) -> Result<Var> {
    Ok(Var::from_tensor(&Tensor::randn(0f32, 0.05, shape, &Device::Cpu)?)?)
}

/// Medians of forward and backward; the backward pass of a layer has twice the operations of its forward pass.
fn measure(name: &str, flops: f64, run: impl Fn() -> Result<Tensor>) -> Result<()> {
    let grad = run()?.randn_like(0.0, 1.0)?.detach();
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        let y = run()?;
        forward.push(start.elapsed().as_secs_f64());
        let loss = y.apply_op2(&grad, Seed)?;
        let start = Instant::now();
        black_box(loss.backward()?);
        backward.push(start.elapsed().as_secs_f64());
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (forward, backward) = (median(&mut forward), median(&mut backward));
    let rate =
        |flops: f64, seconds: f64| if flops > 0.0 { format!("{:.0}", flops / seconds / 1e9) } else { String::new() };
    println!(
        "{name:<24}{:>12.2}{:>12}{:>12.2}{:>12}",
        forward * 1e3,
        rate(flops, forward),
        backward * 1e3,
        rate(2.0 * flops, backward)
    );
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
