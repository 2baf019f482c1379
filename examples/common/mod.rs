//! What the programs share: errors that become an exit status, options that every program has, progress bars.
#![allow(dead_code)] // each program uses its share

mod allocator;
mod options;
mod outputs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[allow(unused_imports)] // as above
pub use allocator::keep_freed_memory;
use clap::Args;
use diptych::candle::{DType, Device};
use diptych::image::{DecodeOptions, Orientation};
use diptych::{ClipModel, Loader};
use indicatif::{ProgressBar, ProgressStyle};
#[allow(unused_imports)] // as above
pub use outputs::{check_file, check_folder, holds_only, is_report};

/// Any error, to be printed.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Prints a line to standard output; a full disk or a closed pipe is an error, not a panic.
pub fn say(line: impl std::fmt::Display) -> Outcome<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| format!("standard output: {error}").into())
}

/// Runs a program: exit status 0 only on success, the error on standard error.
pub fn exit(outcome: Outcome<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", options::told(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Options about the machine.
#[derive(Args)]
pub struct Machine {
    /// cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads to compute and decode with [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Do not turn photos as their EXIF data says
    #[arg(long)]
    pub no_exif: bool,
}

impl Machine {
    /// How many threads decode images.
    pub fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(cores, usize::from)
    }

    /// A loader for these options; sets the number of threads for the whole program: the pool that models share with everything else
    /// that runs in parallel. A library would say `Loader::threads`.
    pub fn loader(&self) -> Outcome<Loader> {
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
            pool.build_global().map_err(|error| format!("--threads {threads}: {error}"))?;
        }
        let orientation = if self.no_exif { Orientation::AsStored } else { Orientation::Exif };
        let decode = DecodeOptions { orientation, ..DecodeOptions::default() };
        Ok(ClipModel::loader().device(&device(&self.device)?).decode_options(decode))
    }
}

/// The device of that name.
fn device(name: &str) -> Outcome<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "metal" => Ok(Device::new_metal(0)?),
        "cuda" => Ok(Device::new_cuda(0)?),
        _ => match name.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(n) => Ok(Device::new_cuda(n)?),
            None => Err(format!("--device {name}: expected cpu, cuda, cuda:N or metal").into()),
        },
    }
}

/// The number type of that name, which `option` asks for.
pub fn dtype(option: &str, name: &str) -> Outcome<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err(format!("{option} {name}: expected f32, f16 or bf16").into()),
    }
}

/// The lines of a text file that are not blank.
pub fn lines(path: &Path) -> Outcome<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let text = text.trim_start_matches('\u{feff}');
    let lines: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_string).collect();
    if lines.is_empty() { Err(format!("{}: it has no lines", path.display()).into()) } else { Ok(lines) }
}

/// A file or folder that comes with the source code.
pub fn bundled(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A progress bar on standard error, silent where that is no terminal.
pub fn progress(total: usize, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    let bar = ProgressBar::new(total as u64).with_message(what.to_string());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A number with two decimals.
pub fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// The largest resident size that this process has had, where the system says so (Linux).
pub fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib / 1024.0).round())
}
