//! Embeds images and texts with any model and writes the rows to a safetensors file.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::{Machine, Outcome, check_file, dtype, exit, holds_only, keep_freed_memory, lines, progress};
use diptych::candle::{D, Tensor};
use diptych::image::ImageInput;
use diptych::towers::Collect;
use diptych::{ClipModel, Embeddings, ImageEncoder, Loaded, TextEncoder, weights};

/// Embed images and texts.
///
/// Of a dual encoder, OUT holds `image_embeds` (N,D) and `text_embeds` (M,D), rows of unit length. Of a folder with one tower
/// only, it holds that tower's pooled output: `image_features` or `text_features`.
#[derive(Parser)]
struct Args {
    /// A folder, or an id on the hub
    #[arg(long, value_name = "DIR_OR_ID")]
    model: String,
    /// An image file; may be given more than once
    #[arg(long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,
    /// A text; may be given more than once
    #[arg(long, value_name = "STR", num_args = 1..)]
    text: Vec<String>,
    /// A file with a text a line, after those of --text
    #[arg(long, value_name = "FILE")]
    texts_from: Option<PathBuf>,
    /// Also write pixel_values (patches, of a NaFlex model), input_ids, attention_mask, image_features, text_features (projected, not of unit length) and
    /// logits_per_image (N,M)
    #[arg(long)]
    raw: bool,
    /// The type to compute in: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Items computed at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    machine: Machine,
}

/// What is written, by name.
type Tensors = Vec<(&'static str, Tensor)>;

/// All names there are, by which a file of this program is known.
const NAMES: [&str; 8] = [
    "image_embeds",
    "text_embeds",
    "image_features",
    "text_features",
    "pixel_values",
    "input_ids",
    "attention_mask",
    "logits_per_image",
];

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Outcome<()> {
    keep_freed_memory();
    let mut texts = args.text.clone();
    if let Some(path) = &args.texts_from {
        texts.extend(lines(path)?);
    }
    if args.image.is_empty() && texts.is_empty() {
        return Err("nothing to embed; give --image, --text or --texts-from".into());
    }
    check_file("--out", &args.out, "file of embeddings", |path| holds_only(path, &NAMES))?;
    let loader = args.machine.loader()?.dtype(dtype("--dtype", &args.dtype)?).trainable(false);
    let mut out = Tensors::new();
    match loader.load(&args.model)? {
        Loaded::Clip(model) => dual(args, &model, &texts, &mut out)?,
        Loaded::Image(_) if !texts.is_empty() => return Err(one_tower(&args.model, "image", "texts")),
        Loaded::Text(_) if !args.image.is_empty() => return Err(one_tower(&args.model, "text", "images")),
        Loaded::Image(encoder) => {
            let features = images(args, &encoder, &mut out, Ok)?;
            Embeddings::from_features(&features)?; // refuses what is not finite
            out.push(("image_features", features));
        }
        Loaded::Text(encoder) => {
            let features = self::texts(args, &encoder, &texts, &mut out, Ok)?;
            Embeddings::from_features(&features)?; // refuses what is not finite
            out.push(("text_features", features));
        }
    }
    weights::save_safetensors(&args.out, out, &[])?;
    eprintln!("wrote {}", args.out.display());
    Ok(())
}

fn one_tower(model: &str, has: &str, asked: &str) -> Box<dyn std::error::Error> {
    format!("{model}: it holds one tower, for {has}s, and cannot embed {asked}").into()
}

fn dual(args: &Args, model: &ClipModel, texts: &[String], out: &mut Tensors) -> Outcome<()> {
    let mut embeds: [Option<Tensor>; 2] = [None, None];
    if !args.image.is_empty() {
        let features = images(args, model.image_encoder(), out, |pooled| model.project_image(&pooled))?;
        embeds[0] = Some(Embeddings::from_features(&features)?.tensor()?);
        if args.raw {
            out.push(("image_features", features));
        }
    }
    if !texts.is_empty() {
        let features = self::texts(args, model.text_encoder(), texts, out, |pooled| model.project_text(&pooled))?;
        embeds[1] = Some(Embeddings::from_features(&features)?.tensor()?);
        if args.raw {
            out.push(("text_features", features));
        }
    }
    if let ([Some(images), Some(texts)], true) = (&embeds, args.raw) {
        let logits =
            images.matmul(&texts.transpose(0, D::Minus1)?)?.affine(model.logit_scale()?, model.logit_bias()?)?;
        out.push(("logits_per_image", logits));
    }
    let names = ["image_embeds", "text_embeds"];
    out.extend(names.into_iter().zip(embeds).filter_map(|(name, rows)| Some((name, rows?))));
    Ok(())
}

/// Pooled images, batch by batch, through `project`.
fn images(
    args: &Args,
    encoder: &ImageEncoder,
    out: &mut Tensors,
    project: impl Fn(Tensor) -> diptych::Result<Tensor>,
) -> Outcome<Tensor> {
    let bar = progress(args.image.len(), "images");
    let (mut rows, mut pixels) = (Vec::new(), Vec::new());
    for batch in args.image.chunks(args.batch as usize) {
        let batch: Vec<ImageInput> = batch.iter().map(ImageInput::from).collect();
        let (pixel_values, pooled) = match encoder.naflex() {
            Some(naflex) => {
                let batch = naflex.batch(&batch, encoder.device())?;
                let pooled = encoder.forward_patches(&batch, Collect::Last)?.pooled;
                (batch.patches, pooled)
            }
            None => {
                let pixel_values = encoder.processor().pixel_values(&batch, encoder.device())?;
                let pooled = encoder.pooled(&pixel_values)?;
                (pixel_values, pooled)
            }
        };
        rows.push(project(pooled)?);
        if args.raw {
            pixels.push(pixel_values);
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    if args.raw {
        out.push(("pixel_values", Tensor::cat(&pixels, 0)?));
    }
    Ok(Tensor::cat(&rows, 0)?)
}

/// Pooled texts, batch by batch, through `project`.
fn texts(
    args: &Args,
    encoder: &TextEncoder,
    texts: &[String],
    out: &mut Tensors,
    project: impl Fn(Tensor) -> diptych::Result<Tensor>,
) -> Outcome<Tensor> {
    let bar = progress(texts.len(), "texts");
    let mut rows = Vec::new();
    for batch in texts.chunks(args.batch as usize) {
        rows.push(project(encoder.pooled(&encoder.tokenize(batch)?)?)?);
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    if args.raw {
        let tokens = encoder.tokenize(texts)?;
        out.push(("input_ids", tokens.input_ids_tensor(encoder.device())?));
        out.push(("attention_mask", tokens.attention_mask_tensor(encoder.device())?));
    }
    Ok(Tensor::cat(&rows, 0)?)
}
