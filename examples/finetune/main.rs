//! Trains a dual encoder on captioned images: from two towers and fresh projections, or from a whole model.

mod args;
mod build;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod defaults;
mod display;
mod reading;
mod reports;
mod strategy;

use std::process::ExitCode;

use args::Args;
use build::{build, freeze};
use clap::Parser;
use common::{Outcome, dtype, exit, keep_freed_memory, say};
use data::splits;
use diptych::retrieval::RetrievalReport;
use diptych::train::{Progress, TrainConfig, TrainData, TrainReport, Trainer};
use diptych::weights::check_save_target;
use display::Display;
use reports::Finished;
use strategy::recipe;

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    keep_freed_memory();
    let (train, test) = splits(args)?;
    let folder = train.image_folder(args.images.as_deref());
    let save_dtype = dtype("--save-dtype", &args.save_dtype)?;
    if let Some(out) = &args.out {
        check_save_target(out)?;
    }
    let model = freeze(args, build(args)?)?;
    let trained: usize = model.trainable().iter().map(|(_, var)| var.elem_count()).sum();
    eprintln!("{} parameters, {trained} of them trained", model.parameters().element_count());
    let config = recipe(args, &model, train.image_count());
    eprintln!("{}", plan(&config, train.image_count()));
    let trainer = Trainer::new(&model, config.clone())?;
    let (mut log, mut display) = (args.reports.open()?, Display::default());
    let data = TrainData::prepare(&model, &config, &train, &folder, test.as_ref(), |event| display.show(event))?;
    let before = data.evaluate(&model, config.workers, &mut |event| display.show(event))?;
    let mut tell = |event: &Progress| {
        display.show(event);
        log.observe(event);
    };
    if let Some(report) = before {
        tell(&Progress::Evaluated { epoch: 0, report });
    }
    let report = trainer.fit_prepared(&data, tell)?;
    display.clear();
    if let Some(folder) = &args.strategy.lora_out {
        model.save_lora(folder, args.model.as_deref().unwrap_or_default())?;
        eprintln!("saved {}", folder.display());
    }
    if let Some(out) = &args.out {
        model.clone().merge_lora()?.save_pretrained_as(out, save_dtype)?;
        eprintln!("saved {}", out.display());
    }
    let (test, after) = (test.as_ref(), report.evaluation);
    let finished = Finished {
        args,
        config: &config,
        model: &model,
        data: &data,
        train: &train,
        test,
        folder: &folder,
        log: &log,
        after,
    };
    finished.write(&mut display)?;
    print(args, before, &report)?;
    log.check()?;
    Ok(())
}

/// The recipe in a line, for who did not choose it.
fn plan(config: &TrainConfig, images: usize) -> String {
    let TrainConfig { epochs, batch_size, lr, tower_lr, .. } = config;
    let micro = config.micro_batch.map(|rows| format!(" ({rows} in memory at a time)")).unwrap_or_default();
    format!("{images} images, {epochs} epochs, batches of {batch_size}{micro}, rate {lr:e}, of towers {tower_lr:e}")
}

fn print(args: &Args, before: Option<RetrievalReport>, report: &TrainReport) -> Outcome<()> {
    let rounded = |seconds: f64| (seconds * 10.0).round() / 10.0;
    let (prepare, seconds) = (rounded(report.prepare_seconds), rounded(report.seconds));
    if args.json {
        let mut value = match &report.evaluation {
            Some(found) => serde_json::to_value(found)?,
            None => serde_json::json!({ "images": 0, "captions": 0 }),
        };
        if let Some(before) = before {
            value["before"] = serde_json::to_value(before)?;
        }
        value["skipped"] = report.skipped.iter().map(ToString::to_string).collect::<Vec<_>>().into();
        value["prepare_seconds"] = prepare.into();
        value["seconds"] = seconds.into();
        return say(value);
    }
    for (when, found) in [("before", before), ("after", report.evaluation)] {
        let Some(found) = found else { continue };
        for (name, r) in [("text→image", found.text_to_image), ("image→text", found.image_to_text)] {
            say(format!("{when:6} {name}: R@1 {:.1}  R@5 {:.1}  R@10 {:.1}", r.r1, r.r5, r.r10))?;
        }
    }
    say(format!(
        "{} steps in {seconds} seconds after {prepare} of frozen towers, loss {:.3}",
        report.steps, report.loss
    ))
}
