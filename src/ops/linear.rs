//! The fully connected layer: `y = x · Wᵀ + b`, x (…,K), W (N,K), b (N), y (…,N).
//!
//! Backward: `dx = dy · W`, `dW = dyᵀ · x`, `db = Σ dy`; each only if something trains the operand.

use super::kernel::{Floats, column_sums, floats, is_native, strided_floats, tensor};
use super::product::{Matrix, product};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};

/// `x · weightᵀ + bias`.
///
/// # Shapes
/// x (…,K), weight (N,K), bias (N) → (…,N).
///
/// # Errors
/// When the shapes do not fit together, or the dtypes or devices differ.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight, bias)?;
    let native = is_native(&[x, weight]) && bias.is_none_or(|bias| is_native(&[bias]));
    if !native || x.elem_count() == 0 {
        return plain(x, weight, bias);
    }
    let x = x.contiguous()?;
    Ok(match bias {
        Some(bias) => x.apply_op3(weight, &bias.contiguous()?, Linear)?,
        None => x.apply_op2(weight, Linear)?,
    })
}

/// The same by candle's operations.
fn plain(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let inner = shape.pop().unwrap_or(0);
    let rows = shape.iter().product::<usize>();
    shape.push(weight.dim(0)?);
    let mut y = x.reshape((rows, inner))?.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    Ok(y.reshape(shape)?)
}

pub(super) fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (outputs, inputs) = match weight.dims() {
        &[n, k] => (n, k),
        other => return Err(Error::argument("weight", format!("has shape {other:?}, expected (outputs, inputs)"))),
    };
    if x.dims().last() != Some(&inputs) {
        return Err(Error::argument(
            "x",
            format!(
                "has shape {:?}, whose last size is not the {inputs} inputs of weight {:?}",
                x.dims(),
                weight.dims()
            ),
        ));
    }
    match bias {
        Some(bias) if bias.dims() != [outputs] => Err(Error::argument(
            "bias",
            format!("has shape {:?}, expected ({outputs}) for weight {:?}", bias.dims(), weight.dims()),
        )),
        _ => Ok(()),
    }
}

struct Linear;

/// An operand of a custom operation.
pub(super) type Operand<'a> = (&'a CpuStorage, &'a Layout);

/// The values of y, and its shape.
pub(super) fn forward(x: Operand, weight: Operand, bias: Option<Operand>) -> CandleResult<(Vec<f32>, Shape)> {
    let mut shape = x.1.dims().to_vec();
    let (outputs, inputs) = weight.1.shape().dims2()?;
    let x = floats(x.0, x.1)?;
    let bias = bias.map(|(storage, layout)| floats(storage, layout)).transpose()?;
    let weight = as_matrix(strided_floats(weight.0, weight.1)?, weight.1);
    let y = product(Matrix::new(x, x.len() / inputs.max(1), inputs), weight.t(), bias);
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    Ok((y, shape.into()))
}

/// dx and dW, where they are wanted.
pub(super) fn backward(x: &Tensor, weight: &Tensor, grad: &[f32]) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
    let (outputs, inputs) = weight.dims2()?;
    let rows = grad.len() / outputs.max(1);
    let grad = Matrix::new(grad, rows, outputs);
    let dx = x.track_op().then(|| {
        let values = Floats::strided(weight)?;
        tensor(product(grad, as_matrix(&values, weight.layout()), None), x.shape())
    });
    let dweight = weight.track_op().then(|| {
        let values = Floats::of(x)?;
        tensor(product(grad.t(), Matrix::new(&values, rows, inputs), None), weight.shape())
    });
    Ok((dx.transpose()?, dweight.transpose()?))
}

/// A weight as it lies in memory, transposed or not.
pub(super) fn as_matrix<'a>(values: &'a [f32], layout: &Layout) -> Matrix<'a> {
    let (dims, strides) = (layout.dims(), layout.stride());
    Matrix::strided(values, dims[0], dims[1], strides[0], strides[1])
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (y, shape) = forward((x, lx), (w, lw), None)?;
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        backward(x, w, &Floats::of(&grad.contiguous()?)?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let (y, shape) = forward((x, lx), (w, lw), Some((b, lb)))?;
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
        let grad = grad.contiguous()?;
        let grads = Floats::of(&grad)?;
        let (dx, dw) = backward(x, w, &grads)?;
        let db = b.track_op().then(|| tensor(column_sums(&grads, b.elem_count()), b.shape()));
        Ok((dx, dw, db.transpose()?))
    }
}
