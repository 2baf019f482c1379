//! One token of every row: the class token, the end of a text.

use super::kernel::{Floats, build_rows, floats, is_native, tensor};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};
use std::sync::Arc;

/// The token at `positions[b]` of every row b.
///
/// # Shapes
/// x (B,L,E), positions (B) → (B,E).
///
/// # Errors
/// When x has another rank, `positions` does not hold B values, or one of them is L or more.
pub fn select_tokens(x: &Tensor, positions: &[usize]) -> Result<Tensor> {
    let &[batch, length, size] = x.dims() else {
        return Err(Error::argument("x", format!("has shape {:?}, expected (B, L, E)", x.dims())));
    };
    if positions.len() != batch {
        return Err(Error::argument(
            "positions",
            format!("holds {} values, expected one for each of the {batch} rows of x {:?}", positions.len(), x.dims()),
        ));
    }
    if let Some((row, position)) = positions.iter().enumerate().find(|&(_, &position)| position >= length) {
        return Err(Error::argument(
            "positions",
            format!(
                "position {position} of row {row} lies outside of its {length} tokens (x has shape {:?})",
                x.dims()
            ),
        ));
    }
    let indices = positions.iter().enumerate().map(|(row, position)| row * length + position);
    if is_native(&[x]) {
        return Ok(x.contiguous()?.apply_op1(SelectTokens { tokens: indices.collect() })?);
    }
    if x.elem_count() == 0 {
        return Ok(Tensor::zeros((batch, size), x.dtype(), x.device())?);
    }
    let indices: Vec<i64> = indices.map(|index| index as i64).collect();
    let indices = Tensor::from_vec(indices, batch, x.device())?;
    Ok(x.reshape((batch * length, size))?.index_select(&indices, 0)?)
}

struct SelectTokens {
    /// Which of the B·L tokens is taken, for every row.
    tokens: Arc<[usize]>,
}

impl CustomOp1 for SelectTokens {
    fn name(&self) -> &'static str {
        "select_tokens"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (batch, _, size) = layout.shape().dims3()?;
        let x = floats(x, layout)?;
        let y = self.tokens.iter().flat_map(|&token| &x[token * size..][..size]).copied().collect();
        Ok((CpuStorage::F32(y), (batch, size).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let (batch, length, size) = x.dims3()?;
        let grad = grad.contiguous()?;
        let grads = Floats::of(&grad)?;
        let dx = build_rows(batch, length * size, |first, rows| {
            for (row, dx) in rows.chunks_exact_mut(length * size).enumerate() {
                let row = first + row;
                let place = (self.tokens[row] - row * length) * size;
                dx[place..place + size].copy_from_slice(&grads[row * size..][..size]);
            }
        });
        tensor(dx, x.shape()).map(Some)
    }
}
