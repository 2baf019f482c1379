//! The limit of this machine, and how near the products of packed weights come to it: multiply-adds that wait for nothing but each
//! other, on one thread and on all, then products of the sizes that towers have.

mod common;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use common::{Machine, Outcome, exit, say};
use diptych::candle::{Device, Tensor};
use diptych::ops::{PackedWeight, Packing, Weight};

/// Measure the FMA peak and what share of it products reach.
#[derive(Parser)]
struct Args {
    /// Rows of the left operand
    #[arg(long, value_delimiter = ',', default_value = "14,50,460,1600")]
    rows: Vec<usize>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

/// Outputs and inputs of the layers of CLIP ViT-B/32.
const LAYERS: [(usize, usize); 6] = [(512, 512), (2048, 512), (512, 2048), (768, 768), (3072, 768), (768, 3072)];
/// Weights that follow one another, so that none is found in a cache.
const BYTES: usize = 160 << 20;

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    args.machine.loader()?;
    let threads = args.machine.workers();
    let (one, all) = (peak(1), peak(threads));
    if args.json {
        say(serde_json::json!({ "what": "peak", "threads": 1, "gflops": one.round() }))?;
        say(serde_json::json!({ "what": "peak", "threads": threads, "gflops": all.round() }))?;
    } else {
        say(format!("peak: {one:.0} GFLOP/s on one thread, {all:.0} on {threads}"))?;
    }
    for (outputs, inputs) in LAYERS {
        let count = (BYTES / (4 * outputs * inputs)).max(2);
        let weight =
            |_| PackedWeight::pack(&Tensor::randn(0f32, 0.05, (outputs, inputs), &Device::Cpu)?, Packing::Float);
        let weights: Vec<Weight> = (0..count)
            .filter_map(|i| weight(i).transpose())
            .map(|w| w.map(Weight::Packed))
            .collect::<Result<_, _>>()?;
        for &rows in &args.rows {
            let x = Tensor::randn(0f32, 1.0, (rows, inputs), &Device::Cpu)?;
            let gflops = 2e-9 * (rows * outputs * inputs * weights.len()) as f64 / seconds(&weights, &x)?;
            let share = 100.0 * gflops / all;
            if args.json {
                say(serde_json::json!({
                    "what": "product", "rows": rows, "outputs": outputs, "inputs": inputs,
                    "gflops": gflops.round(), "share": share.round()
                }))?;
            } else {
                say(format!("{rows:5} × {inputs:4} by {inputs:4} × {outputs:4}: {gflops:5.0} GFLOP/s, {share:3.0} %"))?;
            }
        }
    }
    Ok(())
}

/// The median time of a product with every weight.
fn seconds(weights: &[Weight], x: &Tensor) -> Outcome<f64> {
    let mut times = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        // One of the pool's threads works too, as inside a model.
        rayon::scope(|_| {
            weights.iter().try_for_each(|weight| weight.forward(x, None, None).map(|y| drop(black_box(y))))
        })?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// GFLOP/s of multiply-adds in registers; the best of a few tries.
fn peak(threads: usize) -> f64 {
    const ROUNDS: usize = 1 << 25;
    let tries = (0..5).map(|_| {
        let start = Instant::now();
        let operations: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| multiply_adds(ROUNDS))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
        });
        operations as f64 / start.elapsed().as_secs_f64() * 1e-9
    });
    tries.fold(0.0, f64::max)
}

/// Runs `rounds` rounds and returns how many operations they were.
fn multiply_adds(rounds: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") {
            // SAFETY: the processor has just said that it has these instructions.
            return unsafe { x86::widest(rounds) };
        }
        if has!("avx2") && has!("fma") {
            // SAFETY: as above.
            return unsafe { x86::wide(rounds) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    return arm::wide(rounds);
    #[cfg(not(target_arch = "aarch64"))]
    chains(rounds, 1, 0.001f32, |sum| sum * 0.999 + 0.001)
}

/// Chains of vectors that do not wait for one another.
const CHAINS: usize = 12;

/// Applies `step` to every chain, again and again.
#[inline(always)]
fn chains<V: Copy>(rounds: usize, lanes: usize, start: V, step: impl Fn(V) -> V) -> usize {
    let mut sums = black_box([start; CHAINS]);
    for _ in 0..rounds {
        // Not `map`: nothing that stands between lets instructions of the caller's in.
        for sum in &mut sums {
            *sum = step(*sum);
        }
    }
    black_box(sums);
    2 * rounds * CHAINS * lanes
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
    use std::hint::black_box;

    #[target_feature(enable = "avx512f")]
    pub fn widest(rounds: usize) -> usize {
        let (by, plus) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        super::chains(rounds, 16, plus, |sum| _mm512_fmadd_ps(sum, by, plus))
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn wide(rounds: usize) -> usize {
        let (by, plus) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        super::chains(rounds, 8, plus, |sum| _mm256_fmadd_ps(sum, by, plus))
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
    use std::hint::black_box;

    pub fn wide(rounds: usize) -> usize {
        // SAFETY: every processor of this kind has these instructions.
        let (by, plus) = unsafe { (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(0.001))) };
        super::chains(rounds, 4, plus, |sum| unsafe { vfmaq_f32(plus, sum, by) })
    }
}
