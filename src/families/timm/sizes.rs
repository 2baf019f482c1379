//! The sizes of a transformer by timm's names: those of the tensors, where there are tensors, else those of the name.

use super::TimmSource;
use crate::families::Config;
use crate::{Error, Result};

/// What `timm_model_kwargs` may say.
const OVERRIDES: [&str; 5] = ["num_heads", "embed_dim", "depth", "depths", "img_size"];

/// The sizes that a name stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Side of the square input in pixels.
    pub(super) image_size: usize,
    /// Side of a patch in pixels.
    pub(super) patch_size: usize,
    /// Width E.
    pub(super) hidden_size: usize,
    /// Number of blocks.
    pub(super) layers: usize,
    /// Heads of each block.
    pub(super) heads: usize,
    /// Width inside the MLP.
    pub(super) intermediate_size: usize,
}

impl Sizes {
    /// From a table's row: input, patch, width, blocks, heads, width of the MLP.
    pub(super) const fn new(
        [image_size, patch_size, hidden_size, layers, heads, intermediate_size]: [usize; 6],
    ) -> Self {
        Self { image_size, patch_size, hidden_size, layers, heads, intermediate_size }
    }

    /// The sizes of the tower in the files; without files those of the name, but for what `timm_model_kwargs` changes. The
    /// side of the input is not settled here.
    pub(super) fn of_files(self, timm: &TimmSource<'_>) -> Result<Self> {
        let source = &timm.source;
        let kwargs = overrides(timm)?;
        let row = |name: &str, axis: usize| source.shape(name).and_then(|shape| shape.get(axis)).copied();
        let hidden_size = match row("blocks.0.attn.proj.weight", 0) {
            Some(size) => size,
            None => kwargs.size("embed_dim", self.hidden_size)?,
        };
        let mlp = ["fc1", "fc1_x", "w0"].iter().find_map(|name| row(&format!("blocks.0.mlp.{name}.weight"), 0));
        // Where widths differ from the name's, the MLP keeps its ratio.
        let scaled = hidden_size.saturating_mul(self.intermediate_size) / self.hidden_size;
        Ok(Self {
            patch_size: row("patch_embed.proj.weight", 2).unwrap_or(self.patch_size),
            hidden_size,
            layers: match source.count("blocks") {
                Some(count) => count,
                None => kwargs.size("depth", self.layers)?,
            },
            heads: self.heads_for(hidden_size, &kwargs)?,
            intermediate_size: mlp.unwrap_or(scaled),
            image_size: kwargs.size("img_size", timm.image_size.unwrap_or(self.image_size))?,
        })
    }

    /// How many heads a tower `width` wide has.
    fn heads_for(&self, width: usize, kwargs: &Config) -> Result<usize> {
        let named = kwargs.size("num_heads", self.heads)?;
        if kwargs.has_value("num_heads") || named > 0 && width.is_multiple_of(named) {
            return Ok(named);
        }
        let head = self.hidden_size / self.heads;
        if width > 0 && width.is_multiple_of(head) {
            return Ok(width / head);
        }
        let message = format!(
            "the tower is {width} wide, which neither {named} heads nor heads of {head} divide; say num_heads in \
             timm_model_kwargs"
        );
        Err(Error::file(kwargs.path(), message))
    }

    /// The side of the input that a table of `rows` positions is for; the configuration's where it has as many patches, or
    /// where there is no square.
    pub(super) fn image_size_of(&self, rows: Option<usize>) -> usize {
        let grid = rows.map_or(0, |rows| (rows as f64).sqrt().round() as usize);
        let fits = rows.is_none_or(|rows| grid * grid != rows) || grid == self.image_size / self.patch_size.max(1);
        if fits { self.image_size } else { grid * self.patch_size }
    }
}

/// `timm_model_kwargs`, else `model_args`, else nothing.
fn overrides(timm: &TimmSource<'_>) -> Result<Config> {
    let config = &timm.source.config;
    let kwargs = config.part(if config.has("timm_model_kwargs") { "timm_model_kwargs" } else { "model_args" })?;
    kwargs.only(&OVERRIDES)?;
    Ok(kwargs)
}
