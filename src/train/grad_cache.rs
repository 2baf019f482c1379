//! The gradient cache: the gradients of a large batch in the memory of a small one (GradCache, Gao et al. 2021, arXiv 2101.06983,
//! section 3), and the adding up of gradients.
//!
//! A contrastive loss needs all embeddings of a batch at once, but not all activations:
//! 1. embed the batch chunk by chunk and forget the activations;
//! 2. work out the loss of all embeddings, and its gradient gᵢ by each;
//! 3. embed each chunk again, and go back through it from ⟨gᵢ, embeddingᵢ⟩.
//!
//! The gradients are those of the whole batch but for the rounding of their sum. It costs one more forward pass.

use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::{Error, Result};

/// One side of a batch: how many rows, and how some of them are embedded.
pub struct CachedSide<'a> {
    /// How many rows B there are.
    pub rows: usize,
    /// The embeddings (or features) of some rows, with their graph. It is called twice for each chunk and must give the same.
    pub encode: &'a dyn Fn(Range<usize>) -> Result<Tensor>,
}

impl CachedSide<'_> {
    fn chunks(&self, chunk: usize) -> impl Iterator<Item = Range<usize>> {
        let rows = self.rows;
        (0..rows).step_by(chunk).map(move |start| start..rows.min(start + chunk))
    }

    /// All rows without a graph, as a variable that a loss has gradients by.
    fn leaf(&self, chunk: usize) -> Result<Var> {
        let parts = self.chunks(chunk).map(|rows| Ok((self.encode)(rows)?.detach())).collect::<Result<Vec<_>>>()?;
        Ok(Var::from_tensor(&Tensor::cat(&parts, 0)?)?)
    }
}

/// The loss of a batch, and its gradients by `trainable`, with the activations of `chunk` rows of one side in memory at a time.
///
/// `loss` takes the rows of both sides and may depend on trainable parameters itself (the logit scale).
///
/// # Shapes
/// `images` and `texts` of B and M rows; `loss` maps (B,D) and (M,D) to ().
///
/// # Errors
/// When `chunk` is 0 or there are no rows, and whatever `encode` and `loss` fail with.
pub fn cached_backward(
    images: &CachedSide<'_>,
    texts: &CachedSide<'_>,
    chunk: usize,
    trainable: &[(String, Var)],
    loss: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<(Tensor, GradStore)> {
    if chunk == 0 || images.rows == 0 || texts.rows == 0 {
        let message =
            format!("{chunk} rows at a time, of {} images and {} texts; all must be above 0", images.rows, texts.rows);
        return Err(Error::argument("chunk", message));
    }
    let leaves = [images.leaf(chunk)?, texts.leaf(chunk)?];
    let value = loss(&leaves[0], &leaves[1])?;
    let grads = value.backward()?;
    let mut sum = GradientSum::new(trainable);
    sum.add(&grads, 1.0)?;
    for (side, leaf) in [images, texts].into_iter().zip(&leaves) {
        let missing = || Error::argument("loss", "does not depend on the embeddings");
        let of_rows = grads.get(leaf).ok_or_else(missing)?.detach();
        for rows in side.chunks(chunk) {
            let part = of_rows.narrow(0, rows.start, rows.len())?;
            let embeds = (side.encode)(rows)?;
            if crate::ops::is_tracked(&embeds) {
                sum.add(&(embeds * part)?.sum_all()?.backward()?, 1.0)?;
            }
        }
    }
    Ok((value.detach(), sum.finish()))
}

/// Gradients of several backward passes, added up; only those of the parameters are kept.
pub struct GradientSum<'a> {
    trainable: &'a [(String, Var)],
    sums: Vec<Option<Tensor>>,
}

impl<'a> GradientSum<'a> {
    /// Nothing yet.
    #[must_use]
    pub fn new(trainable: &'a [(String, Var)]) -> Self {
        Self { trainable, sums: vec![None; trainable.len()] }
    }

    /// Adds `factor` times the gradients of `grads`.
    ///
    /// # Errors
    /// When candle fails.
    pub fn add(&mut self, grads: &GradStore, factor: f64) -> Result<()> {
        for ((_, var), sum) in self.trainable.iter().zip(&mut self.sums) {
            let Some(grad) = grads.get(var) else { continue };
            let grad = if factor == 1.0 { grad.detach() } else { (grad.detach() * factor)? };
            *sum = Some(match sum.take() {
                Some(sum) => (sum + grad)?,
                None => grad,
            });
        }
        Ok(())
    }

    /// The sums, as candle's optimisers take them.
    #[must_use]
    pub fn finish(self) -> GradStore {
        let mut store = GradStore::default();
        for ((_, var), sum) in self.trainable.iter().zip(self.sums) {
            if let Some(sum) = sum {
                store.insert(var, sum);
            }
        }
        store
    }
}
