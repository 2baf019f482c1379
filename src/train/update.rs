//! One AdamW step of one parameter: a fused pass over f32 values in host memory, plain tensor operations for everything else.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use super::optimizer::AdamWConfig;
use crate::Result;

/// Numbers that one thread works on at a time: four streams of this length fit in the second-level cache.
const CHUNK: usize = 16 * 1024;

/// The running means of one parameter, where they are updated.
#[derive(Debug)]
pub(super) enum State {
    /// Of an f32 parameter in host memory: updated in place.
    Host {
        /// The mean of the gradient.
        first: Vec<f32>,
        /// The mean of its square.
        second: Vec<f32>,
    },
    /// Of any other parameter: f32 tensors on its device, replaced at each step.
    Tensors {
        /// The mean of the gradient.
        first: Tensor,
        /// The mean of its square.
        second: Tensor,
    },
}

/// One step's constants for one parameter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    grad_scale: f64,
    keep: f64,
    beta1: f64,
    beta2: f64,
    step_size: f64,
    root_correction: f64,
    eps: f64,
}

impl Update {
    /// The constants of the `step`th update (counted from 1) at rate `lr`, of gradients that are multiplied by `grad_scale` first.
    pub(super) fn new(config: &AdamWConfig, lr: f64, weight_decay: f64, grad_scale: f64, step: u64) -> Self {
        let AdamWConfig { beta1, beta2, eps, .. } = *config;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            grad_scale,
            keep: 1.0 - lr * weight_decay,
            beta1,
            beta2,
            step_size: lr / correction(beta1),
            root_correction: correction(beta2).sqrt(),
            eps,
        }
    }

    fn values(&self, theta: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32]) {
        let [scale, keep, beta1, beta2] = [self.grad_scale, self.keep, self.beta1, self.beta2].map(|x| x as f32);
        let [step_size, root_correction, eps] = [self.step_size, self.root_correction, self.eps].map(|x| x as f32);
        let [rest1, rest2] = [1.0 - self.beta1, 1.0 - self.beta2].map(|x| x as f32);
        for (((theta, grad), first), second) in theta.iter_mut().zip(grad).zip(first).zip(second) {
            let grad = grad * scale;
            *first = beta1 * *first + rest1 * grad;
            *second = beta2 * *second + rest2 * grad * grad;
            *theta = *theta * keep - step_size * *first / (second.sqrt() / root_correction + eps);
        }
    }
}

impl State {
    /// Means of zero for `var`.
    pub(super) fn new(var: &Var) -> Result<Self> {
        if var.device().is_cpu() && var.dtype() == DType::F32 && var.is_contiguous() {
            let count = var.elem_count();
            return Ok(Self::Host { first: vec![0.0; count], second: vec![0.0; count] });
        }
        let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
        Ok(Self::Tensors { first: zeros()?, second: zeros()? })
    }

    /// The means as tensors of `var`'s shape.
    pub(super) fn tensors(&self, var: &Var) -> Result<(Tensor, Tensor)> {
        Ok(match self {
            Self::Host { first, second } => {
                let tensor = |values: &[f32]| Tensor::from_slice(values, var.shape(), var.device());
                (tensor(first)?, tensor(second)?)
            }
            Self::Tensors { first, second } => (first.clone(), second.clone()),
        })
    }

    /// Replaces the means.
    pub(super) fn set(&mut self, new_first: &Tensor, new_second: &Tensor) -> Result<()> {
        match self {
            Self::Host { first, second } => {
                let values = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
                (*first, *second) = (values(new_first)?, values(new_second)?);
            }
            Self::Tensors { first, second } => {
                let like = |t: &Tensor, old: &Tensor| t.to_dtype(DType::F32)?.to_device(old.device());
                (*first, *second) = (like(new_first, first)?, like(new_second, second)?);
            }
        }
        Ok(())
    }

    /// Updates `var` and its means by `grad`.
    pub(super) fn apply(&mut self, var: &Var, grad: &Tensor, update: Update) -> Result<()> {
        match self {
            Self::Host { first, second } => {
                let grad = grad.to_dtype(DType::F32)?.contiguous()?;
                let step = HostStep { update, means: RefCell::new((first, second)) };
                var.inplace_op2(&grad, &step)?;
            }
            Self::Tensors { first, second } => {
                let grad = (grad.detach().to_dtype(DType::F32)? * update.grad_scale)?;
                let new_first = ((&*first * update.beta1)? + (&grad * (1.0 - update.beta1))?)?;
                let new_second = ((&*second * update.beta2)? + (grad.sqr()? * (1.0 - update.beta2))?)?;
                let root = ((new_second.sqrt()? / update.root_correction)? + update.eps)?;
                let change = ((&new_first / root)? * update.step_size)?;
                let theta = ((var.as_detached_tensor().to_dtype(DType::F32)? * update.keep)? - change)?;
                var.set(&theta.to_dtype(var.dtype())?)?;
                (*first, *second) = (new_first, new_second);
            }
        }
        Ok(())
    }
}

/// candle hands out one mutable storage; the means come along in the operation.
struct HostStep<'a> {
    update: Update,
    means: RefCell<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp2 for HostStep<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        theta: &mut CpuStorage,
        theta_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(theta), CpuStorage::F32(grad)) = (theta, grad) else {
            candle_core::bail!("adamw: f32 values are needed");
        };
        let (Some((t0, t1)), Some((g0, g1))) = (theta_layout.contiguous_offsets(), grad_layout.contiguous_offsets())
        else {
            candle_core::bail!("adamw: contiguous values are needed");
        };
        let mut means = self.means.borrow_mut();
        let (first, second) = &mut *means;
        if t1 - t0 != g1 - g0 || t1 - t0 != first.len() {
            candle_core::bail!("adamw: a gradient of shape {:?} for {:?}", grad_layout.dims(), theta_layout.dims());
        }
        let (theta, grad) = (&mut theta[t0..t1], &grad[g0..g1]);
        let chunks = theta.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK));
        let chunks = chunks.zip(first.par_chunks_mut(CHUNK)).zip(second.par_chunks_mut(CHUNK));
        let update = self.update;
        chunks.for_each(|(((theta, grad), first), second)| update.values(theta, grad, first, second));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_large_parameter_with_a_transposed_gradient_equals_plain_operations() {
        // More than one chunk, and a last one that is not full.
        let (rows, columns) = (203, 301);
        let values = |scale: f32| {
            let count = (rows * columns) as u32;
            let wave = Tensor::arange(0u32, count, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().sin().unwrap();
            (wave * f64::from(scale)).unwrap()
        };
        let start = values(2.0).reshape((rows, columns)).unwrap();
        let grad = values(0.3).reshape((columns, rows)).unwrap().t().unwrap();
        let (fused, plain) = (Var::from_tensor(&start).unwrap(), Var::from_tensor(&start).unwrap());
        let mut host = State::new(&fused).unwrap();
        let zeros = start.zeros_like().unwrap();
        let mut tensors = State::Tensors { first: zeros.clone(), second: zeros };
        assert!(matches!(host, State::Host { .. }));
        for step in 1..4 {
            let update = Update::new(&AdamWConfig::default(), 0.02, 0.1, 0.7, step);
            host.apply(&fused, &grad, update).unwrap();
            tensors.apply(&plain, &grad, update).unwrap();
        }
        let difference = (fused.as_tensor() - plain.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
        let moved = (fused.as_tensor() - &start).unwrap().abs().unwrap().mean_all().unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() > 0.03);
    }

    #[test]
    fn a_gradient_of_another_size_is_an_error() {
        let var = Var::zeros(4, DType::F32, &Device::Cpu).unwrap();
        let mut state = State::new(&var).unwrap();
        let grad = Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap();
        let update = Update::new(&AdamWConfig::default(), 0.1, 0.0, 1.0, 1);
        assert!(state.apply(&var, &grad, update).unwrap_err().to_string().contains("gradient of shape [5]"));
    }
}
