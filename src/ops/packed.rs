//! Weights that nothing trains, in the layout that products read fastest, in place of the matrix itself.
//!
//! A [`Weight`] is a matrix as it was read, or packed: 32-bit floats in panels (the same numbers), or 8-bit integers. A packed weight
//! is a copy that no variable shares, so that it is never stale; who asks for the matrix gets it unpacked.

use super::activation::{Activation, activate};
use super::add_row::add_row;
use super::elementwise::add;
use super::kernel::{Floats, floats, is_native, tensor};
use super::linear::linear;
use super::linear_activate::linear_activate;
use super::panels::Panels;
use super::quantized::Quantized;
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result as CandleResult, Shape, Tensor};
use std::sync::Arc;

/// Fills a buffer with whole rows of a matrix, from the given one on.
pub(crate) type Rows<'a> = &'a (dyn Fn(usize, &mut [f32]) -> Result<()> + Sync);

/// How weights that nothing trains are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Packing {
    /// As they were read.
    #[default]
    None,
    /// The same 32-bit floats, rearranged.
    Float,
    /// 8-bit integers with a scale an output; rows are quantised as they come.
    Int8,
}

/// What is done with a product besides computing it.
#[derive(Clone, Copy, Default)]
pub(super) struct Epilogue<'a> {
    /// Added to every row (N).
    pub(super) bias: Option<&'a [f32]>,
    /// Added (rows,N).
    pub(super) residual: Option<&'a [f32]>,
    /// Applied to the sum.
    pub(super) activation: Option<Activation>,
}

/// The weight of a linear layer: (N,K), or (N,…) with K numbers an output.
#[derive(Debug, Clone)]
pub enum Weight {
    /// A tensor as it was read, which may be a variable.
    Plain(Tensor),
    /// A copy that nothing trains.
    Packed(PackedWeight),
}

/// A packed matrix; a clone shares it.
#[derive(Clone)]
pub struct PackedWeight {
    form: Arc<Form>,
    shape: Shape,
}

enum Form {
    Float(Panels),
    Int8(Quantized),
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight({:?}, {:?})", self.packing(), self.shape)
    }
}

impl PackedWeight {
    /// Packs a copy of `weight`, which may be dropped then. `None` where it has to stay as it is: it is trained, no f32 in main memory,
    /// no matrix, or (for integers) too small.
    ///
    /// # Errors
    /// When candle cannot read the tensor.
    pub fn pack(weight: &Tensor, packing: Packing) -> Result<Option<Self>> {
        let Some((_, inputs)) = matrix_size(weight.dims()) else { return Ok(None) };
        if weight.track_op() || !is_native(&[weight]) || packing == Packing::None {
            return Ok(None);
        }
        let weight = weight.contiguous()?;
        let values = Floats::of(&weight)?;
        Self::read(weight.dims(), packing, &copy_rows(&values, inputs))
    }

    /// Packs a matrix of this shape as it is read: `rows` gives some of its rows at a time, from several threads at once. `None`
    /// where it is no matrix, or not to be packed.
    pub(crate) fn read(shape: &[usize], packing: Packing, rows: Rows) -> Result<Option<Self>> {
        let Some((outputs, inputs)) = matrix_size(shape) else { return Ok(None) };
        let form = match packing {
            Packing::None => return Ok(None),
            Packing::Int8 if Quantized::takes(outputs, inputs) => Form::Int8(Quantized::new(outputs, inputs, rows)?),
            _ => Form::Float(Panels::new(outputs, inputs, rows)?),
        };
        Ok(Some(Self { form: Arc::new(form), shape: shape.into() }))
    }

    /// Packs integers (N,…) and their scales (N), as [`PackedWeight::integers`] and [`PackedWeight::scales`] give
    /// them. `None` where the matrix is of a size that is kept in floats.
    pub(crate) fn from_integers(shape: &[usize], integers: &[i8], scales: Vec<f32>) -> Option<Self> {
        let (outputs, inputs) = matrix_size(shape).filter(|&(outputs, inputs)| Quantized::takes(outputs, inputs))?;
        let form = Form::Int8(Quantized::from_integers(integers, scales, outputs, inputs));
        Some(Self { form: Arc::new(form), shape: shape.into() })
    }

    /// The integers (N,…), where it is packed as such.
    pub(crate) fn integers(&self) -> Result<Option<Vec<i8>>> {
        match &*self.form {
            Form::Float(_) => Ok(None),
            Form::Int8(quantized) => quantized.integers().map(Some),
        }
    }

    /// One scale an output, where it is packed as integers.
    pub(crate) fn scales(&self) -> Option<&[f32]> {
        match &*self.form {
            Form::Float(_) => None,
            Form::Int8(quantized) => Some(quantized.scales()),
        }
    }

    /// How it is packed.
    #[must_use]
    pub fn packing(&self) -> Packing {
        match &*self.form {
            Form::Float(_) => Packing::Float,
            Form::Int8(_) => Packing::Int8,
        }
    }

    /// The shape of the tensor that was packed.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// The tensor that was packed: the same bits of floats, the numbers that the integers stand for.
    ///
    /// # Errors
    /// When candle cannot make a tensor.
    pub fn unpack(&self) -> Result<Tensor> {
        let values = match &*self.form {
            Form::Float(panels) => panels.unpack(),
            Form::Int8(quantized) => quantized.unpack()?,
        };
        Ok(Tensor::from_vec(values, self.shape.clone(), &Device::Cpu)?)
    }

    /// N and K.
    fn size(&self) -> (usize, usize) {
        let outputs = self.dims().first().copied().unwrap_or(0);
        (outputs, self.shape.elem_count() / outputs.max(1))
    }

    pub(super) fn product(&self, x: &[f32], epilogue: Epilogue<'_>) -> Result<Vec<f32>> {
        match &*self.form {
            Form::Float(panels) => Ok(panels.product(x, epilogue)),
            Form::Int8(quantized) => quantized.product(x, epilogue),
        }
    }

    /// `grad · W` for `grad` (rows,N): what flows back to x.
    pub(super) fn backward(&self, grad: &[f32]) -> CandleResult<Vec<f32>> {
        match &*self.form {
            Form::Float(panels) => Ok(panels.backward(grad)),
            Form::Int8(quantized) => {
                let (outputs, inputs) = self.size();
                let weight = quantized.unpack().map_err(candle_core::Error::wrap)?;
                let panels = Panels::new(outputs, inputs, &copy_rows(&weight, inputs));
                Ok(panels.map_err(candle_core::Error::wrap)?.backward(grad))
            }
        }
    }

    fn check(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<()> {
        let (outputs, inputs) = self.size();
        if x.dims().last() != Some(&inputs) {
            let message = format!(
                "has shape {:?}, whose last size is not the {inputs} inputs of weight {:?}",
                x.dims(),
                self.dims()
            );
            return Err(Error::argument("x", message));
        }
        if !is_native(&[x]) {
            let message = format!(
                "is {:?} on {:?}; a packed weight takes f32 on the CPU (load with `trainable(true)` for others)",
                x.dtype(),
                x.device().location()
            );
            return Err(Error::argument("x", message));
        }
        match bias {
            Some(bias) if bias.dims() != [outputs] || !is_native(&[bias]) => {
                let message =
                    format!("has shape {:?}, expected f32 ({outputs}) for weight {:?}", bias.dims(), self.dims());
                Err(Error::argument("bias", message))
            }
            _ => Ok(()),
        }
    }

    /// `f(x · Wᵀ + bias)`, where something trains `x` or the bias.
    fn forward_tracked(&self, x: &Tensor, bias: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
        // A frozen bias goes into the product: apart, the graph would keep the tensor before it too.
        let (frozen, trained) = bias.map_or((None, None), |bias| match bias.track_op() {
            true => (None, Some(bias)),
            false => (Some(bias.contiguous()), None),
        });
        let mut y = x.apply_op1(PackedLinear { weight: self.clone(), bias: frozen.transpose()? })?;
        if let Some(bias) = trained {
            y = add_row(&y, bias)?;
        }
        activation.map_or(Ok(y.clone()), |activation| activate(&y, activation))
    }

    /// `f(x · Wᵀ + bias + residual)`, which nothing trains.
    fn forward(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
        activation: Option<Activation>,
    ) -> Result<Tensor> {
        let [bias, residual] = [bias, residual].map(|t| t.map(Tensor::contiguous).transpose());
        let (bias, residual) = (bias?, residual?);
        let [bias, residual] = [&bias, &residual].map(|t| t.as_ref().map(Floats::of).transpose());
        let (bias, residual) = (bias?, residual?);
        let epilogue = Epilogue { bias: bias.as_deref(), residual: residual.as_deref(), activation };
        let y = self.product(&Floats::of(x)?, epilogue)?;
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.size().0;
        }
        Ok(tensor(y, shape)?)
    }
}

impl Weight {
    /// The shape of the tensor.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Plain(tensor) => tensor.dims(),
            Self::Packed(packed) => packed.dims(),
        }
    }

    /// N and K, those of a matrix (N,…).
    pub(super) fn matrix_size(&self) -> (usize, usize) {
        matrix_size(self.dims()).unwrap_or_default()
    }

    /// The type of its numbers, and of what it is multiplied with.
    #[must_use]
    pub fn dtype(&self) -> candle_core::DType {
        match self {
            Self::Plain(tensor) => tensor.dtype(),
            Self::Packed(_) => candle_core::DType::F32,
        }
    }

    /// Where it is, and what it is multiplied with.
    #[must_use]
    pub fn device(&self) -> &Device {
        match self {
            Self::Plain(tensor) => tensor.device(),
            Self::Packed(_) => &Device::Cpu,
        }
    }

    /// The tensor: shared, or unpacked.
    ///
    /// # Errors
    /// When candle cannot make a tensor.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match self {
            Self::Plain(tensor) => Ok(tensor.clone()),
            Self::Packed(packed) => packed.unpack(),
        }
    }

    /// `f(x · Wᵀ + bias)`.
    ///
    /// # Shapes
    /// x (…,K), bias (N) → (…,N).
    ///
    /// # Errors
    /// When the shapes do not fit together, or the dtypes or devices differ.
    pub fn forward(&self, x: &Tensor, bias: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
        let weight = match self {
            Self::Packed(packed) => {
                packed.check(x, bias)?;
                let x = x.contiguous()?;
                return match x.track_op() || bias.is_some_and(Tensor::track_op) {
                    true => packed.forward_tracked(&x, bias, activation),
                    false => packed.forward(&x, bias, None, activation),
                };
            }
            Self::Plain(tensor) if tensor.rank() > 2 => &tensor.flatten_from(1)?,
            Self::Plain(tensor) => tensor,
        };
        match activation {
            Some(activation) => linear_activate(x, weight, bias, activation),
            None => linear(x, weight, bias),
        }
    }
}

impl Weight {
    /// `x · Wᵀ + bias + residual`, in one pass where nothing is trained.
    ///
    /// # Shapes
    /// x (…,K), bias (N), residual (…,N) → (…,N).
    ///
    /// # Errors
    /// As [`Weight::forward`], and when the residual has another shape than the result.
    pub fn forward_onto(&self, x: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        if let Self::Packed(packed) = self {
            packed.check(x, bias)?;
            let tracked = x.track_op() || residual.track_op() || bias.is_some_and(Tensor::track_op);
            let fits = residual.dims().last() == Some(&packed.size().0)
                && residual.rank() == x.rank()
                && residual.dims()[..x.rank() - 1] == x.dims()[..x.rank() - 1]
                && is_native(&[residual]);
            if fits && !tracked {
                return packed.forward(&x.contiguous()?, bias, Some(residual), None);
            }
        }
        add(residual, &self.forward(x, bias, None)?)
    }
}

/// `x · Wᵀ + bias` where something trains x, and nothing the bias. Backward: `dx = dy · W`.
struct PackedLinear {
    weight: PackedWeight,
    bias: Option<Tensor>,
}

impl CustomOp1 for PackedLinear {
    fn name(&self) -> &'static str {
        "packed_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let bias = self.bias.as_ref().map(Floats::of).transpose()?;
        let epilogue = Epilogue { bias: bias.as_deref(), ..Epilogue::default() };
        let y = self.weight.product(floats(x, layout)?, epilogue).map_err(candle_core::Error::wrap)?;
        let mut shape = layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.weight.size().0;
        }
        Ok((CpuStorage::F32(y), shape.into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let grad = Floats::of(&grad)?;
        let dx = self.weight.backward(&grad)?;
        tensor(dx, x.shape()).map(Some)
    }
}

/// The rows of a matrix in memory.
pub(super) fn copy_rows(matrix: &[f32], inputs: usize) -> impl Fn(usize, &mut [f32]) -> Result<()> + Sync {
    move |first, rows| {
        rows.copy_from_slice(&matrix[first * inputs..][..rows.len()]);
        Ok(())
    }
}

/// N and K of a matrix (N,…); `None` for what is none, or empty.
fn matrix_size(shape: &[usize]) -> Option<(usize, usize)> {
    let (&outputs, rest) = shape.split_first()?;
    let inputs: usize = rest.iter().product();
    (!rest.is_empty() && outputs * inputs > 0).then_some((outputs, inputs))
}
