//! [`ParamSource`]: where a model's tensors come from, and [`Init`], how they start where nothing is read.

use candle_core::Tensor;

use super::Activations;
use crate::ops::PackedWeight;

/// How a parameter starts when it is not read from a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Init {
    /// All the same value.
    Const(f32),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// The bound.
        bound: f32,
    },
}

impl Init {
    /// All zeros.
    pub const ZEROS: Init = Init::Const(0.0);
    /// All ones.
    pub const ONES: Init = Init::Const(1.0);
}

/// Where tensors come from, by full name.
pub trait ParamSource: Send + Sync {
    /// The tensor `name` of shape `shape`, or `Err(text)` if it is missing or of another shape; the text becomes one line of
    /// the error that lists everything wrong with the checkpoint.
    ///
    /// # Errors
    /// A sentence that begins with the name.
    fn get(&self, name: &str, shape: &[usize], init: Init) -> std::result::Result<Tensor, String>;

    /// The matrix `name` of shape `shape`, where this source has it packed already.
    fn packed(&self, name: &str, shape: &[usize]) -> Option<PackedWeight> {
        let _ = (name, shape);
        None
    }

    /// The low-rank adapter that the linear layer `module` has, where there is one: its matrices are then parameters too,
    /// `module.lora_A.weight` and `module.lora_B.weight`.
    fn adapter(&self, module: &str) -> Option<Adapter> {
        let _ = module;
        None
    }

    /// What the blocks built from this source keep for a backward pass.
    fn activations(&self) -> Activations {
        Activations::Stored
    }
}

/// What is to be known of a linear layer's low-rank adapter besides its matrices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adapter {
    /// Rank r of its matrices.
    pub rank: usize,
    /// By what its output is multiplied.
    pub scale: f64,
}
