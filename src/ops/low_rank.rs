//! A frozen linear layer with a low-rank addition: `y = x · Wᵀ + b + z · Bᵀ`, x (…,K), W (N,K), b (N), z (…,r), B (N,r), y (…,N).
//!
//! One operation, so that the graph keeps x, z and y, and neither of the two sums.
//!
//! Backward: `dx = dy · W`, `dz = dy · B`, `dB = dyᵀ · z`; each only if something trains the operand.

use super::elementwise::add;
use super::kernel::{Floats, add_assign, floats, is_native, strided_floats, tensor};
use super::linear::{as_matrix, backward, linear};
use super::packed::{Epilogue, Weight};
use super::product::{Matrix, product};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

/// Values that are added at a time.
const PART: usize = 1 << 14;

impl Weight {
    /// `x · Wᵀ + bias + z · Bᵀ`, where nothing trains W and the bias in one operation.
    ///
    /// # Shapes
    /// x (…,K), bias (N), `z` (…,r), `up` (N,r) → (…,N).
    ///
    /// # Errors
    /// As [`Weight::forward`], and when `z` or `up` have other shapes.
    pub fn forward_with(&self, x: &Tensor, bias: Option<&Tensor>, z: &Tensor, up: &Tensor) -> Result<Tensor> {
        let trained = bias.is_some_and(Tensor::track_op) || matches!(self, Self::Plain(weight) if weight.track_op());
        let matrix = matches!(self, Self::Packed(_)) || self.dims().len() == 2;
        let native = is_native(&[x, z, up]) && bias.is_none_or(|bias| is_native(&[bias]));
        let native = native && !matches!(self, Self::Plain(weight) if !is_native(&[weight]));
        if trained || !matrix || !native || x.elem_count() == 0 {
            return add(&self.forward(x, bias, None)?, &linear(z, up, None)?);
        }
        let (outputs, inputs) = self.matrix_size();
        let fits = |t: &Tensor, last: usize| {
            t.dims().last() == Some(&last) && t.dims()[..t.rank() - 1] == x.dims()[..x.rank() - 1]
        };
        let rank = z.dims().last().copied().unwrap_or(0);
        if !fits(x, inputs) || !fits(z, rank) || up.dims() != [outputs, rank] {
            let message =
                format!("x {:?}, z {:?} and up {:?} do not fit ({outputs}, {inputs})", x.dims(), z.dims(), up.dims());
            return Err(Error::argument("x", message));
        }
        if let Some(bias) = bias.filter(|bias| bias.dims() != [outputs]) {
            return Err(Error::argument("bias", format!("has shape {:?}, expected ({outputs})", bias.dims())));
        }
        let bias = bias.map(Tensor::contiguous).transpose()?;
        let op = LowRank { weight: self.clone(), bias };
        Ok(x.contiguous()?.apply_op3(&z.contiguous()?, up, op)?)
    }
}

struct LowRank {
    weight: Weight,
    bias: Option<Tensor>,
}

impl CustomOp3 for LowRank {
    fn name(&self) -> &'static str {
        "low_rank"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        z: &CpuStorage,
        lz: &Layout,
        up: &CpuStorage,
        lup: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (outputs, inputs) = self.weight.matrix_size();
        let (x, z) = (floats(x, lx)?, floats(z, lz)?);
        let up = as_matrix(strided_floats(up, lup)?, lup);
        let rank = lup.dims()[1];
        let more = product(Matrix::new(z, z.len() / rank.max(1), rank), up.t(), None);
        let bias = self.bias.as_ref().map(Floats::of).transpose()?;
        let y = match &self.weight {
            Weight::Packed(packed) => {
                let epilogue = Epilogue { bias: bias.as_deref(), residual: Some(&more), activation: None };
                packed.product(x, epilogue).map_err(candle_core::Error::wrap)?
            }
            Weight::Plain(weight) => {
                let values = Floats::strided(weight)?;
                let weight = as_matrix(&values, weight.layout());
                let mut y = product(Matrix::new(x, x.len() / inputs.max(1), inputs), weight.t(), bias.as_deref());
                y.par_chunks_mut(PART).zip(more.par_chunks(PART)).for_each(|(y, more)| add_assign(y, more));
                y
            }
        };
        let mut shape = lx.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        Ok((CpuStorage::F32(y), shape.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        z: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grads = Floats::of(&grad)?;
        let dx = match &self.weight {
            Weight::Plain(weight) => backward(x, weight, &grads)?.0,
            Weight::Packed(packed) if x.track_op() => Some(tensor(packed.backward(&grads)?, x.shape())?),
            Weight::Packed(_) => None,
        };
        let (dz, dup) = backward(z, up, &grads)?;
        Ok((dx, dz, dup))
    }
}
