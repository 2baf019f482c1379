//! Trains a dual encoder on captioned images: from two towers and fresh projections, or from a whole model.

mod args;
mod build;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod display;
mod reading;
mod strategy;

use std::process::ExitCode;

use args::Args;
use build::{build, freeze};
use clap::Parser;
use common::{Outcome, dtype, exit, say};
use data::splits;
use diptych::train::{TrainReport, Trainer};
use diptych::weights::check_save_target;
use display::Display;
use strategy::recipe;

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    let (train, test) = splits(args)?;
    let folder = train.image_folder(args.images.as_deref());
    let save_dtype = dtype("--save-dtype", &args.save_dtype)?;
    if let Some(out) = &args.out {
        check_save_target(out)?;
    }
    let model = freeze(args, build(args)?)?;
    let trained: usize = model.trainable().iter().map(|(_, var)| var.elem_count()).sum();
    eprintln!("{} parameters, {trained} of them trained", model.parameters().element_count());
    let trainer = Trainer::new(&model, recipe(args, &model))?;
    let mut display = Display::default();
    let report = trainer.fit(&train, &folder, test.as_ref(), |progress| display.show(progress))?;
    display.clear();
    if let Some(folder) = &args.strategy.lora_out {
        model.save_lora(folder, args.model.as_deref().unwrap_or_default())?;
        eprintln!("saved {}", folder.display());
    }
    if let Some(out) = &args.out {
        model.clone().merge_lora()?.save_pretrained_as(out, save_dtype)?;
        eprintln!("saved {}", out.display());
    }
    print(args, &report)
}

fn print(args: &Args, report: &TrainReport) -> Outcome<()> {
    let rounded = |seconds: f64| (seconds * 10.0).round() / 10.0;
    let (prepare, seconds) = (rounded(report.prepare_seconds), rounded(report.seconds));
    if args.json {
        let mut value = match &report.evaluation {
            Some(found) => serde_json::to_value(found)?,
            None => serde_json::json!({ "images": 0, "captions": 0 }),
        };
        value["skipped"] = report.skipped.iter().map(ToString::to_string).collect::<Vec<_>>().into();
        value["prepare_seconds"] = prepare.into();
        value["seconds"] = seconds.into();
        return say(value);
    }
    if let Some(found) = &report.evaluation {
        for (name, r) in [("text→image", found.text_to_image), ("image→text", found.image_to_text)] {
            say(format!("{name}: R@1 {:.1}  R@5 {:.1}  R@10 {:.1}", r.r1, r.r5, r.r10))?;
        }
    }
    say(format!(
        "{} steps in {seconds} seconds after {prepare} of frozen towers, loss {:.3}",
        report.steps, report.loss
    ))
}
