//! How tokens become one row: the choices of images and texts, and those of a text that every tower has: mean, maximum, first
//! or last token, padding left out.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::text::TokenBatch;
use crate::{Error, Result, ops};

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

/// Pools tokens. [`TextPooling::Pooler`] takes the first token here; its dense layer is the tower's.
///
/// # Shapes
/// `x` (B,L,E) with `tokens` (B,L) → (B,E).
pub(super) fn pool_text(x: &Tensor, tokens: &TokenBatch, pooling: TextPooling) -> Result<Tensor> {
    match (pooling, pooled_positions(tokens, pooling)?) {
        (TextPooling::Mean, _) => ops::mean_pool(x, &tokens.keep()),
        (_, Some(positions)) => ops::select_tokens(x, &positions),
        (_, None) => max_pool(x, tokens),
    }
}

/// The token that is pooled in each row, where it is one token.
pub(super) fn pooled_positions(tokens: &TokenBatch, pooling: TextPooling) -> Result<Option<Vec<usize>>> {
    match pooling {
        TextPooling::Mean | TextPooling::Max => Ok(None),
        TextPooling::Cls | TextPooling::Pooler => Ok(Some(vec![0; tokens.batch()])),
        TextPooling::LastToken => {
            let keep = tokens.keep();
            let last = |row: &[bool]| row.iter().rposition(|&keep| keep).unwrap_or(0);
            Ok(Some(keep.chunks(tokens.length().max(1)).map(last).collect()))
        }
        other => Err(refused(other)),
    }
}

/// Refuses a pooling that a tower without pooler and without an end-of-text rule does not have.
pub(super) fn check_pooling(pooling: TextPooling) -> Result<()> {
    match pooling {
        TextPooling::Mean | TextPooling::Max | TextPooling::Cls | TextPooling::LastToken => Ok(()),
        other => Err(refused(other)),
    }
}

fn refused(pooling: TextPooling) -> Error {
    Error::argument("text pooling", format!("the checkpoint has no {pooling} pooling; use mean, max, cls or lasttoken"))
}

/// The largest value of each column over the tokens that are no padding.
fn max_pool(x: &Tensor, tokens: &TokenBatch) -> Result<Tensor> {
    let hidden: Vec<f32> = tokens.keep().iter().map(|&keep| if keep { 0.0 } else { -1e4 }).collect();
    let hidden = Tensor::from_vec(hidden, (tokens.batch(), tokens.length(), 1), x.device())?;
    // Half precision cannot hold more than 65504; no tower's tokens come near 1e4.
    let seen = x.to_dtype(DType::F32)?.broadcast_add(&hidden)?;
    Ok(seen.max(1)?.to_dtype(x.dtype())?)
}
