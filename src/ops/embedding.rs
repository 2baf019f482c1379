//! Embedding lookup: rows of a table by index. The backward pass adds each token's gradient to its row, in the order of the
//! tokens, so that it gives the same bits on any number of threads.

use super::kernel::{Floats, add_assign, build_rows, floats, is_native, tensor};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};
use std::sync::Arc;

/// The rows of `table` that `ids` name.
///
/// # Shapes
/// table (V,E) with V entries, ids (B,L) row after row, `shape` = (B,L) → (B,L,E).
///
/// # Errors
/// When the table is not a matrix, `ids` does not hold B·L values, or one of them is V or more.
pub fn embedding(table: &Tensor, ids: &[u32], shape: (usize, usize)) -> Result<Tensor> {
    let &[entries, size] = table.dims() else {
        return Err(Error::argument("table", format!("has shape {:?}, expected (V, E)", table.dims())));
    };
    let (batch, length) = shape;
    if batch.checked_mul(length) != Some(ids.len()) {
        return Err(Error::argument("ids", format!("holds {} values, expected {batch} rows of {length}", ids.len())));
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= entries) {
        return Err(Error::argument("ids", format!("id {id} lies outside of the table, which has {entries} entries")));
    }
    if is_native(&[table]) {
        let op = Embedding { ids: ids.into(), shape: (batch, length, size).into() };
        return Ok(table.contiguous()?.apply_op1(op)?);
    }
    if ids.is_empty() {
        return Ok(Tensor::zeros((batch, length, size), table.dtype(), table.device())?);
    }
    let ids = Tensor::from_slice(ids, ids.len(), table.device())?;
    Ok(table.index_select(&ids, 0)?.reshape((batch, length, size))?)
}

struct Embedding {
    ids: Arc<[u32]>,
    shape: Shape,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (_, size) = layout.shape().dims2()?;
        let table = floats(table, layout)?;
        let y = build_rows(self.ids.len(), size, |first, y| {
            for (&id, y) in self.ids[first..].iter().zip(y.chunks_exact_mut(size)) {
                y.copy_from_slice(&table[id as usize * size..][..size]);
            }
        });
        Ok((CpuStorage::F32(y), self.shape.clone()))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let (entries, size) = table.dims2()?;
        let grad = grad.contiguous()?;
        let grads = Floats::of(&grad)?;
        // Sorted by row, then by token: each task finds the tokens of its rows, and adds them in their order.
        let mut tokens: Vec<(u32, u32)> = self.ids.iter().copied().zip(0..).collect();
        tokens.sort_unstable();
        let dtable = build_rows(entries, size, |first, rows| {
            let end = first + rows.len() / size;
            let start = tokens.partition_point(|&(id, _)| (id as usize) < first);
            for &(id, token) in tokens[start..].iter().take_while(|&&(id, _)| (id as usize) < end) {
                let row = &mut rows[(id as usize - first) * size..][..size];
                add_assign(row, &grads[token as usize * size..][..size]);
            }
        });
        tensor(dtable, table.shape()).map(Some)
    }
}
