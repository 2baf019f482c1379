//! [`MatryoshkaLoss`]: a loss at several widths, so that embeddings can be cut short (Kusupati et al. 2022, arXiv 2205.13147,
//! equation 1).
//!
//! `loss = Σ_d w_d · base(normalise(x[..d]), normalise(y[..d]))`: the first d numbers of an embedding, scaled to unit length again,
//! are an embedding of their own; at the full width they are taken as they are. Scale and bias are shared.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Loss;
use super::pairs::Pairs;
use crate::{Error, Result, ops};

/// Any loss at several widths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MatryoshkaLoss {
    /// The loss at each width.
    pub base: Box<Loss>,
    /// The widths d, each with its weight; at most D.
    pub widths: Vec<(usize, f64)>,
}

impl MatryoshkaLoss {
    /// `base` at `widths`, each with weight 1.
    #[must_use]
    pub fn new(base: Loss, widths: &[usize]) -> Self {
        Self { base: Box::new(base), widths: widths.iter().map(|&width| (width, 1.0)).collect() }
    }

    /// The loss of a batch.
    ///
    /// # Shapes
    /// See [`Pairs`] → ().
    ///
    /// # Errors
    /// When there is no width, one is 0 or more than D, or `base` fails.
    pub fn of(&self, pairs: &Pairs<'_>) -> Result<Tensor> {
        pairs.sizes()?;
        let full = pairs.image_embeds.dim(1)?;
        let mut total: Option<Tensor> = None;
        for &(width, weight) in &self.widths {
            if width == 0 || width > full {
                return Err(Error::argument("widths", format!("{width} is not between 1 and the embeddings' {full}")));
            }
            let cut = |rows: &Tensor| -> Result<Tensor> {
                if width == full {
                    Ok(rows.clone())
                } else {
                    ops::l2_normalize(&rows.narrow(1, 0, width)?.contiguous()?)
                }
            };
            let (images, texts) = (cut(pairs.image_embeds)?, cut(pairs.text_embeds)?);
            let loss = (self.base.of(&Pairs { image_embeds: &images, text_embeds: &texts, ..*pairs })? * weight)?;
            total = Some(match total {
                Some(total) => (total + loss)?,
                None => loss,
            });
        }
        total.ok_or_else(|| Error::argument("widths", "is empty; give at least one"))
    }
}
