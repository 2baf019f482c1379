//! ViTamin's two convolutional stages (Chen et al. 2024, arXiv 2404.02132, figure 2; reference: `MbConvStages` of timm's
//! `vitamin.py`): each block is `x' + conv1×1(gelu(depthwise3×3(gelu(conv1×1(norm(x))))))`.
//!
//! Maps have the channels last, (B,H,W,C); every stage's first block halves them.

use candle_core::{DType, Tensor};

use crate::nn::{Channels, Conv2d, LayerNorm};
use crate::ops::{self, Activation, Window};
use crate::weights::Params;
use crate::{Error, Result};

/// ε of the stem's and the stages' norms.
const EPS: f64 = 1e-6;

/// How many times wider than its output a block is inside; the width is rounded to a multiple of eight.
const EXPANSION: usize = 4;

/// Stem, stages, and the convolution to the transformer's width: sixteen times smaller than the image.
pub(super) struct MbConvStages {
    conv1: Conv2d,
    norm: LayerNorm,
    conv2: Conv2d,
    stages: Vec<Vec<MbConv>>,
    output_norm: LayerNorm,
    output: Conv2d,
}

impl MbConvStages {
    /// Reads `input`, `stages` and `output`; `widths` are the channels before the stages and of each.
    pub(super) fn new(
        params: &Params,
        channels: usize,
        widths: [usize; 3],
        depths: [usize; 2],
        hidden_size: usize,
    ) -> Result<Self> {
        let (input, output) = (params.pp("input"), params.pp("output"));
        let conv = |params: &Params, name: &str, from: usize, to: usize, stride: usize| {
            Conv2d::with_bias(&params.pp(name), from, to, Window::centred(3, stride), Channels::Dense)
        };
        let stage = |s: usize| {
            let params = params.pp("stages").pp(s);
            let block = |i: usize| {
                let place = if i == 0 { Place::First } else { Place::Later };
                MbConv::new(&params.pp(i), widths[if i == 0 { s } else { s + 1 }], widths[s + 1], place)
            };
            (0..depths[s]).map(block).collect()
        };
        Ok(Self {
            conv1: conv(&input, "conv1", channels, widths[0], 2)?,
            norm: LayerNorm::new(&input.pp("layer_norm1"), widths[0], EPS)?,
            conv2: conv(&input, "conv2", widths[0], widths[0], 1)?,
            stages: (0..depths.len()).map(stage).collect::<Result<_>>()?,
            output_norm: LayerNorm::new(&output.pp("norm"), widths[2], EPS)?,
            output: conv(&output, "proj", widths[2], hidden_size, 2)?,
        })
    }

    /// The type of the weights.
    pub(super) fn dtype(&self) -> DType {
        self.conv1.dtype()
    }

    /// # Shapes
    /// (B,H,W,C) → (B,H/16,W/16,E), rounded up.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.norm.forward(&self.conv1.forward(x)?)?;
        let mut x = self.conv2.forward(&ops::activate(&x, Activation::Gelu)?)?;
        for block in self.stages.iter().flatten() {
            x = block.forward(&x)?;
        }
        self.output.forward(&self.output_norm.forward(&x)?)
    }
}

/// Where a block stands in its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It halves the map.
    First,
    /// It keeps the map's size.
    Later,
}

/// One inverted bottleneck.
struct MbConv {
    place: Place,
    /// To the block's width, behind the pooling of the shortcut.
    expand: Option<Conv2d>,
    norm: LayerNorm,
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
}

impl MbConv {
    fn new(params: &Params, from: usize, to: usize, place: Place) -> Result<Self> {
        let inner = divisible(EXPANSION * to);
        let point = |name: &str, from: usize, to: usize| {
            Conv2d::with_bias(&params.pp(name), from, to, Window::tiling(1), Channels::Dense)
        };
        let stride = if place == Place::First { 2 } else { 1 };
        Ok(Self {
            place,
            expand: (from != to).then(|| point("shortcut.expand", from, to)).transpose()?,
            norm: LayerNorm::new(&params.pp("pre_norm"), from, EPS)?,
            conv1: point("conv1_1x1", from, inner)?,
            conv2: Conv2d::with_bias(
                &params.pp("conv2_kxk"),
                inner,
                inner,
                Window::centred(3, stride),
                Channels::Depthwise,
            )?,
            conv3: point("conv3_1x1", inner, to)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pooled = if self.place == Place::First { mean_of_three(x)? } else { x.clone() };
        let shortcut = self.expand.as_ref().map_or(Ok(pooled.clone()), |conv| conv.forward(&pooled))?;
        let inner = ops::activate(&self.conv1.forward(&self.norm.forward(x)?)?, Activation::Gelu)?;
        let inner = ops::activate(&self.conv2.forward(&inner)?, Activation::Gelu)?;
        Ok((self.conv3.forward(&inner)? + shortcut)?)
    }
}

/// The mean over windows of 3×3 places, two places from one to the next; what lies outside of the map does not count
/// (PyTorch's `AvgPool2d(3, 2, padding=1, count_include_pad=False)`).
///
/// # Shapes
/// (B,H,W,C) → (B,⌈H/2⌉,⌈W/2⌉,C).
fn mean_of_three(x: &Tensor) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    let window = Window::centred(3, 2);
    let ones = Tensor::ones((channels, 1, 3, 3), x.dtype(), x.device())?;
    let sum = ops::depthwise_conv2d(x, &ones, window)?;
    let on_map = |length: usize| -> Vec<f32> {
        let count = |i: usize| 3 - usize::from(i == 0) - usize::from(2 * i + 1 >= length);
        (0..window.count(length)).map(|i| count(i) as f32).collect()
    };
    let (rows, columns) = (on_map(height), on_map(width));
    let weights: Vec<f32> =
        rows.iter().flat_map(|row| columns.iter().map(move |column| 1.0 / (row * column))).collect();
    let weights = Tensor::from_vec(weights, (1, rows.len(), columns.len(), 1), x.device())?.to_dtype(x.dtype())?;
    sum.broadcast_mul(&weights).map_err(Error::from)
}

/// The nearest multiple of eight that is at least eight and not below nine tenths (timm's `make_divisible`).
fn divisible(size: usize) -> usize {
    let near = ((size + 4) / 8 * 8).max(8);
    if 10 * near < 9 * size { near + 8 } else { near }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_mean_leaves_out_what_lies_outside() -> Result<()> {
        let x = Tensor::arange(0f32, 20.0, &Device::Cpu)?.reshape((1, 4, 5, 1))?;
        let y = mean_of_three(&x)?;
        assert_eq!(y.dims(), [1, 2, 3, 1]);
        // torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False)(torch.arange(20.).reshape(1, 1, 4, 5))
        let expected = [3.0, 4.5, 6.0, 10.5, 12.0, 13.5];
        for (found, expected) in y.flatten_all()?.to_vec1::<f32>()?.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        Ok(())
    }

    #[test]
    fn widths_are_rounded_as_timm_does() {
        assert_eq!([4, 32, 20, 36, 11].map(divisible), [8, 32, 24, 40, 16]);
    }
}
