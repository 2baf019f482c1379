//! The data that the options name.

use diptych::data::Split;

use crate::args::Args;
use crate::common::Outcome;

/// The rows to train on and those to measure on.
pub fn splits(args: &Args) -> Outcome<(Split, Option<Split>)> {
    let data = args.reading.options().open(&args.data)?;
    for skipped in data.skipped() {
        eprintln!("left out {skipped}");
    }
    if data.split_names().is_empty() {
        eprintln!("{}: no column split, so all rows are trained on and none are measured", args.data.display());
        return Ok((data.all(), None));
    }
    let test = data.split_names().iter().any(|name| name == "test");
    if !test {
        eprintln!("{}: no split test, so nothing is measured", args.data.display());
    }
    Ok((data.split("train")?, test.then(|| data.split("test")).transpose()?))
}
