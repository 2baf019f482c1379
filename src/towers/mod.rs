//! The mathematics: one file per tower. Towers know shapes and parameters, never file names (see [`families`](crate::families)).
//!
//! A new tower is a file of its own, whose configuration implements `BuildImageTower` or `BuildTextTower`, and a variant of
//! [`ImageTowerConfig`] or [`TextTowerConfig`].

mod bert;
mod bert_cross;
mod check;
mod config;
mod convnext;
mod fastvit;
mod m2m100;
mod maps;
mod modernbert;
mod patch_dropout;
mod pooling;
mod relative;
mod resnet;
mod swin;
mod t5;
mod text_transformer;
mod vit;

pub use bert::{BertConfig, BertHead, Positions};
pub use bert_cross::CrossBert;
pub use config::{ImageTowerConfig, TextTowerConfig};
pub use convnext::{ConvNextConfig, ConvNextStageConfig};
pub use fastvit::{AttentionNorm, BranchForm, Downsample, FastVitConfig, FastVitStageConfig, TokenMixer};
pub use m2m100::M2m100Config;
pub use modernbert::{BiasedLayers, ModernBertConfig, Sight};
pub use patch_dropout::PatchDropout;
pub use pooling::{ImagePooling, TextPooling};
pub use relative::RelativePositions;
pub use resnet::ResNetConfig;
pub use swin::{SwinConfig, SwinStageConfig};
pub use t5::T5Config;
pub use text_transformer::{PooledToken, TextAttention, TextTransformerConfig};
pub use vit::{
    ClassifierInput, MapHeadConfig, NaflexVitConfig, OutputNorm, PatchStem, Pooler, PositionTable, PrefixTokens,
    QueryPoolConfig, QueryPoolRow, VitConfig,
};

use candle_core::Tensor;

use check::{check_depth, check_sizes};

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

/// Where a vision transformer's patches are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchDepth {
    /// Behind two thirds of the blocks, not normed: the rest is for what the whole image shows.
    TwoThirds,
    /// Behind the last norm.
    Last,
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

    /// [`ImageTower::pooled`] of some of the patches, in training; towers without patches refuse.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,E).
    ///
    /// # Errors
    /// When the tower's patches cannot be dropped, or shapes do not fit.
    fn pooled_of_some(&self, pixel_values: &Tensor, patches: &PatchDropout) -> Result<Tensor> {
        let _ = (pixel_values, patches);
        let message = "this tower's patches cannot be dropped; only vision transformers with absolute positions can do without some";
        Err(Error::argument("patch_keep", message))
    }

    /// [`ImageTower::pooled`], of some of the patches where `patches` says which, and the tokens of these patches at `depth`; towers
    /// without patches refuse.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,E) and (B,K,E′).
    ///
    /// # Errors
    /// When the tower has no patches or they cannot be dropped, or shapes do not fit.
    fn pooled_and_patches(
        &self,
        pixel_values: &Tensor,
        patches: Option<&PatchDropout>,
        depth: PatchDepth,
    ) -> Result<(Tensor, Tensor)> {
        let _ = (pixel_values, patches, depth);
        Err(Error::argument("patches", "this tower's patches cannot be compared; only a vision transformer's can"))
    }

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

/// What an image tower's configuration knows of it. [`ImageTowerConfig`] hands on to it; its methods say more.
trait BuildImageTower {
    fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>>;

    fn pooled_size(&self, pooling: ImagePooling) -> usize;

    fn image_size(&self) -> usize;
}

/// What a text tower's configuration knows of it. [`TextTowerConfig`] hands on to it; its methods say more.
trait BuildTextTower {
    fn build(&self, params: &Params, pooling: TextPooling) -> Result<Box<dyn TextTower>>;

    fn pooled_size(&self) -> usize;

    fn vocab_size(&self) -> usize;

    fn context_length(&self) -> usize;

    fn reads_padding(&self, _pooling: TextPooling) -> bool {
        false
    }
}
