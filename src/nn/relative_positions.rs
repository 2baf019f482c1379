//! Biases on attention's scores that depend on the way from query to key on a grid.

use candle_core::Tensor;

use super::Linear;
use crate::ops::Activation;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// What is added to the scores of each pair of tokens, one bias a head.
///
/// Either a small MLP from the way between two patches to the biases: `fc2(relu(fc1(±ln(1 + |Δ|))))` with Δ in rows and columns
/// (Liu et al. 2021, arXiv 2111.09883, section 3.3; reference: `RelPosMlp` of timm in its mode `cr`). Tokens before the patches
/// have no bias. Or a table with a row for each way, and three more where the class token is the query, the key, or both (BEiT:
/// Bao et al. 2021, arXiv 2106.08254; reference: `BeitRelativePositionBias` of transformers).
#[derive(Debug, Clone)]
pub struct RelativePositions {
    biases: Biases,
    num_heads: usize,
}

#[derive(Debug, Clone)]
enum Biases {
    Mlp(Linear, Linear),
    Table(Tensor),
}

impl RelativePositions {
    /// Reads `fc1` (H,2) and `fc2` (heads,H).
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, hidden_size: usize, num_heads: usize, init: Init) -> Result<Self> {
        let fc1 = Linear::new(&params.pp("fc1"), 2, hidden_size, init)?;
        let fc2 = Linear::new(&params.pp("fc2"), hidden_size, num_heads, init)?;
        Ok(Self { biases: Biases::Mlp(fc1, fc2), num_heads })
    }

    /// Reads `table` (ways + 3, heads) for a class token before a grid of patches.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn table(params: &Params, grid: (usize, usize), num_heads: usize, init: Init) -> Result<Self> {
        let table = params.get("table", &[way_count(grid) + 3, num_heads], init)?;
        Ok(Self { biases: Biases::Table(table), num_heads })
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
        let (fc1, fc2) = match &self.biases {
            Biases::Mlp(fc1, fc2) => (fc1, fc2),
            Biases::Table(table) => return table_biases(table, grid, prefix),
        };
        let ways = Tensor::from_vec(log_ways(grid), (way_count(grid), 2), like.device())?.to_dtype(like.dtype())?;
        let table = fc2.forward(&fc1.forward_activated(&ways, Activation::Relu)?)?;
        let patches = pair_biases(&table, grid)?;
        Ok(patches.pad_with_zeros(1, prefix, 0)?.pad_with_zeros(2, prefix, 0)?.contiguous()?)
    }

    /// Heads that there are biases for.
    #[must_use]
    pub fn num_heads(&self) -> usize {
        self.num_heads
    }
}

/// The biases of a table whose last three rows are the class token's: as query, as key, with itself.
fn table_biases(table: &Tensor, grid: (usize, usize), prefix: usize) -> Result<Tensor> {
    let (rows, heads) = table.dims2()?;
    let (ways, count) = (way_count(grid), grid.0 * grid.1);
    if rows != ways + 3 || prefix != 1 {
        let message = format!(
            "a table of {rows} rows, expected {} for a grid of {}×{} behind a class token; tables are not resized",
            ways + 3,
            grid.0,
            grid.1
        );
        return Err(Error::argument("relative positions", message));
    }
    let of_class = |row: usize, shape: (usize, usize, usize)| -> Result<Tensor> {
        Ok(table.narrow(0, row, 1)?.reshape((heads, 1, 1))?.broadcast_as(shape)?.contiguous()?)
    };
    let patches = pair_biases(&table.narrow(0, 0, ways)?, grid)?;
    let first = Tensor::cat(&[of_class(ways + 2, (heads, 1, 1))?, of_class(ways, (heads, 1, count))?], 2)?;
    let others = Tensor::cat(&[of_class(ways + 1, (heads, count, 1))?, patches], 2)?;
    Ok(Tensor::cat(&[first, others], 1)?)
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
