//! The limit of this machine, and how near the products of packed weights come to it: multiply-adds that wait for nothing but each
//! other, on one thread and on all, then products of the sizes that towers have.

mod common;
#[path = "common/limit.rs"]
mod limit;

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
    let (one, all) = (limit::gflops(1), limit::gflops(threads));
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
