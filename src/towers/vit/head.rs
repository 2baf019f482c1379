//! What stands behind the blocks of a vision transformer: the choice of a row, a pooler, attention pooling, a classifier.

use candle_core::Tensor;

use super::config::{ClassifierInput, PrefixTokens, QueryPoolRow, VitConfig};
use crate::nn::{AttentionalPool, AttentionalPoolConfig, BlockConfig, LayerNorm, Linear, MapHead, MlpKind, QkvBias};
use crate::ops::{self, Activation};
use crate::towers::ImagePooling;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// What comes after the norm.
pub(super) enum Head {
    Cls,
    Mean,
    Map(MapHead),
    Queries(QueryPool),
    Pooler(Linear, Activation),
    Classifier(ClassifierInput, Vec<Linear>),
}

impl Head {
    pub(super) fn new(params: &Params, config: &VitConfig, pooling: ImagePooling, init: Init) -> Result<Self> {
        let size = config.hidden_size;
        match pooling {
            ImagePooling::Queries => Ok(Self::Queries(QueryPool::new(params, config, init)?)),
            _ if config.output_norm_size() != size => {
                let message = "the checkpoint's last norm fits its attention pooling alone; use queries";
                Err(Error::argument("image pooling", message))
            }
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
                    qkv_bias: QkvBias::All,
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
                    ClassifierInput::Cls | ClassifierInput::Mean => vec![layer("classifier", size)?],
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

/// Attention pooling with learned queries; see [`QueryPoolRow`].
pub(super) struct QueryPool {
    row: QueryPoolRow,
    queries: Option<AttentionalPool>,
    contrastive: Option<AttentionalPool>,
}

impl QueryPool {
    fn new(params: &Params, config: &VitConfig, init: Init) -> Result<Self> {
        let pool = config.query_pool.ok_or_else(|| {
            Error::argument("image pooling", "the checkpoint has no attention pooling with queries; use cls or mean")
        })?;
        let make = |name: &str, num_queries: usize| {
            let config = AttentionalPoolConfig {
                size: pool.size,
                key_size: config.hidden_size,
                num_attention_heads: pool.num_attention_heads,
                num_queries,
                init,
            };
            AttentionalPool::new(&params.pp(name), &config)
        };
        let (queries, contrastive) = match pool.row {
            QueryPoolRow::First | QueryPoolRow::MeanWithoutFirst => (true, false),
            QueryPoolRow::Parallel => (false, true),
            QueryPoolRow::Cascade => (true, true),
        };
        Ok(Self {
            row: pool.row,
            queries: queries.then(|| make("attention_pool", pool.num_queries)).transpose()?,
            contrastive: contrastive.then(|| make("contrastive_pool", 1)).transpose()?,
        })
    }

    /// # Shapes
    /// `tokens` (B,L,E), not normed → (B,D).
    pub(super) fn forward(&self, tokens: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        let pool = |pool: &Option<AttentionalPool>, tokens: &Tensor| match pool {
            Some(pool) => pool.forward(tokens),
            None => Ok(tokens.clone()),
        };
        match (self.row, &self.queries) {
            // No query sees another, so that the others' answers need not be worked out.
            (QueryPoolRow::First, Some(queries)) => norm.forward(&queries.forward_first(tokens)?),
            (QueryPoolRow::MeanWithoutFirst, _) => {
                let answers = norm.forward(&pool(&self.queries, tokens)?)?;
                let (batch, count, _) = answers.dims3()?;
                let keep: Vec<bool> = (0..batch * count).map(|i| i % count > 0).collect();
                ops::mean_pool(&answers, &keep)
            }
            _ => {
                let answers = pool(&self.queries, &norm.forward(tokens)?)?;
                Ok(pool(&self.contrastive, &answers)?.squeeze(1)?)
            }
        }
    }
}
