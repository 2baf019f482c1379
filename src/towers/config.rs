//! Which tower a model has, as its configuration file says it.

use serde::{Deserialize, Serialize};

use super::{
    BertConfig, BuildImageTower, BuildTextTower, ConvNextConfig, FastVitConfig, ImagePooling, ImageTower, M2m100Config,
    ModernBertConfig, NaflexVitConfig, ResNetConfig, SwinConfig, T5Config, TextPooling, TextTower,
    TextTransformerConfig, VitConfig,
};
use crate::Result;
use crate::weights::Params;

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
    Naflex(NaflexVitConfig),
    /// Swin, whose attention stays inside of windows.
    Swin(SwinConfig),
}

impl ImageTowerConfig {
    fn tower(&self) -> &dyn BuildImageTower {
        match self {
            Self::Vit(config) => config,
            Self::ResNet(config) => config,
            Self::ConvNext(config) => config,
            Self::FastVit(config) => config,
            Self::Naflex(config) => config,
            Self::Swin(config) => config,
        }
    }

    /// Builds the tower from `params`.
    ///
    /// # Errors
    /// When sizes are impossible or the tower cannot be pooled so.
    pub fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>> {
        self.tower().build(params, pooling)
    }

    /// Width of the pooled output.
    #[must_use]
    pub fn pooled_size(&self, pooling: ImagePooling) -> usize {
        self.tower().pooled_size(pooling)
    }

    /// Side of the square input in pixels that the position embeddings (or the tower, if it has none) are made for; of a NaFlex
    /// tower, of the square image whose patches its table fits.
    #[must_use]
    pub fn image_size(&self) -> usize {
        self.tower().image_size()
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
    fn tower(&self) -> &dyn BuildTextTower {
        match self {
            Self::Bert(config) => config,
            Self::ModernBert(config) => config,
            Self::T5(config) => config,
            Self::M2m100(config) => config,
            Self::TextTransformer(config) => config,
        }
    }

    /// Builds the tower from `params`.
    ///
    /// # Errors
    /// When sizes are impossible or the tower cannot be pooled so.
    pub fn build(&self, params: &Params, pooling: TextPooling) -> Result<Box<dyn TextTower>> {
        self.tower().build(params, pooling)
    }

    /// Width of the pooled output.
    #[must_use]
    pub fn pooled_size(&self) -> usize {
        self.tower().pooled_size()
    }

    /// Entries of the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.tower().vocab_size()
    }

    /// Whether the pooled output depends on padding: then rows must be padded as in training, to the context length.
    #[must_use]
    pub fn reads_padding(&self, pooling: TextPooling) -> bool {
        self.tower().reads_padding(pooling)
    }

    /// The longest text the tower takes, in tokens.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.tower().context_length()
    }
}
