//! The vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) in its published dialects: ViT, DeiT (distillation
//! token), DINOv2 (LayerScale, SwiGLU, registers), CLIP (norm before the blocks, only the pooled token normed after), SigLIP
//! (no class token, attention pooling). [`VitConfig`] says which.
//!
//! pixels (B,C,H,W) → patches (B,P,E) → [class, …] + positions → blocks → norm → pooled (B,E).

mod config;
mod head;

pub use config::{
    ClassifierInput, MapHeadConfig, OutputNorm, Pooler, PositionTable, PrefixTokens, QueryPoolConfig, QueryPoolRow,
    VitConfig,
};

use candle_core::Tensor;

use super::{Collect, ImagePooling, ImageTower, TowerOutput};
use crate::Result;
use crate::nn::{Encoder, LayerNorm, PatchEmbed, interpolate_positions};
use crate::ops::{self, AttentionMask};
use crate::weights::{Init, Params};
use head::Head;

/// The built tower.
pub(super) struct Vit {
    config: VitConfig,
    patch_embed: PatchEmbed,
    prefix: Vec<Tensor>,
    positions: Option<Tensor>,
    embedding_norm: Option<LayerNorm>,
    encoder: Encoder,
    output_norm: LayerNorm,
    head: Head,
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
        let positions = (config.positions != PositionTable::None)
            .then(|| embeddings.get("position_embedding.weight", &[rows, size], init));
        Ok(Self {
            patch_embed: PatchEmbed::new(
                &embeddings.pp("patch_embedding"),
                config.num_channels,
                config.patch_size,
                size,
                config.patch_bias,
                init,
            )?,
            positions: positions.transpose()?,
            prefix,
            embedding_norm: config
                .norm_embeddings
                .then(|| LayerNorm::new(&params.pp("pre_layrnorm"), size, config.layer_norm_eps))
                .transpose()?,
            encoder: Encoder::new(&params.pp("encoder"), &config.blocks())?,
            output_norm: LayerNorm::new(
                &params.pp("post_layernorm"),
                config.output_norm_size(),
                config.layer_norm_eps,
            )?,
            head: Head::new(params, config, pooling, init)?,
            config: config.clone(),
        })
    }

    /// Patches, prefix tokens and positions (B,L,E).
    fn embed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (mut patches, grid) = self.patch_embed.forward(pixel_values)?;
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
            OutputNorm::Tokens | OutputNorm::Pooled => ops::mean_pool(&self.output_norm.forward(tokens)?, &keep),
        }
    }

    fn token(&self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        let positions = vec![position; tokens.dim(0)?];
        self.output_norm.forward(&ops::select_tokens(tokens, &positions)?)
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

impl ImageTower for Vit {
    fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (embedded, mask) = (self.embed(pixel_values)?, AttentionMask::none());
        if self.head.reads_class_token_only() {
            let positions = vec![0; embedded.dim(0)?];
            let class = self.encoder.forward_selected(&embedded, &mask, &mask, &positions)?;
            return self.pool(&class.unsqueeze(1)?);
        }
        self.pool(&self.encoder.forward(&embedded, &mask, Collect::Last)?.0)
    }

    fn forward(&self, pixel_values: &Tensor, collect: Collect) -> Result<TowerOutput> {
        let embedded = self.embed(pixel_values)?;
        let (tokens, mut hidden_states) = self.encoder.forward(&embedded, &AttentionMask::none(), collect)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(tokens.clone());
        }
        let last_hidden_state = match self.config.output_norm {
            OutputNorm::Tokens => self.output_norm.forward(&tokens)?,
            OutputNorm::Pooled | OutputNorm::AfterPooling => tokens.clone(),
        };
        Ok(TowerOutput { last_hidden_state, pooled: self.pool(&tokens)?, hidden_states })
    }
}
