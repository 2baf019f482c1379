//! The mathematics: one file per tower. Towers know shapes and parameters, never file names (see [`families`](crate::families)).

mod bert;
mod bert_cross;
mod convnext;
mod fastvit;
mod m2m100;
mod modernbert;
mod pooling;
mod relative;
mod resnet;
mod swin;
mod t5;
mod text_transformer;
mod vit;

pub use bert::{BertConfig, BertHead, Positions};
pub use bert_cross::CrossBert;
pub use convnext::{ConvNextConfig, ConvNextStageConfig};
pub use fastvit::{AttentionNorm, BranchForm, Downsample, FastVitConfig, FastVitStageConfig, TokenMixer};
pub use m2m100::M2m100Config;
pub use modernbert::{BiasedLayers, ModernBertConfig, Sight};
pub use relative::RelativePositions;
pub use resnet::ResNetConfig;
pub use swin::{SwinConfig, SwinStageConfig};
pub use t5::T5Config;
pub use text_transformer::{PooledToken, TextAttention, TextTransformerConfig};
pub use vit::{
    ClassifierInput, MapHeadConfig, OutputNorm, PatchStem, Pooler, PositionTable, PrefixTokens, QueryPoolConfig,
    QueryPoolRow, VitConfig,
};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::image::NaflexBatch;
use crate::text::TokenBatch;
use crate::weights::Params;
use crate::{Error, Result};

/// Whether a forward pass keeps the hidden states of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collect {
    /// Only the last hidden state and the pooled output.
    Last,
    /// The embeddings' output and every block's output too.
    HiddenStates,
}

/// What a tower computes for a batch.
#[derive(Debug, Clone)]
pub struct TowerOutput {
    /// The tokens after the last layer, as the reference library returns them (B,L,E).
    pub last_hidden_state: Tensor,
    /// One row an item (B,E); (B, labels) where the pooling is the classifier's logits.
    pub pooled: Tensor,
    /// The embeddings' output, then each block's output (layers + 1 of them, each (B,L,E)); of a convolutional tower the stem's
    /// and each stage's map, whose sizes differ. Empty unless asked for.
    pub hidden_states: Vec<Tensor>,
}

/// An image tower: pixels to one row an image.
pub trait ImageTower: Send + Sync {
    /// The pooled output alone, which may skip work that it does not read.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor>;

    /// Token-level and pooled outputs.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn forward(&self, pixel_values: &Tensor, collect: Collect) -> Result<TowerOutput>;

    /// [`ImageTower::forward`] of images that keep their proportions; towers that are not NaFlex refuse.
    ///
    /// # Shapes
    /// N patches an image, padding included → `last_hidden_state` (B,N,E).
    ///
    /// # Errors
    /// When the tower takes pixel values alone, or shapes do not fit.
    fn forward_patches(&self, batch: &NaflexBatch, collect: Collect) -> Result<TowerOutput> {
        let _ = (batch, collect);
        Err(Error::argument("patches", "this tower takes pixel_values (B,C,H,W); only NaFlex towers take patches"))
    }
}

/// A text tower: tokens to one row a text.
pub trait TextTower: Send + Sync {
    /// The pooled output alone, which may skip work that it does not read.
    ///
    /// # Shapes
    /// `tokens` (B,L) → (B,E).
    ///
    /// # Errors
    /// When an id is outside of the vocabulary or a text is longer than the tower's positions.
    fn pooled(&self, tokens: &TokenBatch) -> Result<Tensor>;

    /// Token-level and pooled outputs.
    ///
    /// # Errors
    /// As [`TextTower::pooled`].
    fn forward(&self, tokens: &TokenBatch, collect: Collect) -> Result<TowerOutput>;
}

/// How an image tower's tokens become one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImagePooling {
    /// The normed class token.
    Cls,
    /// The mean of the normed patch tokens (class and distillation tokens left out).
    Mean,
    /// `tanh(dense(CLS))`, where the checkpoint has a pooler.
    Pooler,
    /// Attention pooling with one learned query, where the checkpoint has it (SigLIP).
    Map,
    /// Attention pooling with learned queries, where the checkpoint has it (open_clip's CoCa).
    Queries,
    /// The classifier's logits, as in the origin, where an ImageNet ViT gives 1000 numbers.
    Logits,
}

/// How a text tower's tokens become one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextPooling {
    /// The mean over the tokens that are no padding.
    Mean,
    /// The first token.
    Cls,
    /// `tanh(dense(CLS))`, where the checkpoint has a pooler.
    Pooler,
    /// CLIP's: the end-of-text token.
    Eos,
    /// The largest value of each column over the tokens that are no padding.
    Max,
    /// The last token that is no padding.
    LastToken,
    /// The last position of the row, padding or not (SigLIP).
    Last,
}

macro_rules! pooling_names {
    ($type:ident, $($name:literal => $variant:ident),+) => {
        impl std::str::FromStr for $type {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(Error::unsupported("pooling", "value", name, [$($name),+].join(", "))),
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),+ })
            }
        }
    };
}
pooling_names!(
    ImagePooling, "cls" => Cls, "mean" => Mean, "pooler" => Pooler, "map" => Map, "queries" => Queries, "logits" => Logits
);
pooling_names!(
    TextPooling, "mean" => Mean, "cls" => Cls, "pooler" => Pooler, "eos" => Eos, "last" => Last, "max" => Max,
    "lasttoken" => LastToken
);

/// An image tower's configuration: which one, and its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tower", rename_all = "snake_case")]
// There is one of them a model.
#[allow(clippy::large_enum_variant)]
#[non_exhaustive]
pub enum ImageTowerConfig {
    /// Vision transformer: ViT, DeiT, DINOv2, CLIP's.
    Vit(VitConfig),
    /// CLIP's ResNet, whose pooler is attention.
    #[serde(rename = "resnet")]
    ResNet(ResNetConfig),
    /// ConvNeXt; its mean is normed after pooling.
    #[serde(rename = "convnext")]
    ConvNext(ConvNextConfig),
    /// FastViT, of MobileCLIP.
    #[serde(rename = "fastvit")]
    FastVit(FastVitConfig),
    /// Vision transformer over images that keep their proportions: SigLIP 2's NaFlex.
    Naflex(VitConfig),
    /// Swin, whose attention stays inside of windows.
    Swin(SwinConfig),
}

impl ImageTowerConfig {
    /// Builds the tower from `params`.
    ///
    /// # Errors
    /// When sizes are impossible or the tower cannot be pooled so.
    pub fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>> {
        match self {
            Self::Vit(config) => Ok(Box::new(vit::Vit::new(params, config, pooling)?)),
            Self::ResNet(config) => Ok(Box::new(resnet::ResNet::new(params, config, pooling)?)),
            Self::ConvNext(config) => Ok(Box::new(convnext::ConvNext::new(params, config, pooling)?)),
            Self::FastVit(config) => Ok(Box::new(fastvit::FastVit::new(params, config, pooling)?)),
            Self::Naflex(config) => Ok(Box::new(vit::Naflex::new(params, config, pooling)?)),
            Self::Swin(config) => Ok(Box::new(swin::Swin::new(params, config, pooling)?)),
        }
    }

    /// Width of the pooled output.
    #[must_use]
    pub fn pooled_size(&self, pooling: ImagePooling) -> usize {
        match self {
            Self::Vit(config) | Self::Naflex(config) => config.pooled_size(pooling),
            Self::ResNet(config) => config.output_size,
            Self::ConvNext(config) => config.hidden_size(),
            Self::FastVit(config) => config.output_size,
            Self::Swin(config) => config.pooled_size(),
        }
    }

    /// Side of the square input in pixels that the position embeddings (or the tower, if it has none) are made for; of a NaFlex
    /// tower, of the square image whose patches its table fits.
    #[must_use]
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(config) | Self::Naflex(config) => config.image_size,
            Self::ResNet(config) => config.image_size,
            Self::ConvNext(config) => config.image_size,
            Self::FastVit(config) => config.image_size,
            Self::Swin(config) => config.image_size,
        }
    }
}

/// A text tower's configuration: which one, and its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tower", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextTowerConfig {
    /// BERT, RoBERTa, XLM-RoBERTa, DistilBERT, MPNet.
    Bert(BertConfig),
    /// ModernBERT.
    ModernBert(ModernBertConfig),
    /// The encoder half of T5 and mT5.
    T5(T5Config),
    /// The encoder half of M2M100 and NLLB.
    M2m100(M2m100Config),
    /// CLIP's text transformer.
    TextTransformer(TextTransformerConfig),
}

impl TextTowerConfig {
    /// Builds the tower from `params`.
    ///
    /// # Errors
    /// When sizes are impossible or the tower cannot be pooled so.
    pub fn build(&self, params: &Params, pooling: TextPooling) -> Result<Box<dyn TextTower>> {
        match self {
            Self::Bert(config) => Ok(Box::new(bert::Bert::new(params, config, pooling)?)),
            Self::ModernBert(config) => Ok(Box::new(modernbert::ModernBert::new(params, config, pooling)?)),
            Self::T5(config) => Ok(Box::new(t5::T5::new(params, config, pooling)?)),
            Self::M2m100(config) => Ok(Box::new(m2m100::M2m100::new(params, config, pooling)?)),
            Self::TextTransformer(config) => {
                Ok(Box::new(text_transformer::TextTransformer::new(params, config, pooling)?))
            }
        }
    }

    /// Width of the pooled output.
    #[must_use]
    pub fn pooled_size(&self) -> usize {
        match self {
            Self::Bert(config) => config.output_size(),
            Self::ModernBert(config) => config.hidden_size,
            Self::T5(config) => config.hidden_size,
            Self::M2m100(config) => config.hidden_size,
            Self::TextTransformer(config) => config.head_size.unwrap_or(config.hidden_size),
        }
    }

    /// Entries of the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bert(config) => config.vocab_size,
            Self::ModernBert(config) => config.vocab_size,
            Self::T5(config) => config.vocab_size,
            Self::M2m100(config) => config.vocab_size,
            Self::TextTransformer(config) => config.vocab_size,
        }
    }

    /// Whether the pooled output depends on padding: then rows must be padded as in training, to the context length.
    #[must_use]
    pub fn reads_padding(&self, pooling: TextPooling) -> bool {
        match self {
            Self::Bert(_) | Self::ModernBert(_) | Self::T5(_) | Self::M2m100(_) => false,
            Self::TextTransformer(config) => {
                config.attention == TextAttention::Full || config.has_class_token() || pooling == TextPooling::Last
            }
        }
    }

    /// The longest text the tower takes, in tokens.
    #[must_use]
    pub fn context_length(&self) -> usize {
        match self {
            Self::Bert(config) => config.context_length(),
            Self::ModernBert(config) => config.max_position_embeddings,
            Self::T5(config) => config.context_length,
            Self::M2m100(config) => config.max_position_embeddings,
            Self::TextTransformer(config) => config.context_length,
        }
    }
}

/// Refuses sizes that no tower can have, before they divide by zero or ask for the memory of the world.
fn check_sizes(hidden_size: usize, heads: usize, eps: f64, sizes: &[(&'static str, usize)]) -> Result<()> {
    for &(name, size) in sizes.iter().chain(&[("hidden_size", hidden_size), ("num_attention_heads", heads)]) {
        let largest = if name == "num_hidden_layers" { 1 << 10 } else { 1 << 24 };
        if size == 0 || size > largest {
            return Err(Error::argument(name, format!("{size} is not between 1 and {largest}")));
        }
    }
    if !(eps > 0.0 && eps < 1.0) {
        return Err(Error::argument("layer_norm_eps", format!("{eps} is not between 0 and 1")));
    }
    if !hidden_size.is_multiple_of(heads) {
        let message = format!("{heads} heads do not divide hidden_size {hidden_size}");
        return Err(Error::argument("num_attention_heads", message));
    }
    Ok(())
}

/// Refuses a stage without blocks, or with more than any tower has.
fn check_depth(depth: usize) -> Result<()> {
    const DEEPEST: usize = 1 << 10;
    if (1..=DEEPEST).contains(&depth) {
        return Ok(());
    }
    Err(Error::argument("depth", format!("{depth} blocks in a stage are not between 1 and {DEEPEST}")))
}

/// Keeps a feature map (B,H,W,C) among the hidden states, as tokens (B,H·W,C), if they were asked for.
fn keep_map(states: &mut Option<&mut Vec<Tensor>>, map: &Tensor) -> Result<()> {
    if let Some(states) = states {
        states.push(crate::nn::map_tokens(map)?);
    }
    Ok(())
}
