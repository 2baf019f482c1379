//! Classifies photos by class names alone. Without arguments: the bundled model on the bundled photos.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::{Machine, Outcome, bundled, exit, lines, say};
use diptych::zero_shot::{Classification, Template};
use serde_json::json;

/// What the bundled photos are told apart by.
const LABELS: &str = include_str!("../assets/photos/labels.txt");

/// Classify images by class names alone.
#[derive(Parser)]
struct Args {
    /// A folder, or an id on the hub [default: the bundled model]
    #[arg(long, value_name = "DIR_OR_ID")]
    model: Option<String>,
    /// Class names, separated by commas [default: everyday things]
    #[arg(long, value_delimiter = ',', conflicts_with = "labels_from")]
    labels: Vec<String>,
    /// A file with a class name a line
    #[arg(long, value_name = "FILE")]
    labels_from: Option<PathBuf>,
    /// A prompt with {} for the class name; several are averaged [default: "a photo of a {}"]
    #[arg(long, value_name = "PROMPT")]
    template: Vec<Template>,
    /// How many classes to print an image
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Print one JSON object an image
    #[arg(long)]
    json: bool,
    /// The images [default: the bundled photos]
    images: Vec<PathBuf>,
    #[command(flatten)]
    machine: Machine,
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    let labels = match &args.labels_from {
        Some(path) => lines(path)?,
        None if args.labels.is_empty() => LABELS.lines().map(str::to_string).collect(),
        None => args.labels.iter().map(|label| label.trim().to_string()).collect(),
    };
    let images = if args.images.is_empty() { bundled_photos()? } else { args.images.clone() };
    let templates = if args.template.is_empty() { Template::photo() } else { args.template.clone() };
    let model = args.machine.loader()?.trainable(false).clip(&model_name(args)?)?;
    let classifier = model.zero_shot_with(&labels, &templates)?;
    for batch in images.chunks(32) {
        for (image, classes) in batch.iter().zip(classifier.classify_all(batch)?) {
            print(args, image, &classes[..classes.len().min(args.top as usize)])?;
        }
    }
    Ok(())
}

/// The model asked for, or the bundled one where the source code came with it.
fn model_name(args: &Args) -> Outcome<String> {
    if let Some(model) = &args.model {
        return Ok(model.clone());
    }
    let tiny = bundled("assets/tiny");
    match tiny.join("model.safetensors").is_file() {
        true => Ok(tiny.to_string_lossy().into_owned()),
        false => Err("the bundled model is not in the published package; take a model from the hub, as with \
                      --model openai/clip-vit-base-patch32, or train one with the program finetune"
            .into()),
    }
}

fn bundled_photos() -> Outcome<Vec<PathBuf>> {
    let folder = bundled("assets/photos");
    let mut photos = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jpg" || extension == "png") {
            photos.push(path);
        }
    }
    photos.sort();
    Ok(photos)
}

fn print(args: &Args, image: &Path, classes: &[Classification]) -> Outcome<()> {
    if args.json {
        return say(json!({ "image": image.to_string_lossy(), "labels": classes }));
    }
    let name = image.file_name().unwrap_or(image.as_os_str()).to_string_lossy();
    let classes: Vec<String> =
        classes.iter().map(|class| format!("{} {:.0} %", class.label, class.probability * 100.0)).collect();
    say(format!("{name}: {}", classes.join(", ")))
}
