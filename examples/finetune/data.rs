//! The data that the options name.

use std::path::Path;

use diptych::ClipModel;
use diptych::data::Split;
use diptych::retrieval::RetrievalReport;
use diptych::train::evaluate_retrieval;

use crate::args::Args;
use crate::common::Outcome;

/// Of how many images one is held out where the file names no splits.
const HELD_OUT: usize = 10;
/// From how many images on that is done.
const LEAST: usize = 20;

/// The rows that are measured.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// What decides during the run.
    pub measured: Option<&'a Split>,
    /// What is told of the model in the end.
    pub shown: Option<&'a Split>,
    /// Where their images lie.
    pub folder: &'a Path,
}

impl Rows<'_> {
    /// Whether other rows are told of than those that decide.
    pub fn other(&self) -> bool {
        self.shown.zip(self.measured).is_some_and(|(shown, measured)| !std::ptr::eq(shown, measured))
    }

    /// What `model` comes to on the rows that are shown.
    pub fn evaluate(&self, model: &ClipModel, workers: usize) -> Outcome<Option<RetrievalReport>> {
        let evaluate = |rows| evaluate_retrieval(model, rows, self.folder, workers, |_| {});
        Ok(self.shown.map(evaluate).transpose()?)
    }
}

/// The rows to train on, those of rare classes as often as the options say, and the rows to measure on.
pub fn splits(args: &Args) -> Outcome<(Split, Option<Split>)> {
    let (train, test) = read(args)?;
    let train = match args.balance {
        Some(least) => train.balanced(least),
        None => train,
    };
    Ok((train, test))
}

fn read(args: &Args) -> Outcome<(Split, Option<Split>)> {
    let data = args.reading.options().open(&args.data)?;
    for skipped in data.skipped() {
        eprintln!("left out {skipped}");
    }
    if data.split_names().is_empty() {
        return hold_out(args, data.all());
    }
    let test = data.split_names().iter().any(|name| name == "test");
    if !test {
        eprintln!("{}: no split test, so nothing is measured", args.data.display());
    }
    Ok((data.split("train")?, test.then(|| data.split("test")).transpose()?))
}

/// Every tenth image to measure on, the others to train on.
fn hold_out(args: &Args, all: Split) -> Outcome<(Split, Option<Split>)> {
    let file = args.data.display();
    if all.image_count() < LEAST {
        eprintln!("{file}: no column split and few images, so all are trained on and none are measured");
        return Ok((all, None));
    }
    eprintln!("{file}: no column split, so one image in {HELD_OUT} is held out to be measured on");
    let part = |test: bool| all.select((0..all.image_count()).filter(|i| (i % HELD_OUT == HELD_OUT - 1) == test));
    Ok((part(false), Some(part(true))))
}
