//! Sizes and choices of the vision transformer.

use serde::{Deserialize, Serialize};

use super::stem::PatchStem;
use crate::nn::{BlockConfig, BlockExtra, GridRope, MlpKind, NormPosition, PositionResize, QkvBias};
use crate::ops::Activation;
use crate::towers::{ImagePooling, check_sizes};
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
    /// How pixels become patches.
    #[serde(default)]
    pub stem: PatchStem,
    /// Which of queries, keys and values have a bias.
    #[serde(default)]
    pub qkv_bias: QkvBias,
    /// Where the blocks' norms stand.
    #[serde(default = "VitConfig::pre_norm")]
    pub norm: NormPosition,
    /// What is added to attention and MLP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extras: Vec<BlockExtra>,
    /// Which learned tokens stand before the patches.
    pub prefix_tokens: PrefixTokens,
    /// Which tokens have a position embedding.
    #[serde(default)]
    pub positions: PositionTable,
    /// How position embeddings are carried to another grid.
    #[serde(default)]
    pub position_resize: PositionResize,
    /// Rotary positions, in every block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<GridRope>,
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
    /// Attention pooling, if the checkpoint has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_head: Option<MapHeadConfig>,
    /// Attention pooling with learned queries, if the checkpoint has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_pool: Option<QueryPoolConfig>,
    /// The classifier, if the checkpoint has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<ClassifierInput>,
    /// The classifier's number of labels.
    #[serde(default)]
    pub num_labels: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// ViT-B/16 as transformers' `ViTConfig` has it, without pooler and classifier: what a family's configuration departs from.
impl Default for VitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            patch_bias: true,
            stem: PatchStem::default(),
            qkv_bias: QkvBias::All,
            norm: NormPosition::Pre,
            extras: Vec::new(),
            prefix_tokens: PrefixTokens::Class,
            positions: PositionTable::All,
            position_resize: PositionResize::Bicubic,
            rope: None,
            norm_embeddings: false,
            output_norm: OutputNorm::Tokens,
            layer_scale: None,
            mlp: MlpKind::Plain,
            pooler: None,
            map_head: None,
            query_pool: None,
            classifier: None,
            num_labels: 0,
            initializer_range: 0.02,
        }
    }
}

/// The learned tokens before the patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefixTokens {
    /// None (SigLIP).
    None,
    /// The class token.
    Class,
    /// The class token and DeiT's distillation token.
    ClassAndDistillation,
    /// The class token and registers (Darcet et al. 2023, arXiv 2309.16588).
    ClassAndRegisters(usize),
}

impl PrefixTokens {
    /// How many tokens these are.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::None => 0,
            Self::Class => 1,
            Self::ClassAndDistillation => 2,
            Self::ClassAndRegisters(registers) => 1 + registers,
        }
    }
}

/// Which tokens have a row in the table of learned position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionTable {
    /// All of them.
    #[default]
    All,
    /// All but the registers.
    WithoutRegisters,
    /// The patches alone.
    Patches,
    /// None: there is no table.
    None,
    /// None, but every block adds to its scores what an MLP, as wide inside as said, makes of the way between two patches.
    Relative(usize),
    /// None, but every block adds to its scores biases from a table over the ways between two patches, and to and from the class
    /// token (BEiT).
    RelativeTable,
}

/// Attention pooling with one learned query (SigLIP).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapHeadConfig {
    /// Heads; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
}

/// What the last LayerNorm is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputNorm {
    /// All tokens, so that `last_hidden_state` is normed (ViT, DeiT, DINOv2).
    Tokens,
    /// All tokens, and what pooling picks of them once more (`BlipModel`).
    TokensThenPooled,
    /// What pooling reads, token by token; `last_hidden_state` is not normed (CLIP).
    Pooled,
    /// The pooled row: the mean of tokens that are not normed is (timm's `fc_norm`, open_clip's `final_ln_after_pool`).
    AfterPooling,
}

/// Attention pooling with learned queries (open_clip's `attentional_pool`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryPoolConfig {
    /// Width of its output, which the last LayerNorm has too where it stands behind.
    pub size: usize,
    /// Heads; they divide `size`.
    pub num_attention_heads: usize,
    /// How many queries there are.
    pub num_queries: usize,
    /// Which row is pooled.
    pub row: QueryPoolRow,
}

/// Which row [`ImagePooling::Queries`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryPoolRow {
    /// The first query's answer, then the norm (CoCa as open_clip publishes it).
    First,
    /// The mean of the normed answers but the first.
    MeanWithoutFirst,
    /// The norm, then a query of its own on the tokens (`parallel`). The other queries are for generation and are not read.
    Parallel,
    /// The norm, then a query of its own on the answers of the others (`cascade`).
    Cascade,
}

impl QueryPoolRow {
    /// Whether the last LayerNorm stands behind the pooling.
    pub(crate) fn is_normed_behind(self) -> bool {
        matches!(self, Self::First | Self::MeanWithoutFirst)
    }
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
    /// The mean patch, normed (BEiT).
    Mean,
    /// Class token and mean patch, side by side (DINOv2).
    ClsAndMean,
    /// One classifier on the class token, one on the distillation token, averaged (DeiT with teacher).
    ClsAndDistillation,
}

impl VitConfig {
    fn pre_norm() -> NormPosition {
        NormPosition::Pre
    }

    pub(super) fn blocks(&self) -> BlockConfig {
        BlockConfig {
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
            norm: self.norm,
            mlp: self.mlp,
            qkv_bias: self.qkv_bias,
            extras: self.extras.clone(),
            layer_scale: self.layer_scale,
            initializer_range: self.initializer_range as f32,
        }
    }

    /// How many of the prefix tokens have a row in the position table.
    pub(super) fn positioned_prefix(&self) -> usize {
        match (self.positions, self.prefix_tokens) {
            (
                PositionTable::Patches
                | PositionTable::None
                | PositionTable::Relative(_)
                | PositionTable::RelativeTable,
                _,
            ) => 0,
            (PositionTable::WithoutRegisters, PrefixTokens::ClassAndRegisters(_)) => 1,
            (PositionTable::All | PositionTable::WithoutRegisters, prefix) => prefix.count(),
        }
    }

    /// Width of the pooled output.
    #[must_use]
    pub fn pooled_size(&self, pooling: ImagePooling) -> usize {
        match pooling {
            ImagePooling::Cls | ImagePooling::Mean | ImagePooling::Map => self.hidden_size,
            ImagePooling::Pooler => self.pooler.map_or(self.hidden_size, |p| p.size),
            ImagePooling::Queries => self.query_pool.map_or(self.hidden_size, |pool| pool.size),
            ImagePooling::Logits => self.num_labels,
        }
    }

    /// Width of the last LayerNorm.
    pub(super) fn output_norm_size(&self) -> usize {
        match self.query_pool {
            Some(pool) if pool.row.is_normed_behind() => pool.size,
            _ => self.hidden_size,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
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
        self.stem.check(self.patch_size)?;
        if let Some(rope) = self.rope {
            rope.check(self.hidden_size / self.num_attention_heads)?;
        }
        if let PositionTable::Relative(size) = self.positions {
            check_sizes(self.hidden_size, self.num_attention_heads, self.layer_norm_eps, &[("relative", size)])?;
        }
        if let Some(head) = self.map_head {
            let sizes = [("intermediate_size", head.intermediate_size)];
            check_sizes(self.hidden_size, head.num_attention_heads, self.layer_norm_eps, &sizes)?;
        }
        if let Some(pool) = self.query_pool {
            let sizes = [("attn_pooler_queries", pool.num_queries)];
            check_sizes(pool.size, pool.num_attention_heads, self.layer_norm_eps, &sizes)?;
            if !pool.row.is_normed_behind() && pool.size != self.hidden_size {
                let message = format!("the norm before it is {} wide, the tokens {}", pool.size, self.hidden_size);
                return Err(Error::argument("attentional_pool", message));
            }
        }
        Ok(())
    }
}
