//! The vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) in its published dialects: ViT, DeiT (distillation
//! token), DINOv2 (LayerScale, SwiGLU, registers), CLIP (norm before the blocks, only the pooled token normed after), SigLIP
//! (no class token, attention pooling). [`VitConfig`] says which.
//!
//! pixels (B,C,H,W) → patches (B,P,E) → [class, …] + positions → blocks → norm → pooled (B,E).

mod config;
mod head;
mod mbconv;
mod naflex;
mod stem;

pub use config::{
    ClassifierInput, MapHeadConfig, OutputNorm, Pooler, PositionTable, PrefixTokens, QueryPoolConfig, QueryPoolRow,
    VitConfig,
};
pub use naflex::NaflexVitConfig;
pub use stem::PatchStem;

use candle_core::Tensor;

use super::{BuildImageTower, Collect, ImagePooling, ImageTower, PatchDepth, PatchDropout, TowerOutput};
use crate::nn::{Attend, Encoder, LayerNorm, RelativePositions, Rope, interpolate_positions};
use crate::ops::{self, AttentionMask};
use crate::weights::{Init, Params};
use crate::{Error, Result};
use head::Head;
use stem::Stem;

/// The built tower.
struct Vit {
    config: VitConfig,
    stem: Stem,
    prefix: Vec<Tensor>,
    positions: Option<Tensor>,
    /// One a block, for towers with relative positions.
    relative: Vec<RelativePositions>,
    embedding_norm: Option<LayerNorm>,
    encoder: Encoder,
    output_norm: LayerNorm,
    head: Head,
}

/// What stands before the first block, and what the blocks' attention depends on besides.
struct Embedded {
    tokens: Tensor,
    rope: Option<Rope>,
    /// One for all blocks, or one a block.
    masks: Vec<AttentionMask>,
}

impl Embedded {
    fn attend(&self, block: usize) -> Attend<'_> {
        Attend { mask: self.masks.get(block).unwrap_or(&self.masks[0]), rope: self.rope.as_ref() }
    }
}

impl Vit {
    pub(super) fn new(params: &Params, config: &VitConfig, pooling: ImagePooling) -> Result<Self> {
        config.check()?;
        let size = config.hidden_size;
        let init = Init::Normal { std: config.initializer_range as f32 };
        let embeddings = params.pp("embeddings");
        let grid = config.image_size / config.patch_size;
        let mut prefix = Vec::new();
        if config.prefix_tokens != PrefixTokens::None {
            prefix.push(embeddings.get("class_embedding", &[1, size], init)?);
        }
        match config.prefix_tokens {
            PrefixTokens::ClassAndDistillation => {
                prefix.push(embeddings.get("distillation_embedding", &[1, size], init)?);
            }
            PrefixTokens::ClassAndRegisters(count) => {
                prefix.push(embeddings.get("register_tokens", &[count, size], init)?);
            }
            PrefixTokens::None | PrefixTokens::Class => {}
        }
        let rows = config.positioned_prefix() + grid * grid;
        let has_table = !matches!(
            config.positions,
            PositionTable::None | PositionTable::Relative(_) | PositionTable::RelativeTable
        );
        let positions = has_table.then(|| embeddings.get("position_embedding.weight", &[rows, size], init));
        let encoder = params.pp("encoder");
        Ok(Self {
            stem: Stem::new(&embeddings, config, init)?,
            positions: positions.transpose()?,
            relative: Self::relative_positions(&encoder.pp("layers"), config, init)?,
            prefix,
            embedding_norm: config
                .norm_embeddings
                .then(|| LayerNorm::new(&params.pp("pre_layrnorm"), size, config.layer_norm_eps))
                .transpose()?,
            encoder: Encoder::new(&encoder, &config.blocks())?,
            output_norm: LayerNorm::new(
                &params.pp("post_layernorm"),
                config.output_norm_size(),
                config.layer_norm_eps,
            )?,
            head: Head::new(params, config, pooling, init)?,
            config: config.clone(),
        })
    }

    fn relative_positions(layers: &Params, config: &VitConfig, init: Init) -> Result<Vec<RelativePositions>> {
        let grid = config.image_size / config.patch_size;
        let heads = config.num_attention_heads;
        let new = |i: usize| {
            let params = layers.pp(i).pp("self_attn.relative_positions");
            match config.positions {
                PositionTable::Relative(size) => RelativePositions::new(&params, size, heads, init).map(Some),
                PositionTable::RelativeTable => RelativePositions::table(&params, (grid, grid), heads, init).map(Some),
                _ => Ok(None),
            }
        };
        Ok((0..config.num_hidden_layers).map(new).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Patches, prefix tokens and positions (B,L,E), with what depends on the grid.
    fn embed(&self, pixel_values: &Tensor) -> Result<Embedded> {
        let (patches, grid) = self.stem.forward(pixel_values)?;
        let prefix = self.config.prefix_tokens.count();
        let mut masks = Vec::with_capacity(self.relative.len().max(1));
        for relative in &self.relative {
            masks.push(AttentionMask::none().with_bias(relative.biases(grid, prefix, &patches)?)?);
        }
        if masks.is_empty() {
            masks.push(AttentionMask::none());
        }
        let rope = self.config.rope.map(|rope| {
            let width = self.config.hidden_size / self.config.num_attention_heads;
            rope.tables(grid, width, patches.device())?.after_prefix(prefix)?.to_dtype(patches.dtype())
        });
        Ok(Embedded { rope: rope.transpose()?, masks, tokens: self.embed_patches(patches, grid)? })
    }

    /// [`Vit::embed`] of some patches.
    fn embed_some(&self, pixel_values: &Tensor, patches: &PatchDropout) -> Result<Embedded> {
        let embedded = self.embed(pixel_values)?;
        if embedded.rope.is_some() || !self.relative.is_empty() {
            let message = "patches cannot be dropped from a tower with rotary or relative positions";
            return Err(Error::argument("patch_keep", message));
        }
        let tokens = patches.apply(&embedded.tokens, self.config.prefix_tokens.count())?;
        Ok(Embedded { tokens, ..embedded })
    }

    /// The patches (B,P,E) behind the prefix tokens, all with their positions (B,L,E).
    fn embed_patches(&self, mut patches: Tensor, grid: (usize, usize)) -> Result<Tensor> {
        let (batch, _, size) = patches.dims3()?;
        let mut prefix = match self.prefix.as_slice() {
            [] => None,
            tokens => Some(Tensor::cat(tokens, 0)?),
        };
        if let Some(table) = &self.positions {
            let positioned = self.config.positioned_prefix();
            let table = interpolate_positions(table, positioned, grid, self.config.position_resize)?;
            patches = ops::add_row(&patches, &table.narrow(0, positioned, grid.0 * grid.1)?)?;
            if let Some(tokens) = prefix.as_mut().filter(|_| positioned > 0) {
                let first = (tokens.narrow(0, 0, positioned)? + table.narrow(0, 0, positioned)?)?;
                let rest = tokens.dim(0)? - positioned;
                *tokens = Tensor::cat(&[first, tokens.narrow(0, positioned, rest)?], 0)?;
            }
        }
        let embedded = match prefix {
            None => patches,
            Some(tokens) => {
                let count = tokens.dim(0)?;
                let tokens = tokens.unsqueeze(0)?.broadcast_as((batch, count, size))?.contiguous()?;
                Tensor::cat(&[tokens, patches], 1)?
            }
        };
        self.embedding_norm.as_ref().map_or(Ok(embedded.clone()), |norm| norm.forward(&embedded))
    }

    /// The normed mean of the patch tokens, from tokens not yet normed.
    fn mean_patch(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, length, _) = tokens.dims3()?;
        let prefix = self.config.prefix_tokens.count();
        let keep: Vec<bool> = (0..batch * length).map(|i| i % length >= prefix).collect();
        match self.config.output_norm {
            OutputNorm::AfterPooling => self.output_norm.forward(&ops::mean_pool(tokens, &keep)?),
            OutputNorm::TokensThenPooled => {
                self.output_norm.forward(&ops::mean_pool(&self.output_norm.forward(tokens)?, &keep)?)
            }
            OutputNorm::Tokens | OutputNorm::Pooled => ops::mean_pool(&self.output_norm.forward(tokens)?, &keep),
        }
    }

    fn token(&self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        let positions = vec![position; tokens.dim(0)?];
        let token = self.output_norm.forward(&ops::select_tokens(tokens, &positions)?)?;
        match self.config.output_norm {
            OutputNorm::TokensThenPooled => self.output_norm.forward(&token),
            OutputNorm::Tokens | OutputNorm::Pooled | OutputNorm::AfterPooling => Ok(token),
        }
    }

    /// The pooled row from what stands before the first block.
    fn pooled_embedded(&self, embedded: &Embedded) -> Result<Tensor> {
        if self.head.reads_class_token_only() && self.relative.is_empty() {
            let positions = vec![0; embedded.tokens.dim(0)?];
            let attend = embedded.attend(0);
            let class = self.encoder.forward_selected(&embedded.tokens, attend, attend.mask, &positions)?;
            return self.pool(&class.unsqueeze(1)?);
        }
        self.pool(&self.encoder.forward_each(&embedded.tokens, |i| embedded.attend(i), Collect::Last)?.0)
    }

    /// The pooled row from the last block's output.
    fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.head {
            Head::Cls => self.token(tokens, 0),
            Head::Mean => self.mean_patch(tokens),
            Head::Map(head) => head.forward(&self.output_norm.forward(tokens)?, &AttentionMask::none()),
            Head::Queries(pool) => pool.forward(tokens, &self.output_norm),
            Head::Pooler(dense, activation) => ops::activate(&dense.forward(&self.token(tokens, 0)?)?, *activation),
            Head::Classifier(input, layers) => {
                let classifier = |i: usize, x: &Tensor| layers[i].forward(x);
                match input {
                    ClassifierInput::Cls => classifier(0, &self.token(tokens, 0)?),
                    ClassifierInput::Mean => classifier(0, &self.mean_patch(tokens)?),
                    ClassifierInput::ClsAndMean => {
                        classifier(0, &Tensor::cat(&[self.token(tokens, 0)?, self.mean_patch(tokens)?], 1)?)
                    }
                    ClassifierInput::ClsAndDistillation => {
                        let both = (classifier(0, &self.token(tokens, 0)?)? + classifier(1, &self.token(tokens, 1)?)?)?;
                        Ok((both * 0.5)?)
                    }
                }
            }
        }
    }
}

impl BuildImageTower for VitConfig {
    fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>> {
        Ok(Box::new(Vit::new(params, self, pooling)?))
    }

    fn pooled_size(&self, pooling: ImagePooling) -> usize {
        VitConfig::pooled_size(self, pooling)
    }

    fn image_size(&self) -> usize {
        self.image_size
    }
}

impl ImageTower for Vit {
    fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.pooled_embedded(&self.embed(pixel_values)?)
    }

    fn pooled_of_some(&self, pixel_values: &Tensor, patches: &PatchDropout) -> Result<Tensor> {
        self.pooled_embedded(&self.embed_some(pixel_values, patches)?)
    }

    fn pooled_and_patches(
        &self,
        pixel_values: &Tensor,
        patches: Option<&PatchDropout>,
        depth: PatchDepth,
    ) -> Result<(Tensor, Tensor)> {
        let embedded = match patches {
            Some(patches) => self.embed_some(pixel_values, patches)?,
            None => self.embed(pixel_values)?,
        };
        let (last, inputs) =
            self.encoder.forward_each(&embedded.tokens, |i| embedded.attend(i), Collect::HiddenStates)?;
        let tokens = match depth {
            PatchDepth::TwoThirds => inputs.get((2 * inputs.len()).div_ceil(3)).unwrap_or(&last).clone(),
            PatchDepth::Last => self.output_norm.forward(&last)?,
        };
        let prefix = self.config.prefix_tokens.count();
        let count = tokens.dim(1)? - prefix;
        Ok((self.pool(&last)?, tokens.narrow(1, prefix, count)?))
    }

    fn forward(&self, pixel_values: &Tensor, collect: Collect) -> Result<TowerOutput> {
        let embedded = self.embed(pixel_values)?;
        let (tokens, mut hidden_states) =
            self.encoder.forward_each(&embedded.tokens, |i| embedded.attend(i), collect)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(tokens.clone());
        }
        let last_hidden_state = match self.config.output_norm {
            OutputNorm::Tokens | OutputNorm::TokensThenPooled => self.output_norm.forward(&tokens)?,
            OutputNorm::Pooled | OutputNorm::AfterPooling => tokens.clone(),
        };
        Ok(TowerOutput { last_hidden_state, pooled: self.pool(&tokens)?, hidden_states })
    }
}
