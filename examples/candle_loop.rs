//! A training loop of your own, with candle's variables and candle's optimiser: what `diptych::train` does for you, in thirty
//! lines. It teaches a small random model to tell the bundled photos apart.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::{Outcome, bundled, exit, say};
use diptych::candle::{DType, Device};
use diptych::candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use diptych::image::ImageInput;
use diptych::loss::ClipLoss;
use diptych::weights::{Params, VarBuilderSource};
use diptych::{ClipModel, LogitScale};

/// Train a small dual encoder with a loop of your own.
#[derive(Parser)]
struct Args {
    /// Optimiser steps
    #[arg(long, default_value_t = 30)]
    steps: usize,
}

/// The bundled photos and what they show.
const PAIRS: [(&str, &str); 6] = [
    ("astronaut", "a woman in an orange suit"),
    ("cat", "a cat looks into the camera"),
    ("coffee", "a cup of coffee with a spoon"),
    ("rocket", "a rocket takes off"),
    ("dahlia", "a flower in the garden"),
    ("temple", "a temple with a blue roof"),
];

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    let device = Device::Cpu;
    // Configuration, tokenizer and processor of the bundled model; its weights are not read.
    let folder = bundled("assets/tiny");
    let template = ClipModel::loader().random_weights(0).clip(&folder.to_string_lossy())?;
    let tokenizer =
        diptych::text::TextTokenizer::from_folder(&folder, template.text_encoder().tokenizer().rules().clone())?;
    let processor = template.image_encoder().processor().clone();

    // The parameters live in candle's VarMap: named variables for any candle optimiser.
    let variables = VarMap::new();
    let builder = VarBuilder::from_varmap(&variables, DType::F32, &device);
    let params = Params::new(VarBuilderSource(builder));
    let model = ClipModel::from_params(template.config(), tokenizer, processor, &params, &device)?;
    let config = ParamsAdamW { lr: 1e-3, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(variables.all_vars(), config)?;

    let photos = PAIRS.map(|(name, _)| ImageInput::from(bundled(&format!("assets/photos/{name}.jpg"))));
    let pixel_values = model.image_encoder().processor().pixel_values(&photos, &device)?;
    let tokens = model.text_encoder().tokenize(&PAIRS.map(|(_, caption)| caption))?;
    for step in 1..=args.steps {
        let output = model.forward(&pixel_values, &tokens)?;
        let loss = ClipLoss::new().forward(&output.image_embeds, &output.text_embeds, &output.logit_scale)?;
        optimizer.backward_step(&loss)?;
        model.clamp_logit_scale(0.0, LogitScale::LARGEST)?;
        say(format!("step {step}: loss {:.4}", loss.to_scalar::<f32>()?))?;
    }
    Ok(())
}
