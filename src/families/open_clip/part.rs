//! What each half of an open_clip model comes to: [`ImagePart`], [`TextPart`], and [`Projection`], which stands behind both.
//!
//! The halves are written by native towers (`vit.rs`, `text.rs`, `resnet.rs`), by timm's (`timm.rs`) and by Hugging Face's
//! text towers (`hf_text.rs`); the family joins any two of them.

use super::super::{Config, FamilySource};
use crate::encoder::{ImageEncoderConfig, TextEncoderConfig};
use crate::project::{MlpBias, ProjectionConfig, ProjectionKind};
use crate::weights::Renames;
use crate::{Error, Result};

/// What a half is made from.
pub(in crate::families) struct PartSource<'a> {
    /// `vision_cfg` or `text_cfg`, and the tensors below `visual.` or below `text.` (the root where the text tower is not
    /// custom), by their names there.
    pub(in crate::families) source: FamilySource<'a>,
    /// Width D of the shared space.
    pub(in crate::families) embed_dim: usize,
    /// `quick_gelu` of the model, which native towers obey and others do not.
    pub(in crate::families) quick_gelu: bool,
}

impl PartSource<'_> {
    /// The half's own configuration.
    pub(in crate::families) fn config(&self) -> &Config {
        &self.source.config
    }
}

/// The image half: what is below `visual.`.
#[derive(Debug)]
pub(in crate::families) struct ImagePart {
    /// The tower and its pooling.
    pub(in crate::families) config: ImageEncoderConfig,
    /// From the files' names below `visual.` to the tower's. What the projection reads need not be ignored here.
    pub(in crate::families) renames: Renames,
    /// What stands behind it.
    pub(in crate::families) projection: Projection,
}

/// The text half: what is below `text.`, or at the root where the model is no `custom_text` one.
#[derive(Debug)]
pub(in crate::families) struct TextPart {
    /// The tower and its pooling.
    pub(in crate::families) config: TextEncoderConfig,
    /// From the files' names below the prefix to the tower's. What the projection reads need not be ignored here.
    pub(in crate::families) renames: Renames,
    /// What stands behind it.
    pub(in crate::families) projection: Projection,
    /// The id that pads rows where the tokenizer's files name none.
    pub(in crate::families) pad_id: u32,
}

/// A projection and its names.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::families) struct Projection {
    /// The layers.
    pub(in crate::families) config: ProjectionConfig,
    /// From names in the file, below the half's prefix, to names below `visual_projection` or `text_projection`; whole modules
    /// or single tensors.
    pub(in crate::families) names: Vec<(String, &'static str)>,
    /// How the file holds the matrix.
    pub(in crate::families) matrix: Matrix,
}

/// How a file holds a projection's matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::families) enum Matrix {
    /// (output, input), as PyTorch's `nn.Linear`.
    Linear,
    /// (input, output): `x·W`.
    Transposed,
}

impl Projection {
    /// The pooled output is the feature already.
    pub(in crate::families) fn none(embed_dim: usize) -> Self {
        let config = ProjectionConfig::plain(ProjectionKind::Identity, embed_dim);
        Self { config, names: Vec::new(), matrix: Matrix::Linear }
    }

    /// `x·W` with one tensor `name` (input, output).
    pub(in crate::families) fn matrix(name: &str, embed_dim: usize) -> Self {
        let names = vec![(name.to_string(), "weight")];
        Self { config: ProjectionConfig::linear(embed_dim), names, matrix: Matrix::Transposed }
    }

    /// `nn.Linear` under `name`.
    pub(in crate::families) fn linear(name: &str, embed_dim: usize, bias: bool) -> Self {
        let kind = if bias { ProjectionKind::LinearBias } else { ProjectionKind::Linear };
        let names = vec![(name.to_string(), "")];
        Self { config: ProjectionConfig::plain(kind, embed_dim), names, matrix: Matrix::Linear }
    }

    /// Linear → GELU → Linear under two names.
    pub(in crate::families) fn mlp(names: [&str; 2], embed_dim: usize, hidden_size: usize, bias: MlpBias) -> Self {
        let config = ProjectionConfig::plain(ProjectionKind::MlpPlain { hidden_size, bias }, embed_dim);
        let names = names.into_iter().map(str::to_string).zip(["fc1", "fc2"]).collect();
        Self { config, names, matrix: Matrix::Linear }
    }

    /// What `hf_proj_type` says behind a Hugging Face text tower whose pooled output is `pooled_size` wide (reference:
    /// `HFTextEncoder` of `hf_model.py`; its default in a configuration is `mlp`).
    ///
    /// # Errors
    /// When the type is unknown.
    pub(in crate::families) fn of_hugging_face(part: &PartSource<'_>, pooled_size: usize) -> Result<Self> {
        let found = part.config().text("hf_proj_type")?.unwrap_or_else(|| "mlp".to_string());
        let hidden = (pooled_size + part.embed_dim) / 2;
        match found.as_str() {
            "linear" => Ok(Self::linear("proj", part.embed_dim, false)),
            "mlp" => Ok(Self::mlp(["proj.0", "proj.2"], part.embed_dim, hidden, MlpBias::None)),
            _ => Err(unsupported(part.config(), "hf_proj_type", &found, "linear, mlp")),
        }
    }

    /// `renames` with what this reads ignored: it is another branch's.
    ///
    /// # Errors
    /// Never for names that are not empty.
    pub(super) fn leave_to_heads(&self, renames: Renames) -> Result<Renames> {
        self.names.iter().try_fold(renames, |renames, (name, _)| renames.ignore(name)?.ignore(&format!("{name}.*")))
    }

    /// `heads` with the rules that bring this under `ours` from under `prefix`.
    ///
    /// # Errors
    /// Never for names that are not empty.
    pub(super) fn put_under(&self, heads: Renames, prefix: &str, ours: &str) -> Result<Renames> {
        let put = |heads: Renames, (name, to): &(String, &str)| {
            heads.rule(&format!("^{prefix}.{name}"), &format!("{ours}.{to}"))
        };
        let heads = self.names.iter().try_fold(heads, put)?;
        match self.matrix {
            Matrix::Linear => Ok(heads),
            Matrix::Transposed => heads.transposed(&format!("{ours}.weight")),
        }
    }
}

/// The error for a value of a known choice that this family does not have.
pub(in crate::families) fn unsupported(config: &Config, what: &'static str, value: &str, known: &str) -> Error {
    Error::unsupported(config.path().display().to_string(), what, value, known)
}
