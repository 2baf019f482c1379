//! Differentiable operations: the mathematics every tower, head and loss is made of.
//!
//! Each operation has a CPU kernel for `f32` (all cores, vectorised) with an analytic backward pass, and a plain
//! composition of candle's differentiable operations for every other device and dtype. candle's own fused LayerNorm and
//! softmax cut the gradient without a word, so nothing in this crate uses them.
//!
//! Rules that hold for every operation here:
//! - Shapes are checked first; an error names the argument and the shapes.
//! - Operands that nothing trains (see [`is_tracked`]) cost no gradient.
//! - Strided inputs are accepted; results are contiguous. Empty batches give empty results.
//! - Sums are taken in an order that does not depend on the number of threads, except inside matrix products.

mod activation;
mod add_row;
mod attention;
mod attention_mask;
mod conv2d;
mod depthwise_conv2d;
mod elementwise;
mod embedding;
mod integer_panels;
mod integer_tiles;
mod kernel;
mod l2_normalize;
mod layer_norm;
mod linear;
mod linear_activate;
mod low_rank;
mod mean_pool;
mod memory;
mod packed;
mod panels;
mod product;
mod quantized;
mod rotary;
mod scale_row;
mod select_tokens;
pub(crate) mod simd;
mod symmetric_cross_entropy;
mod tiles;
mod window;

pub use activation::{Activation, activate};
pub use add_row::add_row;
pub use attention::attention;
pub use attention_mask::{AttentionMask, AttentionPattern};
pub use conv2d::conv2d;
pub use depthwise_conv2d::{average_pool2d, depthwise_conv2d};
pub use elementwise::{add, multiply};
pub use embedding::embedding;
pub use l2_normalize::l2_normalize;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use linear_activate::linear_activate;
pub use mean_pool::mean_pool;
pub(crate) use memory::{bytes_of, from_little_endian, zeros};
pub use packed::{PackedWeight, Packing, Weight};
pub use rotary::{RotaryPairs, rotary};
pub use scale_row::scale_row;
pub use select_tokens::select_tokens;
pub use symmetric_cross_entropy::symmetric_cross_entropy;
pub use window::Window;

use candle_core::Tensor;

/// Whether a backward pass reaches this tensor: it is a variable or was computed from one.
///
/// Backward passes give no gradient to operands for which this is false, and spend no time on them.
#[must_use]
pub fn is_tracked(tensor: &Tensor) -> bool {
    tensor.track_op()
}
