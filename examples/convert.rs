//! Writes a dual encoder in another layout: transformers', open_clip's, or this crate's own.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use common::{Machine, Outcome, exit, say};
use diptych::families::ModelLayout;

/// Write a dual encoder in another layout.
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
    /// Whose layout to write
    #[arg(long, value_enum)]
    to: To,
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
        To::HuggingFace => ModelLayout::HuggingFace,
        To::OpenClip => ModelLayout::OpenClip,
        To::Diptych => ModelLayout::Diptych,
    };
    let model = args.machine.loader()?.clip(&args.model)?;
    model.save_pretrained_in(&args.out, layout)?;
    say(args.out.display())
}
