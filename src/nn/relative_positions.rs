//! Biases on attention's scores that depend on the way from query to key on a grid.

use candle_core::Tensor;

use super::Linear;
use crate::ops::Activation;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// A small MLP from the way between two patches to one bias a head: `fc2(relu(fc1(±ln(1 + |Δ|))))` with Δ in rows and columns
/// (Liu et al. 2021, arXiv 2111.09883, section 3.3; reference: `RelPosMlp` of timm in its mode `cr`). Tokens before the patches
/// have no bias.
#[derive(Debug, Clone)]
pub struct LogRelativePositions {
    fc1: Linear,
    fc2: Linear,
    num_heads: usize,
}

impl LogRelativePositions {
    /// Reads `fc1` (H,2) and `fc2` (heads,H).
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, hidden_size: usize, num_heads: usize, init: Init) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(&params.pp("fc1"), 2, hidden_size, init)?,
            fc2: Linear::new(&params.pp("fc2"), hidden_size, num_heads, init)?,
            num_heads,
        })
    }

    /// The biases of all pairs of tokens, `prefix` tokens standing before a grid of patches; of the type of `like`, and where
    /// that is.
    ///
    /// # Shapes
    /// (heads, L, L) with L = prefix + rows·columns.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn biases(&self, grid: (usize, usize), prefix: usize, like: &Tensor) -> Result<Tensor> {
        let ways = Tensor::from_vec(log_ways(grid), (way_count(grid), 2), like.device())?.to_dtype(like.dtype())?;
        let table = self.fc2.forward(&self.fc1.forward_activated(&ways, Activation::Relu)?)?;
        let patches = pair_biases(&table, grid)?;
        Ok(patches.pad_with_zeros(1, prefix, 0)?.pad_with_zeros(2, prefix, 0)?.contiguous()?)
    }

    /// Heads that there are biases for.
    #[must_use]
    pub fn num_heads(&self) -> usize {
        self.num_heads
    }
}

/// How many ways there are between two places of a grid.
#[must_use]
pub fn way_count((rows, columns): (usize, usize)) -> usize {
    (2 * rows).saturating_sub(1) * (2 * columns).saturating_sub(1)
}

/// From a row of biases for each way (rows from −(rows−1) to rows−1, in each the columns likewise) to the biases of all pairs
/// of places: query (y,x) and key (y',x') have the way (y−y', x−x').
///
/// # Shapes
/// `table` (ways, heads) → (heads, P, P), P = rows·columns.
///
/// # Errors
/// When the table has another number of ways.
pub fn pair_biases(table: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let (ways, heads) = table.dims2()?;
    if ways != way_count((rows, columns)) {
        let message = format!("{ways} ways for a grid of {rows}×{columns}, which has {}", way_count((rows, columns)));
        return Err(Error::argument("relative positions", message));
    }
    let count = rows * columns;
    let mut index = Vec::with_capacity(count * count);
    for query in 0..count {
        for key in 0..count {
            let down = query / columns + rows - 1 - key / columns;
            let right = query % columns + columns - 1 - key % columns;
            index.push((down * (2 * columns - 1) + right) as u32);
        }
    }
    let index = Tensor::from_vec(index, count * count, table.device())?;
    // One row a head, so that what is looked up lies as attention reads it.
    Ok(table.t()?.contiguous()?.index_select(&index, 1)?.reshape((heads, count, count))?)
}

fn log_ways((rows, columns): (usize, usize)) -> Vec<f32> {
    let log = |way: i64| (way.signum() as f32) * (1.0 + way.unsigned_abs() as f32).ln();
    let reach = |count: usize| {
        let far = count as i64 - 1;
        -far..=far
    };
    reach(rows).flat_map(|down| reach(columns).flat_map(move |right| [log(down), log(right)])).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_pair_has_the_bias_of_its_way() -> Result<()> {
        // 2 × 3 places have 3 × 5 ways.
        let table = Tensor::arange(0f32, 15.0, &Device::Cpu)?.reshape((15, 1))?;
        let biases = pair_biases(&table, (2, 3))?.get(0)?.to_vec2::<f32>()?;
        assert_eq!(biases[0][0], 7.0);
        assert_eq!(biases[0][5], 0.0); // up one row, two columns to the left
        assert_eq!(biases[5][0], 14.0);
        assert_eq!(biases[1][0], 8.0);
        assert!(pair_biases(&table, (3, 3)).is_err());
        Ok(())
    }

    #[test]
    fn gradients_reach_the_table() -> Result<()> {
        let table = Var::ones((9, 2), candle_core::DType::F32, &Device::Cpu)?;
        let grads = pair_biases(&table, (2, 2))?.sum_all()?.backward()?;
        let grad = grads.get(&table).map(|g| g.get(4)?.to_vec1::<f32>()).transpose()?;
        assert_eq!(grad, Some(vec![4.0, 4.0]), "four places stay where they are");
        Ok(())
    }
}
