//! Measures a model on held-out data: retrieval on captioned images, or accuracy on labelled ones, zero-shot or by a linear probe.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgGroup, Parser};
use common::{Machine, Outcome, check_file, exit, keep_freed_memory, progress, say};
use diptych::adapt::{LinearProbe, ProbeConfig};
use diptych::candle::Tensor;
use diptych::data::{LabelledImages, LabelledSplit, PairDataset};
use diptych::retrieval::Recall;
use diptych::train::{Half, Progress, evaluate_retrieval};
use diptych::zero_shot::{Template, ZeroShotReport};
use diptych::{ClipModel, Embeddings};

/// Measure a model: recall at 1, 5, 10 in both directions, or zero-shot top-1 and top-5. All figures are percent.
#[derive(Parser)]
#[command(group(ArgGroup::new("what").required(true).args(["captions", "labels"])))]
struct Args {
    /// A folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID")]
    model: String,
    /// Images with captions in any form that finetune's --data takes, such as a CSV file with the columns image, caption and split
    #[arg(long, value_name = "PATH")]
    captions: Option<PathBuf>,
    /// A CSV file with the columns image, folder (the class) and split
    #[arg(long, value_name = "CSV")]
    labels: Option<PathBuf>,
    /// The folder that image names are relative to [default: the CSV file's]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The split to measure [default: test, or all rows of a file without splits]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// A prompt with {} for the class name; several are averaged [default: "a photo of a {}"]
    #[arg(long, value_name = "PROMPT", conflicts_with = "captions")]
    template: Vec<Template>,
    /// A class's words where its folder's name is not good enough, as FOLDER=WORDS; may be given more than once
    #[arg(long, value_name = "FOLDER=WORDS", value_parser = class_name, conflicts_with = "captions")]
    class_name: Vec<(String, String)>,
    /// Fit a linear layer to the image tower's features of the split train, and measure that instead of words
    #[arg(long, requires = "labels", conflicts_with_all = ["captions", "template", "class_name"])]
    probe: bool,
    /// Where to save that layer
    #[arg(long, value_name = "FILE", requires = "probe")]
    probe_out: Option<PathBuf>,
    /// Print one JSON object on the last line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

fn class_name(text: &str) -> Result<(String, String), String> {
    let (folder, words) = text.split_once('=').ok_or("expected FOLDER=WORDS")?;
    Ok((folder.to_string(), words.to_string()))
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    keep_freed_memory();
    match (&args.captions, &args.labels) {
        (Some(csv), _) => retrieval(args, csv),
        (None, Some(csv)) if args.probe => probe(args, csv),
        (None, Some(csv)) => classification(args, csv),
        (None, None) => Err("give --captions or --labels".into()),
    }
}

fn load(args: &Args) -> Outcome<ClipModel> {
    Ok(args.machine.loader()?.trainable(false).clip(&args.model)?)
}

/// The split that the options ask for, of a file with the splits `names`.
fn chosen<T>(
    args: &Args,
    names: &[String],
    split: impl FnOnce(&str) -> diptych::Result<T>,
    all: impl FnOnce() -> T,
) -> Outcome<T> {
    if args.split.is_none() && names.is_empty() {
        eprintln!("no column split, so all rows are measured");
        return Ok(all());
    }
    Ok(split(args.split.as_deref().unwrap_or("test"))?)
}

fn retrieval(args: &Args, csv: &Path) -> Outcome<()> {
    let start = Instant::now();
    let data = PairDataset::open(csv)?;
    let split = chosen(args, data.split_names(), |name| data.split(name), || data.all())?;
    let folder = split.image_folder(args.images.as_deref());
    split.check_images(&folder)?;
    let model = load(args)?;
    let workers = args.machine.workers();
    let bar = progress(split.image_count() + split.caption_count(), "images and captions");
    let report = evaluate_retrieval(&model, &split, &folder, workers, |event| {
        if let Progress::Pooling { half, done, .. } = event {
            bar.set_position((if *half == Half::Image { *done } else { split.image_count() + *done }) as u64);
        }
    })?;
    bar.finish_and_clear();
    if args.json {
        let mut value = serde_json::to_value(report)?;
        value["seconds"] = ((start.elapsed().as_secs_f64() * 10.0).round() / 10.0).into();
        return say(value);
    }
    let line = |name: &str, r: &Recall| format!("{name}: R@1 {:.1}  R@5 {:.1}  R@10 {:.1}", r.r1, r.r5, r.r10);
    say(format!("{} images, {} captions", report.images, report.captions))?;
    say(line("text→image", &report.text_to_image))?;
    say(line("image→text", &report.image_to_text))
}

fn classification(args: &Args, csv: &Path) -> Outcome<()> {
    let dataset = classes(csv)?;
    let split = chosen(args, dataset.split_names(), |name| dataset.split(name), || dataset.all())?;
    let folder = dataset.image_folder(args.images.as_deref());
    split.check_images(&folder)?;
    for (name, _) in &args.class_name {
        if !dataset.folders().contains(name) {
            return Err(format!("--class-name {name}=…: {} has no such class", csv.display()).into());
        }
    }
    let words = |(folder, words): (&String, String)| {
        let chosen = args.class_name.iter().find(|(name, _)| name == folder);
        chosen.map_or(words, |(_, words)| words.clone())
    };
    let labels: Vec<String> = dataset.folders().iter().zip(dataset.class_names()).map(words).collect();
    let templates = if args.template.is_empty() { Template::photo() } else { args.template.clone() };
    let model = load(args)?;
    let classifier = model.zero_shot_with(&labels, &templates)?;
    let files: Vec<PathBuf> = split.images().iter().map(|name| folder.join(name)).collect();
    let report: ZeroShotReport = classifier.head().evaluate(&embed_images(&model, &files)?, split.classes())?;
    print(args, report)
}

fn print(args: &Args, report: ZeroShotReport) -> Outcome<()> {
    if args.json {
        return say(serde_json::to_value(report)?);
    }
    say(format!("{} images, {} classes", report.images, report.classes))?;
    say(format!("top-1 {:.1}  top-5 {:.1}", report.top1, report.top5))
}

/// Labelled images of two classes at least: among one, every answer is right.
fn classes(csv: &Path) -> Outcome<LabelledImages> {
    let dataset = LabelledImages::from_csv(csv)?;
    match dataset.folders() {
        [one] => Err(format!("{}: all rows are of the class '{one}'; two at least are needed", csv.display()).into()),
        _ => Ok(dataset),
    }
}

/// A linear layer on the features of the split train, measured on the other.
fn probe(args: &Args, csv: &Path) -> Outcome<()> {
    if let Some(path) = &args.probe_out {
        check_file("--probe-out", path, "linear probe", |path| LinearProbe::load(path).is_ok())?;
    }
    let measured = args.split.as_deref().unwrap_or("test");
    if measured == "train" {
        return Err("--split train: --probe is fitted to these rows; measure it on others, such as --split test".into());
    }
    let dataset = classes(csv)?;
    if dataset.split_names().is_empty() {
        let message = "has no column 'split'; --probe needs one with 'train' to fit to and another to measure on";
        return Err(format!("{}: {message}", csv.display()).into());
    }
    let (train, test) = (dataset.split("train")?, dataset.split(measured)?);
    let folder = dataset.image_folder(args.images.as_deref());
    train.check_images(&folder)?;
    test.check_images(&folder)?;
    let model = load(args)?;
    let features = |split: &LabelledSplit| -> Outcome<Tensor> {
        let files: Vec<PathBuf> = split.images().iter().map(|name| folder.join(name)).collect();
        let rows = in_batches(&files, |batch| model.image_encoder().encode(batch))?;
        Ok(Tensor::cat(&rows, 0)?)
    };
    let probe = LinearProbe::fit(&features(&train)?, train.classes(), &dataset.class_names(), &ProbeConfig::default())?;
    if let Some(path) = &args.probe_out {
        probe.save(path)?;
    }
    eprintln!("fitted to {} images, l2 {:.1e}", train.images().len(), probe.l2());
    print(args, probe.evaluate(&features(&test)?, test.classes())?)
}

fn embed_images(model: &ClipModel, files: &[PathBuf]) -> Outcome<Embeddings> {
    Ok(Embeddings::concat(&in_batches(files, |batch| model.embed_images(batch))?)?)
}

fn in_batches<T>(files: &[PathBuf], run: impl Fn(&[PathBuf]) -> diptych::Result<T>) -> Outcome<Vec<T>> {
    let bar = progress(files.len(), "images");
    let mut parts = Vec::new();
    for batch in files.chunks(32) {
        parts.push(run(batch)?);
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(parts)
}
