//! Image towers by the names that timm gives them, as open_clip's `TimmModel` builds them: the transformers in [`vit`], [`eva`],
//! [`vitamin`] and [`swin`].
//!
//! What a name fixes stands in each file's table. The shapes of the tensors decide sizes where there are tensors; the number of
//! heads, which no shape tells, is the named architecture's, or what `timm_model_kwargs` in `vision_cfg` says (open_clip does
//! not write it; tests with small towers do).

mod eva;
mod vit;
mod vitamin;

use super::Config;
use super::open_clip::{TimmSource, TimmTower, unsupported};
use crate::towers::{ImagePooling, OutputNorm};
use crate::{Error, Result};

/// One architecture of timm: `Ok(None)` where the name is not one of its own.
pub(super) type Maker = fn(&TimmSource<'_>) -> Result<Option<TimmTower>>;

/// The architectures there are.
pub(super) const MAKERS: [Maker; 3] = [vit::tower, eva::tower, vitamin::tower];

/// What `timm_model_kwargs` may say.
const OVERRIDES: [&str; 5] = ["num_heads", "embed_dim", "depth", "depths", "img_size"];

/// The sizes that a name stands for.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Side of the square input in pixels.
    image_size: usize,
    /// Side of a patch in pixels.
    patch_size: usize,
    /// Width E.
    hidden_size: usize,
    /// Number of blocks.
    layers: usize,
    /// Heads of each block.
    heads: usize,
    /// Width inside the MLP.
    intermediate_size: usize,
}

impl Sizes {
    /// From a table's row: input, patch, width, blocks, heads, width of the MLP.
    const fn new([image_size, patch_size, hidden_size, layers, heads, intermediate_size]: [usize; 6]) -> Self {
        Self { image_size, patch_size, hidden_size, layers, heads, intermediate_size }
    }

    /// The sizes of the tower in the files; without files those of the name, but for what `timm_model_kwargs` changes. The
    /// side of the input is not settled here.
    fn of_files(self, timm: &TimmSource<'_>) -> Result<Self> {
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
    fn image_size_of(&self, rows: Option<usize>) -> usize {
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

/// How timm pools (`global_pool`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// The class token.
    Token,
    /// The mean of the patches.
    Average,
    /// Attention with one query.
    Map,
}

/// What an architecture says about pooling.
#[derive(Debug, Clone, Copy)]
struct PoolRules {
    /// `global_pool` where nobody says otherwise.
    default: Pool,
    /// Whether there is a class token.
    class_token: bool,
    /// Whether the tower can be built with attention pooling.
    map: bool,
    /// Whether a tower built to average norms the mean instead of the tokens (`fc_norm`).
    norm_mean: bool,
}

impl PoolRules {
    /// The pooling and what the last norm is applied to. open_clip builds the tower with `timm_pool` where the classifier is
    /// the projection or there is none, else with the architecture's own pooling, which it then replaces by `timm_pool`
    /// unless that is empty (reference: `TimmModel.__init__`).
    fn resolve(self, timm: &TimmSource<'_>) -> Result<(ImagePooling, OutputNorm)> {
        let config = &timm.source.config;
        let projected = match config.text("timm_proj")?.as_deref() {
            Some("linear" | "mlp") => true,
            None => !config.has("timm_proj"),
            Some(_) => false,
        };
        let asked = match timm.pool.as_str() {
            "token" if self.class_token => Some(Pool::Token),
            "avg" => Some(Pool::Average),
            "map" if self.map => Some(Pool::Map),
            "" if projected => None,
            other => {
                let token = if self.class_token { ", token" } else { "" };
                let map = if self.map { ", map" } else { "" };
                return Err(unsupported(config, "timm_pool", other, &format!("avg{token}{map}")));
            }
        };
        let pool = asked.unwrap_or(self.default);
        let built = if projected { self.default } else { pool };
        if pool == Pool::Map && built != Pool::Map {
            return Err(unsupported(config, "timm_pool", "map behind a projection", "avg, token"));
        }
        let pooling = match pool {
            Pool::Token => ImagePooling::Cls,
            Pool::Average => ImagePooling::Mean,
            Pool::Map => ImagePooling::Map,
        };
        let norm = if built == Pool::Average && self.norm_mean { OutputNorm::AfterPooling } else { OutputNorm::Tokens };
        Ok((pooling, norm))
    }
}
