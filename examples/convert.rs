//! Writes a dual encoder in another layout (transformers', open_clip's, or this crate's own), another number type, or quantised.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use common::{Machine, Outcome, dtype, exit, say};
use diptych::Quantization;
use diptych::families::ModelLayout;

/// Write a dual encoder in another layout, in another number type, or quantised.
///
/// Towers that a layout has no words for are refused; our own layout has words for all.
#[derive(Parser)]
struct Args {
    /// A folder, or an id on the hub
    #[arg(value_name = "DIR_OR_ID")]
    model: String,
    /// The folder to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Whose layout to write [default with --quantize: diptych]
    #[arg(long, value_enum, required_unless_present = "quantize")]
    to: Option<To>,
    /// f32, f16 or bf16 [default: f32]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// int8: linear layers as 8-bit integers, tables as f16; none: floats again. Only our own layout has integers
    #[arg(long, value_name = "INT8_OR_NONE", value_parser = ["int8", "none"], conflicts_with = "dtype")]
    quantize: Option<String>,
    #[command(flatten)]
    machine: Machine,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    /// config.json and model.safetensors, for transformers
    HuggingFace,
    /// open_clip_config.json and open_clip_model.safetensors
    OpenClip,
    /// config.json with model_type diptych
    Diptych,
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    let layout = match args.to {
        Some(To::HuggingFace) => ModelLayout::HuggingFace,
        Some(To::OpenClip) => ModelLayout::OpenClip,
        Some(To::Diptych) | None => ModelLayout::Diptych,
    };
    let same = || Some(std::fs::canonicalize(&args.model).ok()? == std::fs::canonicalize(&args.out).ok()?);
    if args.quantize.as_deref() == Some("int8") && same() == Some(true) {
        let message =
            "integers would take the place of the floats, which they cannot be turned back into; choose another OUT";
        return Err(format!("{}: {message}", args.out.display()).into());
    }
    let mut loader = args.machine.loader()?;
    if let Some(name) = &args.dtype {
        loader = loader.dtype(dtype("--dtype", name)?).dequantize();
    }
    loader = match args.quantize.as_deref() {
        Some("int8") => loader.quantize(Quantization::Int8),
        Some(_) => loader.dequantize(),
        None => loader,
    };
    let model = loader.clip(&args.model)?;
    model.save_pretrained_in(&args.out, layout)?;
    say(args.out.display())
}
