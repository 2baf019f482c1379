//! Adding one row to every row: biases, position embeddings. `y = x + row`, `drow = Σ dy`.

use super::kernel::{Floats, build_rows, column_sums, floats, is_native, tensor};
use super::scale_row::check_row;
use super::simd::vectorised;
use crate::Result;
use candle_core::{CpuStorage, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};

/// `x + row`, with `row` added at every place of the leading dimensions.
///
/// # Shapes
/// x (…,M), row (M) → (…,M); M may stand for several dimensions: position embeddings (L,E) added to (B,L,E).
///
/// # Errors
/// When the shape of `row` is not the end of that of `x`, or the dtypes or devices differ.
pub fn add_row(x: &Tensor, row: &Tensor) -> Result<Tensor> {
    check_row(x, row)?;
    if !is_native(&[x, row]) {
        return Ok(x.broadcast_add(row)?);
    }
    Ok(x.contiguous()?.apply_op2(&row.contiguous()?, AddRow)?)
}

vectorised! {
    fn add<const FMA: bool>(x: &[f32], row: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(row.len()).zip(y.chunks_exact_mut(row.len())) {
            for (y, (&x, &row)) in y.iter_mut().zip(x.iter().zip(row)) {
                *y = x + row;
            }
        }
    }
}

struct AddRow;

impl CustomOp2 for AddRow {
    fn name(&self) -> &'static str {
        "add_row"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, row: &CpuStorage, lr: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (x, row) = (floats(x, lx)?, floats(row, lr)?);
        let width = row.len();
        let y = build_rows(x.len() / width.max(1), width, |first, y| {
            add(&x[first * width..first * width + y.len()], row, y);
        });
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        row: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let drow = row.track_op().then(|| {
            let grad = grad.contiguous()?;
            tensor(column_sums(&Floats::of(&grad)?, row.elem_count()), row.shape())
        });
        Ok((x.track_op().then(|| grad.clone()), drow.transpose()?))
    }
}
