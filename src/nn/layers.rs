//! The two layers with parameters that everything else is made of: [`Linear`] and [`LayerNorm`].

use candle_core::Tensor;

use crate::Result;
use crate::ops::{self, Activation, Weight};
use crate::weights::{Init, Params};

/// `y = x·Wᵀ + b`, with `weight` (N,K) as PyTorch's `nn.Linear` stores it; with a low-rank adapter (LoRA, Hu et al. 2021,
/// arXiv 2106.09685) `y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`, A (r,K) and B (N,r).
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

#[derive(Debug, Clone)]
struct LowRank {
    down: Tensor,
    up: Tensor,
    scale: f64,
}

impl Linear {
    /// Reads (or draws from `init`) `weight` (output, input) and `bias` (output).
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, input: usize, output: usize, init: Init) -> Result<Self> {
        // PyTorch draws a bias as it draws a uniform weight; transformers' initialisation sets it to zero.
        let bias = if matches!(init, Init::Uniform { .. }) { init } else { Init::ZEROS };
        let bias = params.get("bias", &[output], bias)?;
        Ok(Self { bias: Some(bias), ..Self::without_bias(params, input, output, init)? })
    }

    /// The same without a bias.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn without_bias(params: &Params, input: usize, output: usize, init: Init) -> Result<Self> {
        let low_rank = params.low_rank(input, output)?;
        let low_rank = low_rank.map(|(down, up, scale)| LowRank { down, up, scale });
        Ok(Self { weight: params.weight("weight", &[output, input], init)?, bias: None, low_rank })
    }

    /// Where PyTorch's `nn.Linear` starts: uniform in ±1/√input, weight and bias alike.
    #[must_use]
    pub fn torch_init(input: usize) -> Init {
        Init::Uniform { bound: 1.0 / (input.max(1) as f32).sqrt() }
    }

    /// # Shapes
    /// (…,K) → (…,N).
    ///
    /// # Errors
    /// When the last dimension of `x` is not K.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some(LowRank { down, up, scale }) = &self.low_rank else {
            return self.weight.forward(x, self.bias.as_ref(), None);
        };
        // The small product is scaled, not the large one.
        let inner = (ops::linear(x, down, None)? * *scale)?;
        self.weight.forward_with(x, self.bias.as_ref(), &inner, up)
    }

    /// [`Linear::forward`] added to `residual`, in one pass where nothing is trained.
    ///
    /// # Shapes
    /// `x` (…,K), `residual` (…,N) → (…,N).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match self.low_rank {
            None => self.weight.forward_onto(x, self.bias.as_ref(), residual),
            Some(_) => ops::add(residual, &self.forward(x)?),
        }
    }

    /// [`Linear::forward`] and the activation in one pass.
    ///
    /// # Errors
    /// When the last dimension of `x` is not K.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match self.low_rank {
            None => self.weight.forward(x, self.bias.as_ref(), Some(activation)),
            Some(_) => ops::activate(&self.forward(x)?, activation),
        }
    }
}

/// Normalisation over the last dimension, with a learned scale and shift (Ba et al. 2016, arXiv 1607.06450).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, both (size).
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, size: usize, eps: f64) -> Result<Self> {
        let weight = params.get("weight", &[size], Init::ONES)?;
        Ok(Self { weight, bias: params.get("bias", &[size], Init::ZEROS)?, eps })
    }

    /// Reads `weight` (size) alone; the shift is a constant zero.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn without_bias(params: &Params, size: usize, eps: f64) -> Result<Self> {
        let weight = params.get("weight", &[size], Init::ONES)?;
        Ok(Self { bias: weight.zeros_like()?, weight, eps })
    }

    /// # Shapes
    /// (…,E) → (…,E).
    ///
    /// # Errors
    /// When the last dimension of `x` is not E.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
