//! [`Inspection`]: what a checkpoint is, from its configuration and the headers of its files. No weight is read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::image::ImageProcessorConfig;
use crate::logit_scale::LogitConfig;
use crate::project::ProjectionConfig;
use crate::text::TokenRules;
use crate::{ImageEncoderConfig, Quantization, TextEncoderConfig};

/// What a folder holds and what would happen if it were loaded.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The folder.
    pub folder: PathBuf,
    /// The file that describes the model.
    pub config_file: PathBuf,
    /// Its `model_type`, which names the family (`open_clip` for open_clip's layout).
    pub family: String,
    /// The text tower, if there is one.
    pub text: Option<TextPart>,
    /// The image tower, if there is one.
    pub image: Option<ImagePart>,
    /// What joins them, where there are both.
    pub joint: Option<JointPart>,
    /// Numbers in all parameters together.
    pub parameters: usize,
    /// The files' tensors by number type.
    pub dtypes: BTreeMap<String, DtypeShare>,
    /// What the files hold the weights of linear layers as, where that is not floats.
    pub quantization: Option<Quantization>,
    /// Tensors of the files that no part reads, known extras of the family.
    pub extras: Vec<String>,
    /// Why it cannot be loaded, a line each; empty where it can.
    pub problems: Vec<String>,
    /// What is worth knowing before one trusts its numbers.
    pub remarks: Vec<String>,
}

/// A text tower and its tokenizer.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TextPart {
    /// Tower and pooling.
    pub config: TextEncoderConfig,
    /// Width of the pooled output.
    pub pooled_size: usize,
    /// Numbers in its parameters.
    pub parameters: usize,
    /// How texts become ids.
    pub tokens: TokenRules,
    /// The id that fills up rows, if the tokenizer could be read.
    pub pad_id: Option<u32>,
    /// Entries of the tokenizer's vocabulary, if it could be read.
    pub vocab_size: Option<usize>,
}

/// An image tower and its processor.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ImagePart {
    /// Tower and pooling.
    pub config: ImageEncoderConfig,
    /// Width of the pooled output.
    pub pooled_size: usize,
    /// Numbers in its parameters.
    pub parameters: usize,
    /// How images become pixel values, if that could be read.
    pub processor: Option<ImageProcessorConfig>,
}

/// What stands behind the towers of a dual encoder.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct JointPart {
    /// Width of the shared space.
    pub embed_dim: usize,
    /// The images' projection.
    pub image_projection: ProjectionConfig,
    /// The texts' projection.
    pub text_projection: ProjectionConfig,
    /// From cosines to logits.
    pub logits: LogitConfig,
}

/// How much of a checkpoint is of one number type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DtypeShare {
    /// Tensors.
    pub tensors: usize,
    /// Numbers in them.
    pub elements: usize,
    /// Bytes in the files.
    pub bytes: usize,
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "folder       {}", self.folder.display())?;
        writeln!(f, "family       {} ({})", self.family, file_name(&self.config_file))?;
        for (dtype, share) in &self.dtypes {
            writeln!(
                f,
                "weights      {} in {} tensors of {dtype}, {:.1} MB",
                count(share.elements),
                share.tensors,
                share.bytes as f64 / 1e6
            )?;
        }
        if let Some(Quantization::Int8) = self.quantization {
            writeln!(f, "quantised    linear layers to 8-bit integers, with a scale an output; loads frozen")?;
        }
        writeln!(f, "parameters   {}", count(self.parameters))?;
        if let Some(image) = &self.image {
            let config = &image.config;
            tower(f, "image tower", image.parameters, &config.pooling, image.pooled_size, &config.tower)?;
            if let Some(processor) = &image.processor {
                writeln!(f, "images       {}", compact(processor))?;
            }
        }
        if let Some(text) = &self.text {
            let config = &text.config;
            tower(f, "text tower", text.parameters, &config.pooling, text.pooled_size, &config.tower)?;
            writeln!(f, "tokens       {}", compact(&text.tokens))?;
            if let (Some(vocabulary), Some(pad)) = (text.vocab_size, text.pad_id) {
                writeln!(f, "             vocabulary of {vocabulary}, padded with {pad}")?;
            }
        }
        if let Some(joint) = &self.joint {
            writeln!(f, "embeddings   {} wide, logits by {}", joint.embed_dim, compact(&joint.logits))?;
            writeln!(f, "projections  images {}", compact(&joint.image_projection))?;
            writeln!(f, "             texts {}", compact(&joint.text_projection))?;
        }
        for (title, lines) in [("unused", &self.extras), ("remark", &self.remarks), ("PROBLEM", &self.problems)] {
            const MOST: usize = 40;
            for line in lines.iter().take(MOST) {
                writeln!(f, "{title:<12} {line}")?;
            }
            if lines.len() > MOST {
                writeln!(f, "{title:<12} … and {} more", lines.len() - MOST)?;
            }
        }
        match self.problems.len() {
            0 => write!(f, "It loads."),
            n => write!(f, "It does not load: {n} problem{}.", if n == 1 { "" } else { "s" }),
        }
    }
}

/// Two lines: how large a tower is and what its output is, and its configuration.
fn tower(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    parameters: usize,
    pooling: &dyn fmt::Display,
    pooled_size: usize,
    config: &impl Serialize,
) -> fmt::Result {
    writeln!(f, "{title:<12} {}, pooled by {pooling} to {pooled_size}", count(parameters))?;
    writeln!(f, "{:<12} {}", "", compact(config))
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// One line of what a value says: names and values, without those that say nothing.
fn compact(value: &impl Serialize) -> String {
    let text = serde_json::to_value(value).map(|value| phrase(&value)).unwrap_or_default();
    text.strip_prefix("tower ").map(str::to_string).unwrap_or(text)
}

fn phrase(value: &Value) -> String {
    let inner = |value: &Value| match value {
        Value::Object(_) => format!("({})", phrase(value)),
        _ => phrase(value),
    };
    match value {
        Value::Object(fields) => {
            let told = fields.iter().filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)));
            let told = told.map(|(name, value)| match value {
                Value::Bool(true) => name.clone(),
                value => format!("{name} {}", inner(value)),
            });
            told.collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(inner).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// 151277313 as "151.3 M".
fn count(n: usize) -> String {
    match n {
        0..=9_999 => n.to_string(),
        10_000..=999_999 => format!("{:.1} k", n as f64 / 1e3),
        _ => format!("{:.1} M", n as f64 / 1e6),
    }
}
