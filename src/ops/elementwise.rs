//! Sums and products of two tensors of one shape, on all cores: residual streams, gates. `d(x + y) = dz, dz`;
//! `d(x · y) = dz · y, dz · x`.

use super::kernel::{Floats, build_rows, floats, is_native, tensor};
use super::simd::vectorised;
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};

/// `x + y`.
///
/// # Shapes
/// Both alike.
///
/// # Errors
/// When shapes, dtypes or devices differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    apply(Elementwise::Add, x, y)
}

/// `x · y`, value by value.
///
/// # Shapes
/// Both alike.
///
/// # Errors
/// When shapes, dtypes or devices differ.
pub fn multiply(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    apply(Elementwise::Multiply, x, y)
}

fn apply(op: Elementwise, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return Err(Error::argument("y", format!("has shape {:?}, x has {:?}", y.dims(), x.dims())));
    }
    if !is_native(&[x, y]) {
        return Ok(match op {
            Elementwise::Add => (x + y)?,
            Elementwise::Multiply => (x * y)?,
        });
    }
    Ok(x.contiguous()?.apply_op2(&y.contiguous()?, op)?)
}

#[derive(Clone, Copy)]
enum Elementwise {
    Add,
    Multiply,
}

impl Elementwise {
    fn of(self, x: &[f32], y: &[f32]) -> Vec<f32> {
        build_rows(x.len(), 1, |first, z| {
            let places = first..first + z.len();
            let (x, y) = (&x[places.clone()], &y[places]);
            match self {
                Self::Add => sums(x, y, z),
                Self::Multiply => products(x, y, z),
            }
        })
    }
}

vectorised! {
    fn sums<const FMA: bool>(x: &[f32], y: &[f32], z: &mut [f32]) {
        for (z, (x, y)) in z.iter_mut().zip(x.iter().zip(y)) {
            *z = x + y;
        }
    }
}

vectorised! {
    fn products<const FMA: bool>(x: &[f32], y: &[f32], z: &mut [f32]) {
        for (z, (x, y)) in z.iter_mut().zip(x.iter().zip(y)) {
            *z = x * y;
        }
    }
}

impl CustomOp2 for Elementwise {
    fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Multiply => "multiply",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, y: &CpuStorage, ly: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.of(floats(x, lx)?, floats(y, ly)?)), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let through = |to: &Tensor, other: &Tensor| -> CandleResult<Option<Tensor>> {
            if !to.track_op() {
                return Ok(None);
            }
            match self {
                Self::Add => Ok(Some(grad.clone())),
                Self::Multiply => {
                    let (grad, other) = (grad.contiguous()?, other.contiguous()?);
                    tensor(Self::Multiply.of(&Floats::of(&grad)?, &Floats::of(&other)?), to.shape()).map(Some)
                }
            }
        };
        Ok((through(x, y)?, through(y, x)?))
    }
}
