//! Trains a dual encoder on captioned images: from two towers and fresh projections, or from a whole model.

mod args;
mod build;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod defaults;
mod display;
mod keeping;
mod reading;
mod reports;
mod strategy;

use std::path::Path;
use std::process::ExitCode;

use args::Args;
use build::{build, freeze};
use clap::Parser;
use common::{Outcome, check_file, check_folder, dtype, exit, holds_only, is_report, keep_freed_memory, say};
use data::{Rows, splits};
use diptych::report::RunLog;
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
    check_targets(args)?;
    let keeping = &args.keeping;
    let (canary, val) = (keeping.canary()?, keeping.deciding_rows(args)?);
    let rows =
        Rows { measured: val.as_ref().or(test.as_ref()), shown: test.as_ref().or(val.as_ref()), folder: &folder };
    let model = freeze(args, build(args)?)?;
    let trained: usize = model.trainable().iter().map(|(_, var)| var.elem_count()).sum();
    eprintln!("{} parameters, {trained} of them trained", model.parameters().element_count());
    let ends = keeping.before(&model, rows)?;
    let config = recipe(args, &model, train.image_count());
    eprintln!("{}", plan(&config, train.image_count()));
    let mut trainer = Trainer::new(&model, config.clone())?;
    if let Some(canary) = &canary {
        trainer = trainer.with_canary(canary.clone());
    }
    let (mut log, mut display) = (args.reports.open()?, Display::default());
    let data = TrainData::prepare(&model, &config, &train, &folder, rows.measured, |event| display.show(event))?;
    let data = keeping.teach(data, args, &config, &folder, &mut display)?;
    let measured = data.evaluate(&model, config.workers, &mut |event| display.show(event))?;
    let before = if rows.other() { rows.evaluate(&model, config.workers)? } else { measured };
    let mut report = fit(trainer, &data, measured, &mut log, &mut display)?;
    display.clear();
    if let Some(folder) = &args.strategy.lora_out {
        model.save_lora(folder, args.model.as_deref().unwrap_or_default())?;
        eprintln!("saved {}", folder.display());
    }
    let (model, curve) = match ends {
        Some(ends) => keeping.choose(&ends, &model, rows, canary.as_ref(), config.workers)?,
        None => (model.clone(), None),
    };
    if rows.other() || curve.is_some() {
        report.evaluation = rows.evaluate(&model, config.workers)?;
    }
    if let Some(out) = &args.out {
        model.clone().merge_lora()?.save_pretrained_as(out, save_dtype)?;
        eprintln!("saved {}", out.display());
    }
    let (model, data, train, after) = (&model, &data, &train, report.evaluation);
    let finished = Finished { args, config: &config, model, data, train, rows, log: &log, before, after, curve };
    finished.write(&mut display)?;
    print(args, before, &report)?;
    log.check()?;
    Ok(())
}

/// Fails before the first step where what the run makes could not be written after the last one.
fn check_targets(args: &Args) -> Outcome<()> {
    if let Some(out) = &args.out {
        check_save_target(out)?;
    }
    let folders = [("--lora-out", &args.strategy.lora_out), ("--checkpoints", &args.strategy.checkpoints)];
    for (option, folder) in folders {
        folder.iter().try_for_each(|folder| check_folder(option, folder))?;
    }
    if let Some(report) = args.report().filter(|report| args.reports.report.is_some() || report.exists()) {
        check_file("--report", &report, "report of a run", is_report)?;
    }
    let rows = |path: &Path| holds_only(path, &["image_embeds", "text_embeds", "key", "patches", "without"]);
    let cache = args.keeping.teacher_cache.as_deref();
    cache.map_or(Ok(()), |file| check_file("--teacher-cache", file, "file of a teacher's rows", rows))
}

/// Trains, and tells of it; `before` is what the evaluation split says before the first step.
fn fit(
    trainer: Trainer<'_>,
    data: &TrainData<'_>,
    before: Option<RetrievalReport>,
    log: &mut RunLog,
    display: &mut Display,
) -> Outcome<TrainReport> {
    let mut tell = |event: &Progress| {
        display.show(event);
        log.observe(event);
        if let Progress::Canary { report, .. } = event {
            log.scalar("canary/top_1", report.top1);
        }
    };
    if let Some(report) = before {
        tell(&Progress::Evaluated { epoch: 0, report });
    }
    // A run that may stop early measures this once more.
    let again = |event: &Progress| matches!(event, Progress::Evaluated { epoch: 0, .. });
    Ok(trainer.fit_prepared(data, |event| {
        if !again(event) {
            tell(event)
        }
    })?)
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
