//! A fully connected layer and its activation function in one operation: `y = f(h)`, `h = x · Wᵀ + b`.
//!
//! The first half of every MLP. Apart, the two cost a candle graph edge between them: a zeroed buffer and an addition of
//! the widest tensor of the block. Backward: `dh = dy · f′(h)`, `db = Σ dh` in the same pass, then as [`super::linear()`].

use super::activation::{self, Activation, activate};
use super::kernel::{Floats, add_assign, build_rows, build_rows_and_sum, is_native, tensor};
use super::linear::{self, Operand, linear};
use crate::Result;
use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Storage, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// `f(x · weightᵀ + bias)`: the same as [`linear()`] and then [`activate`], in less time and memory.
///
/// # Shapes
/// x (…,K), weight (N,K), bias (N) → (…,N).
///
/// # Errors
/// When the shapes do not fit together, or the dtypes or devices differ.
pub fn linear_activate(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    linear::check(x, weight, bias)?;
    match bias {
        Some(bias) if is_native(&[x, weight, bias]) && x.elem_count() > 0 => {
            let tracked = [x, weight, bias].iter().any(|operand| operand.track_op());
            let op = LinearActivate { activation, tracked, before: Mutex::new(None) };
            Ok(x.contiguous()?.apply_op3(weight, &bias.contiguous()?, op)?)
        }
        _ => activate(&linear(x, weight, bias)?, activation),
    }
}

struct LinearActivate {
    activation: Activation,
    tracked: bool,
    /// h, kept for the backward pass if there will be one, which takes it away: the graph lives until all gradients are there. A
    /// second backward pass works it out again.
    before: Mutex<Option<Vec<f32>>>,
}

/// h once more.
fn again(x: &Tensor, w: &Tensor, b: &Tensor) -> CandleResult<Vec<f32>> {
    let [(xs, lx), (ws, lw), (bs, lb)] = [x, w, b].map(Tensor::storage_and_layout);
    match (&*xs, &*ws, &*bs) {
        (Storage::Cpu(x), Storage::Cpu(w), Storage::Cpu(b)) => Ok(linear::forward((x, lx), (w, lw), Some((b, lb)))?.0),
        _ => bail!("a CPU kernel needs CPU tensors"),
    }
}

impl CustomOp3 for LinearActivate {
    fn name(&self) -> &'static str {
        "linear_activate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let bias: Operand = (b, lb);
        let (before, shape) = linear::forward((x, lx), (w, lw), Some(bias))?;
        let y = build_rows(before.len(), 1, |first, y| {
            activation::forward(self.activation, &before[first..first + y.len()], y);
        });
        if self.tracked {
            *self.before.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        }
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let kept = self.before.lock().unwrap_or_else(PoisonError::into_inner).take();
        let before = match kept {
            Some(before) => before,
            None => again(x, w, b)?,
        };
        let grad = grad.contiguous()?;
        let grads = Floats::of(&grad)?;
        let size = b.elem_count();
        let (dh, dbias) = build_rows_and_sum(before.len() / size.max(1), size, size, |first, dh, sums| {
            let range = first * size..first * size + dh.len();
            activation::backward(self.activation, &before[range.clone()], &grads[range], dh);
            dh.chunks_exact(size).for_each(|row| add_assign(sums, row));
        });
        let (dx, dweight) = linear::backward(x, w, &dh)?;
        let dbias = b.track_op().then(|| tensor(dbias, b.shape())).transpose()?;
        Ok((dx, dweight, dbias))
    }
}
