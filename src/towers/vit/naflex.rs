//! The vision transformer over images that keep their proportions: SigLIP 2's NaFlex (Tschannen et al. 2025, arXiv 2502.14786,
//! section 2.4; reference: `modeling_siglip2.py` of transformers).
//!
//! patches (B,N,p·p·C) → linear + positions resized to each image's own grid (B,N,E) → blocks that see no padding → norm →
//! attention pooling that sees no padding (B,E).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::config::{PositionTable, PrefixTokens, VitConfig};
use super::head::Head;
use super::stem::PatchStem;
use crate::image::NaflexBatch;
use crate::nn::{Encoder, LayerNorm, Linear, interpolate_positions};
use crate::ops::{self, AttentionMask};
use crate::towers::{BuildImageTower, Collect, ImagePooling, ImageTower, TowerOutput};
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes and choices of a NaFlex tower: a vision transformer without prefix tokens, whose `image_size` is the side of the square
/// image that the position table fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NaflexVitConfig(
    /// The vision transformer's.
    pub VitConfig,
);

/// The built tower.
struct Naflex {
    config: VitConfig,
    patch_embedding: Linear,
    positions: Tensor,
    encoder: Encoder,
    output_norm: LayerNorm,
    head: Head,
}

/// Rows and columns of patches of an image.
type Grid = (usize, usize);

impl Naflex {
    fn new(params: &Params, NaflexVitConfig(config): &NaflexVitConfig, pooling: ImagePooling) -> Result<Self> {
        config.check()?;
        let plain = config.stem == PatchStem::Patches && config.rope.is_none() && !config.norm_embeddings;
        if config.prefix_tokens != PrefixTokens::None || config.positions != PositionTable::Patches || !plain {
            let message = "a NaFlex tower has patches alone, all of them with learned positions";
            return Err(Error::argument("prefix_tokens", message));
        }
        let size = config.hidden_size;
        let init = Init::Normal { std: config.initializer_range as f32 };
        let embeddings = params.pp("embeddings");
        let grid = config.image_size / config.patch_size;
        let values = config.patch_size * config.patch_size * config.num_channels;
        let patch_embedding = embeddings.pp("patch_embedding");
        Ok(Self {
            patch_embedding: match config.patch_bias {
                true => Linear::new(&patch_embedding, values, size, init)?,
                false => Linear::without_bias(&patch_embedding, values, size, init)?,
            },
            positions: embeddings.get("position_embedding.weight", &[grid * grid, size], init)?,
            encoder: Encoder::new(&params.pp("encoder"), &config.blocks())?,
            output_norm: LayerNorm::new(&params.pp("post_layernorm"), size, config.layer_norm_eps)?,
            head: Head::new(params, config, pooling, init)?,
            config: config.clone(),
        })
    }

    /// Patches and positions (B,N,E). Padding has the position of the first patch, as in the reference.
    fn embed(&self, patches: &Tensor, grids: &[Grid]) -> Result<Tensor> {
        let values = self.config.patch_size * self.config.patch_size * self.config.num_channels;
        let &[batch, places, width] = patches.dims() else {
            return Err(Error::argument("patches", format!("expected (B,N,{values}), found {:?}", patches.dims())));
        };
        let fits = |&(rows, columns): &Grid| (1..=places).contains(&rows.saturating_mul(columns));
        if width != values || batch != grids.len() || !grids.iter().all(fits) {
            let message = format!(
                "shape {:?} with spatial shapes {grids:?}; expected ({},N,{values}) and grids of at most N patches",
                patches.dims(),
                grids.len()
            );
            return Err(Error::argument("patches", message));
        }
        let mut tables = BTreeMap::new();
        for &grid in grids {
            if let Entry::Vacant(place) = tables.entry(grid) {
                place.insert(self.positions_of(grid, places)?);
            }
        }
        let positions: Vec<&Tensor> = grids.iter().filter_map(|grid| tables.get(grid)).collect();
        let embedded = self.patch_embedding.forward(&patches.to_dtype(self.positions.dtype())?)?;
        Ok((embedded + Tensor::stack(&positions, 0)?)?)
    }

    /// (places, E)
    fn positions_of(&self, grid: Grid, places: usize) -> Result<Tensor> {
        let table = interpolate_positions(&self.positions, 0, grid, self.config.position_resize)?;
        let (used, size) = table.dims2()?;
        if used == places {
            return Ok(table);
        }
        let rest = table.narrow(0, 0, 1)?.broadcast_as((places - used, size))?.contiguous()?;
        Ok(Tensor::cat(&[table, rest], 0)?)
    }

    /// An image of any size cut into whole patches, the channels of a pixel side by side (B,P,p·p·C).
    fn cut(&self, pixel_values: &Tensor) -> Result<(Tensor, Vec<Grid>)> {
        let (p, channels) = (self.config.patch_size, self.config.num_channels);
        let (batch, height, width) = match *pixel_values.dims() {
            [batch, found, height, width] if found == channels && height >= p && width >= p => (batch, height, width),
            _ => {
                let found = pixel_values.dims();
                let message = format!("expected (B,{channels},H,W) of at least {p}×{p} pixels, found shape {found:?}");
                return Err(Error::argument("pixel_values", message));
            }
        };
        let (rows, columns) = (height / p, width / p);
        let pixels = pixel_values.narrow(2, 0, rows * p)?.narrow(3, 0, columns * p)?.contiguous()?;
        let patches = pixels
            .reshape(&[batch, channels, rows, p, columns, p])?
            .permute([0, 2, 4, 3, 5, 1].as_slice())?
            .contiguous()?
            .reshape((batch, rows * columns, p * p * channels))?;
        Ok((patches, vec![(rows, columns); batch]))
    }

    fn run(&self, patches: &Tensor, grids: &[Grid], collect: Collect) -> Result<TowerOutput> {
        let embedded = self.embed(patches, grids)?;
        let (batch, places, _) = embedded.dims3()?;
        let keep: Vec<bool> =
            grids.iter().flat_map(|&(rows, columns)| (0..places).map(move |i| i < rows * columns)).collect();
        let mask = match keep.contains(&false) {
            true => AttentionMask::none().with_key_padding(keep.clone(), batch, places)?,
            false => AttentionMask::none(),
        };
        let (tokens, mut hidden_states) = self.encoder.forward(&embedded, &mask, collect)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(tokens.clone());
        }
        let last_hidden_state = self.output_norm.forward(&tokens)?;
        let pooled = match &self.head {
            Head::Map(head) => head.forward(&last_hidden_state, &mask)?,
            Head::Mean => ops::mean_pool(&last_hidden_state, &keep)?,
            Head::Cls | Head::Queries(_) | Head::Pooler(..) | Head::Classifier(..) => {
                return Err(Error::argument("image pooling", "a NaFlex tower is pooled by map or mean"));
            }
        };
        Ok(TowerOutput { last_hidden_state, pooled, hidden_states })
    }
}

impl BuildImageTower for NaflexVitConfig {
    fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>> {
        Ok(Box::new(Naflex::new(params, self, pooling)?))
    }

    fn pooled_size(&self, pooling: ImagePooling) -> usize {
        self.0.pooled_size(pooling)
    }

    fn image_size(&self) -> usize {
        self.0.image_size
    }
}

impl ImageTower for Naflex {
    fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        Ok(self.forward(pixel_values, Collect::Last)?.pooled)
    }

    fn forward(&self, pixel_values: &Tensor, collect: Collect) -> Result<TowerOutput> {
        let (patches, grids) = self.cut(pixel_values)?;
        self.run(&patches, &grids, collect)
    }

    fn forward_patches(&self, batch: &NaflexBatch, collect: Collect) -> Result<TowerOutput> {
        self.run(&batch.patches, &batch.spatial_shapes, collect)
    }
}
