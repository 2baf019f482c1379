//! Multiplying every row by one row: LayerScale. `y = x · row`, `dx = dy · row`, `drow = Σ dy · x`.

use super::kernel::{Floats, add_product, build_rows, floats, is_native, reduce_rows, tensor};
use super::simd::vectorised;
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};

/// `x · row`, element by element, at every place of the leading dimensions.
///
/// # Shapes
/// x (…,M), row (M) → (…,M); M may stand for several dimensions.
///
/// # Errors
/// When the shape of `row` is not the end of that of `x`, or the dtypes or devices differ.
pub fn scale_row(x: &Tensor, row: &Tensor) -> Result<Tensor> {
    check_row(x, row)?;
    if !is_native(&[x, row]) {
        return Ok(x.broadcast_mul(row)?);
    }
    Ok(x.contiguous()?.apply_op2(&row.contiguous()?, ScaleRow)?)
}

/// The shape of a row must be the end of that of x.
pub(super) fn check_row(x: &Tensor, row: &Tensor) -> Result<()> {
    if row.rank() == 0 || !x.dims().ends_with(row.dims()) {
        return Err(Error::argument(
            "row",
            format!("has shape {:?}, which is not the end of x's shape {:?}", row.dims(), x.dims()),
        ));
    }
    Ok(())
}

vectorised! {
    fn scale<const FMA: bool>(x: &[f32], row: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(row.len()).zip(y.chunks_exact_mut(row.len())) {
            for (y, (&x, &row)) in y.iter_mut().zip(x.iter().zip(row)) {
                *y = x * row;
            }
        }
    }
}

/// All rows of x times the row.
fn scaled(x: &[f32], row: &[f32]) -> Vec<f32> {
    let width = row.len();
    build_rows(x.len() / width.max(1), width, |first, y| {
        scale(&x[first * width..first * width + y.len()], row, y);
    })
}

struct ScaleRow;

impl CustomOp2 for ScaleRow {
    fn name(&self) -> &'static str {
        "scale_row"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, row: &CpuStorage, lr: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(scaled(floats(x, lx)?, floats(row, lr)?)), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        row: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grads = Floats::of(&grad)?;
        let width = row.elem_count();
        let dx = x.track_op().then(|| tensor(scaled(&grads, &Floats::of(row)?), x.shape()));
        let drow = row.track_op().then(|| {
            let xs = Floats::of(x)?;
            let sums = reduce_rows(xs.len() / width.max(1), width, |rows, columns, sums| {
                for row in rows {
                    let range = row * width + columns.start..row * width + columns.end;
                    add_product(sums, &grads[range.clone()], &xs[range]);
                }
            });
            tensor(sums, row.shape())
        });
        Ok((dx.transpose()?, drow.transpose()?))
    }
}
