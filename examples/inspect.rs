//! Says what a checkpoint is without reading its weights.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::{Machine, Outcome, exit, say};

/// Say what a checkpoint is: family, towers, sizes, preprocessing, token rules, and anything odd.
///
/// Only the configuration and the headers of the weights are read. The exit status is 1 where it could not be loaded.
#[derive(Parser)]
struct Args {
    /// A folder, or an id on the hub
    #[arg(value_name = "DIR_OR_ID")]
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: Machine,
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    let found = args.machine.loader()?.inspect(&args.model)?;
    if args.json {
        say(serde_json::to_string_pretty(&found)?)?;
    } else {
        say(&found)?;
    }
    match found.problems.len() {
        0 => Ok(()),
        1 => Err(format!("{}: 1 problem keeps it from loading", args.model).into()),
        n => Err(format!("{}: {n} problems keep it from loading", args.model).into()),
    }
}
