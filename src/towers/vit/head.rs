//! What stands behind the blocks of a vision transformer: the choice of a row, a pooler, attention pooling, a classifier.

use super::config::{ClassifierInput, PrefixTokens, VitConfig};
use crate::nn::{BlockConfig, Linear, MapHead, MlpKind};
use crate::ops::Activation;
use crate::towers::ImagePooling;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// What comes after the norm.
pub(super) enum Head {
    Cls,
    Mean,
    Map(MapHead),
    Pooler(Linear, Activation),
    Classifier(ClassifierInput, Vec<Linear>),
}

impl Head {
    pub(super) fn new(params: &Params, config: &VitConfig, pooling: ImagePooling, init: Init) -> Result<Self> {
        let size = config.hidden_size;
        match pooling {
            ImagePooling::Cls if config.prefix_tokens == PrefixTokens::None => {
                Err(Error::argument("image pooling", "the tower has no class token; use map or mean"))
            }
            ImagePooling::Cls => Ok(Self::Cls),
            ImagePooling::Mean => Ok(Self::Mean),
            ImagePooling::Map => {
                let head = config.map_head.ok_or_else(|| {
                    Error::argument("image pooling", "the checkpoint has no attention pooling; use cls or mean")
                })?;
                let blocks = BlockConfig {
                    num_attention_heads: head.num_attention_heads,
                    intermediate_size: head.intermediate_size,
                    mlp: MlpKind::Plain,
                    extras: Vec::new(),
                    ..config.blocks()
                };
                Ok(Self::Map(MapHead::new(&params.pp("head"), &blocks)?))
            }
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
    pub(super) fn reads_class_token_only(&self) -> bool {
        matches!(self, Self::Cls | Self::Pooler(..) | Self::Classifier(ClassifierInput::Cls, _))
    }
}
