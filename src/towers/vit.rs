//! The vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) in its four published dialects: ViT, DeiT
//! (distillation token), DINOv2 (LayerScale, SwiGLU), CLIP (norm before the blocks, only the pooled token normed after).
//!
//! pixels (B,C,H,W) → patches (B,P,E) → [class, …] + positions → blocks → norm → pooled (B,E).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Collect, ImagePooling, ImageTower, TowerOutput, check_sizes};
use crate::nn::{BlockConfig, Encoder, LayerNorm, Linear, MlpKind, NormPosition, PatchEmbed, interpolate_positions};
use crate::ops::{self, Activation, AttentionMask};
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes and choices of a vision transformer. Names are Hugging Face's where it has one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Width E of the tokens.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Added to the variance in each LayerNorm.
    pub layer_norm_eps: f64,
    /// Side in pixels that the position embeddings are made for; other sizes interpolate them.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Colour channels C.
    pub num_channels: usize,
    /// Whether the patch projection has a bias.
    pub patch_bias: bool,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Which learned tokens stand before the patches.
    pub prefix_tokens: PrefixTokens,
    /// Whether a LayerNorm stands before the first block (CLIP's `pre_layrnorm`).
    pub norm_embeddings: bool,
    /// What the last LayerNorm is applied to.
    pub output_norm: OutputNorm,
    /// LayerScale's start, for DINOv2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_scale: Option<f32>,
    /// The MLP's form.
    #[serde(default)]
    pub mlp: MlpKind,
    /// `act(dense(CLS))`, if the checkpoint has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooler: Option<Pooler>,
    /// The classifier, if the checkpoint has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<ClassifierInput>,
    /// The classifier's number of labels.
    #[serde(default)]
    pub num_labels: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// The learned tokens before the patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefixTokens {
    /// The class token.
    Class,
    /// The class token and DeiT's distillation token.
    ClassAndDistillation,
}

/// What the last LayerNorm is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputNorm {
    /// All tokens, so that `last_hidden_state` is normed (ViT, DeiT, DINOv2).
    Tokens,
    /// What pooling picks; `last_hidden_state` is not normed (CLIP).
    Pooled,
}

/// The pooler after the class token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pooler {
    /// Width of its output.
    pub size: usize,
    /// Its activation.
    pub activation: Activation,
}

/// What an image classifier reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassifierInput {
    /// The normed class token (ViT, DeiT).
    Cls,
    /// Class token and mean patch, side by side (DINOv2).
    ClsAndMean,
    /// One classifier on the class token, one on the distillation token, averaged (DeiT with teacher).
    ClsAndDistillation,
}

impl VitConfig {
    fn blocks(&self) -> BlockConfig {
        BlockConfig {
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
            norm: NormPosition::Pre,
            mlp: self.mlp,
            qkv_bias: self.qkv_bias,
            layer_scale: self.layer_scale,
            initializer_range: self.initializer_range as f32,
        }
    }

    fn prefix_count(&self) -> usize {
        match self.prefix_tokens {
            PrefixTokens::Class => 1,
            PrefixTokens::ClassAndDistillation => 2,
        }
    }

    /// Width of the pooled output.
    #[must_use]
    pub fn pooled_size(&self, pooling: ImagePooling) -> usize {
        match pooling {
            ImagePooling::Cls | ImagePooling::Mean => self.hidden_size,
            ImagePooling::Pooler => self.pooler.map_or(self.hidden_size, |p| p.size),
            ImagePooling::Logits => self.num_labels,
        }
    }

    fn check(&self) -> Result<()> {
        let sizes = [
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("patch_size", self.patch_size),
            ("num_channels", self.num_channels),
        ];
        check_sizes(self.hidden_size, self.num_attention_heads, self.layer_norm_eps, &sizes)?;
        if self.image_size < self.patch_size || self.image_size > 1 << 16 {
            let message = format!("{} is smaller than patch_size {} or above 65536", self.image_size, self.patch_size);
            return Err(Error::argument("image_size", message));
        }
        Ok(())
    }
}

/// The built tower.
pub(super) struct Vit {
    config: VitConfig,
    patch_embed: PatchEmbed,
    prefix: Vec<Tensor>,
    positions: Tensor,
    embedding_norm: Option<LayerNorm>,
    encoder: Encoder,
    output_norm: LayerNorm,
    head: Head,
}

/// What comes after the norm.
enum Head {
    Cls,
    Mean,
    Pooler(Linear, Activation),
    Classifier(ClassifierInput, Vec<Linear>),
}

impl Vit {
    pub(super) fn new(params: &Params, config: &VitConfig, pooling: ImagePooling) -> Result<Self> {
        config.check()?;
        let size = config.hidden_size;
        let init = Init::Normal { std: config.initializer_range as f32 };
        let embeddings = params.pp("embeddings");
        let grid = config.image_size / config.patch_size;
        let mut prefix = vec![embeddings.get("class_embedding", &[size], init)?];
        if config.prefix_tokens == PrefixTokens::ClassAndDistillation {
            prefix.push(embeddings.get("distillation_embedding", &[size], init)?);
        }
        Ok(Self {
            patch_embed: PatchEmbed::new(
                &embeddings.pp("patch_embedding"),
                config.num_channels,
                config.patch_size,
                size,
                config.patch_bias,
                init,
            )?,
            positions: embeddings.get("position_embedding.weight", &[grid * grid + prefix.len(), size], init)?,
            prefix,
            embedding_norm: config
                .norm_embeddings
                .then(|| LayerNorm::new(&params.pp("pre_layrnorm"), size, config.layer_norm_eps))
                .transpose()?,
            encoder: Encoder::new(&params.pp("encoder"), &config.blocks())?,
            output_norm: LayerNorm::new(&params.pp("post_layernorm"), size, config.layer_norm_eps)?,
            head: Head::new(params, config, pooling, init)?,
            config: config.clone(),
        })
    }

    /// Patches, prefix tokens and positions (B,L,E).
    fn embed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (patches, grid) = self.patch_embed.forward(pixel_values)?;
        let (batch, _, size) = patches.dims3()?;
        let mut tokens = Vec::with_capacity(self.prefix.len() + 1);
        for token in &self.prefix {
            tokens.push(token.reshape((1, 1, size))?.broadcast_as((batch, 1, size))?.contiguous()?);
        }
        tokens.push(patches);
        let tokens = Tensor::cat(&tokens, 1)?;
        let positions = interpolate_positions(&self.positions, self.prefix.len(), grid)?;
        let embedded = ops::add_row(&tokens, &positions)?;
        self.embedding_norm.as_ref().map_or(Ok(embedded.clone()), |norm| norm.forward(&embedded))
    }

    /// The normed mean of the patch tokens, from tokens not yet normed.
    fn mean_patch(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, length, _) = tokens.dims3()?;
        let prefix = self.config.prefix_count();
        let keep: Vec<bool> = (0..batch * length).map(|i| i % length >= prefix).collect();
        ops::mean_pool(&self.output_norm.forward(tokens)?, &keep)
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

impl Head {
    fn new(params: &Params, config: &VitConfig, pooling: ImagePooling, init: Init) -> Result<Self> {
        let size = config.hidden_size;
        match pooling {
            ImagePooling::Cls => Ok(Self::Cls),
            ImagePooling::Mean => Ok(Self::Mean),
            ImagePooling::Pooler => {
                let pooler = config
                    .pooler
                    .ok_or_else(|| Error::argument("image pooling", "the checkpoint has no pooler; use cls or mean"))?;
                Ok(Self::Pooler(Linear::new(&params.pp("pooler.dense"), size, pooler.size, init)?, pooler.activation))
            }
            ImagePooling::Logits => {
                let input = config.classifier.filter(|_| config.num_labels > 0).ok_or_else(|| {
                    Error::argument("image pooling", "the checkpoint has no classifier; use cls or mean")
                })?;
                let layer = |name: &str, width| Linear::new(&params.pp(name), width, config.num_labels, init);
                let layers = match input {
                    ClassifierInput::Cls => vec![layer("classifier", size)?],
                    ClassifierInput::ClsAndMean => vec![layer("classifier", 2 * size)?],
                    ClassifierInput::ClsAndDistillation => {
                        vec![layer("classifier", size)?, layer("distillation_classifier", size)?]
                    }
                };
                Ok(Self::Classifier(input, layers))
            }
        }
    }

    /// Whether only the class token of the last block's output is read.
    fn reads_class_token_only(&self) -> bool {
        matches!(self, Self::Cls | Self::Pooler(..) | Self::Classifier(ClassifierInput::Cls, _))
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
            OutputNorm::Pooled => tokens.clone(),
        };
        Ok(TowerOutput { last_hidden_state, pooled: self.pool(&tokens)?, hidden_states })
    }
}
