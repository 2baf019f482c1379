//! How long embedding and training take: a JSON line for each kind of input and batch size, as the scripts that time other programs
//! write them.
//!
//! Times are medians after one warm-up. `load` and `train` are for processes that do nothing else: they tell the peak of memory.

#[path = "../common/mod.rs"]
mod common;
mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use common::{Machine, Outcome, exit, keep_freed_memory, lines, peak_rss_mb, rounded, say};
use diptych::candle::{Device, Tensor};
use diptych::text::TokenBatch;
use diptych::{ClipModel, Embeddings, Quantization};

/// Time a dual encoder.
///
/// what: image   pixel values to embedding (no decoding);
/// text    texts to embedding, each batch padded to its longest as `embed_texts` does;
/// text77  the same texts padded to 77 ids, as open_clip does, or to as many as the model takes;
/// files   image files to embedding, decoding included;
/// memory  the process's peak of resident memory after embedding 1,000 image files and after 10,000 more;
/// load    the folder to a model, with the process's peak of resident memory;
/// train   whole training steps on random pixels and ids: forward, backward, AdamW; with the peak of resident memory
#[derive(Parser)]
struct Args {
    /// A folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID")]
    model: String,
    /// What to time, of: image,text,text77,files,memory,load,train [default: image, and text with --texts]
    #[arg(long, value_delimiter = ',')]
    what: Vec<String>,
    /// Batch sizes [default: 1,8,32, and 32 for files]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    batch: Vec<u16>,
    /// A file with a text a line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// A folder of images, searched in depth
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// f32, or int8 for quantised weights
    #[arg(long, default_value = "f32", value_parser = ["f32", "int8"])]
    dtype: String,
    /// Times each is measured [default: 11, and 5 from a batch of 32 on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    training: training::Options,
    #[command(flatten)]
    machine: Machine,
}

impl Args {
    /// The batch sizes to time.
    fn batches(&self) -> impl Iterator<Item = usize> {
        let chosen = if self.batch.is_empty() { &[1, 8, 32][..] } else { &self.batch };
        chosen.iter().map(|&batch| usize::from(batch))
    }
}

/// How many texts and files are used.
const TEXTS: usize = 256;
const FILES: usize = 128;

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    keep_freed_memory();
    if args.what == ["train"] {
        if args.dtype != "f32" {
            return Err("--what train needs --dtype f32: integers are not trained".into());
        }
        let rounds = args.rounds.map_or(5, usize::from);
        let loader = args.machine.loader()?;
        return args.batches().try_for_each(|batch| args.training.run(&loader, &args.model, batch, rounds));
    }
    let what = match (&args.what, &args.texts) {
        (what, None) if what.iter().any(|what| what.starts_with("text")) => {
            return Err("--what text and --what text77 need --texts, a file with a text a line".into());
        }
        (what, None) if what.is_empty() => vec!["image".to_string()],
        (what, Some(_)) if what.is_empty() => vec!["image".to_string(), "text".to_string()],
        (what, _) => what.clone(),
    };
    let texts_to_time = args.texts.as_deref().map(read_texts).transpose()?.unwrap_or_default();
    let loader = args.machine.loader()?.trainable(false);
    let loader = if args.dtype == "int8" { loader.quantize(Quantization::Int8) } else { loader };
    let start = Instant::now();
    let model = loader.clip(&args.model)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    for what in &what {
        match what.as_str() {
            "load" => report_load(args, load_ms)?,
            "image" => images(args, &model)?,
            "text" | "text77" => texts(args, &model, what, &texts_to_time)?,
            "files" => files(args, &model)?,
            "memory" => memory(args, &model)?,
            other => {
                let known = "image, text, text77, files, memory or load, or train alone";
                return Err(format!("--what {other}: expected {known}").into());
            }
        }
    }
    Ok(())
}

fn report_load(args: &Args, ms: f64) -> Outcome<()> {
    let peak = peak_rss_mb();
    if args.json {
        return say(serde_json::json!({ "peer": "diptych", "what": "load", "ms": rounded(ms), "peak_rss_mb": peak }));
    }
    say(format!("load    {ms:8.1} ms, peak {} MB", peak.map_or("?".to_string(), |mb| format!("{mb:.0}"))))
}

fn images(args: &Args, model: &ClipModel) -> Outcome<()> {
    let side = model.config().image.tower.image_size();
    for batch in args.batches() {
        let pixels = Tensor::randn(0f32, 1.0, (batch, 3, side, side), &Device::Cpu)?;
        report(args, "image", batch, batch, |_| {
            model.project_image(&model.image_encoder().pooled_detached(&pixels)?)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// The file's first texts.
fn read_texts(path: &Path) -> Outcome<Vec<String>> {
    let texts: Vec<String> = lines(path)?.into_iter().filter(|line| !line.trim().is_empty()).take(TEXTS).collect();
    if texts.is_empty() {
        return Err(format!("{}: no text in it", path.display()).into());
    }
    Ok(texts)
}

fn texts(args: &Args, model: &ClipModel, what: &str, texts: &[String]) -> Outcome<()> {
    let encoder = model.text_encoder();
    for batch in args.batches() {
        report(args, what, batch, batch, |round| {
            let chosen: Vec<&String> = (0..batch).map(|i| &texts[(round * batch + i) % texts.len()]).collect();
            let mut tokens = encoder.tokenize(&chosen)?;
            if what == "text77" {
                tokens = padded(&tokens, encoder.config().tower.context_length())?;
            }
            model.project_text(&encoder.pooled_detached(&tokens)?)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// The same texts in rows of 77 ids, or of as many as the model takes, the last of which follow the end of the text.
fn padded(tokens: &TokenBatch, most: usize) -> Outcome<TokenBatch> {
    let rows = (0..tokens.batch()).filter_map(|i| tokens.row(i).map(<[u32]>::to_vec));
    let rows: Vec<Vec<u32>> = rows
        .map(|mut row| {
            let pad = row.last().copied().unwrap_or(0);
            row.resize(most.min(77), pad);
            row
        })
        .collect();
    Ok(TokenBatch::from_rows(&rows, 0)?)
}

fn files(args: &Args, model: &ClipModel) -> Outcome<()> {
    let paths = image_files(args)?;
    let batches = if args.batch.is_empty() { vec![32] } else { args.batches().collect() };
    batches.into_iter().try_for_each(|batch| {
        let encoder = model.image_encoder().clone().with_batch_size(batch);
        report(args, "files", batch, paths.len(), |_| {
            let features = encoder.encode_iter(&paths).map(|pooled| model.project_image(&pooled?));
            Embeddings::from_features(&Tensor::cat(&features.collect::<diptych::Result<Vec<_>>>()?, 0)?)?;
            Ok(())
        })
    })
}

fn memory(args: &Args, model: &ClipModel) -> Outcome<()> {
    let paths = image_files(args)?;
    for count in [1_000, 10_000] {
        for batch in model.embed_images_iter(paths.iter().cycle().take(count)) {
            batch?;
        }
        let peak = peak_rss_mb();
        if args.json {
            let line = serde_json::json!({ "peer": "diptych", "what": "memory", "images": count, "peak_rss_mb": peak });
            say(line)?;
        } else {
            say(format!(
                "memory  {count:6} images, peak {} MB",
                peak.map_or("?".to_string(), |mb| format!("{mb:.0}"))
            ))?;
        }
    }
    Ok(())
}

/// The first image files of the folder, by name.
fn image_files(args: &Args) -> Outcome<Vec<PathBuf>> {
    let folder = args.images.as_ref().ok_or("--what files and --what memory need --images")?;
    let mut paths = Vec::new();
    collect(folder, &mut paths)?;
    if paths.is_empty() {
        return Err(format!("--images {}: no JPEG or PNG file in it", folder.display()).into());
    }
    paths.sort();
    paths.truncate(FILES);
    Ok(paths)
}

/// The images in a folder and those below it.
fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Outcome<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if ["jpg", "jpeg", "png"].contains(&ending.as_str()) {
            paths.push(path);
        }
    }
    Ok(())
}

/// Runs once to warm up, then `rounds` times.
fn report(args: &Args, what: &str, batch: usize, items: usize, run: impl Fn(usize) -> Outcome<()>) -> Outcome<()> {
    let rounds = args.rounds.map_or(if batch >= 32 { 5 } else { 11 }, usize::from);
    run(0)?;
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let start = Instant::now();
        run(round)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let ms = |time: f64| time * 1e3 / items.max(1) as f64;
    let (median, best) = (ms(times[rounds / 2]), ms(times[0]));
    if args.json {
        let peer = if args.dtype == "int8" { "diptych8" } else { "diptych" };
        return say(serde_json::json!({
            "peer": peer, "what": what, "batch": batch, "ms_per_item": rounded(median), "best_ms": rounded(best)
        }));
    }
    say(format!("{what:8} batch {batch:3}  {median:8.2} ms an item (best {best:.2})"))
}
