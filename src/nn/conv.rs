//! Convolutional layers on feature maps with the channels last (B,H,W,C): [`Conv2d`], [`BatchNorm2d`], [`SqueezeExcite`].
//!
//! Parameters have the shapes that PyTorch gives them; LayerNorm, activations and linear layers take such maps as they are.

use candle_core::{DType, Tensor};

use crate::ops::{self, Activation, Window};
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Which channels a filter of [`Conv2d`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// All of them.
    Dense,
    /// One of its own; with m times as many outputs as inputs, each channel has m filters.
    Depthwise,
}

/// A convolution over a feature map.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    window: Window,
    channels: Channels,
}

impl Conv2d {
    /// Reads `weight` (O,C,k,k), or (O,1,k,k) depthwise; fresh ones start as PyTorch's `nn.Conv2d` does.
    ///
    /// # Errors
    /// When the source cannot make a tensor, or O is no multiple of C depthwise.
    pub fn new(params: &Params, input: usize, output: usize, window: Window, channels: Channels) -> Result<Self> {
        let inputs = match channels {
            Channels::Dense => input,
            Channels::Depthwise if input > 0 && output.is_multiple_of(input) => 1,
            Channels::Depthwise => {
                let message = format!("{input} input channels do not divide {output} depthwise filters");
                return Err(Error::argument("channels", message));
            }
        };
        let shape = [output, inputs, window.size, window.size];
        let weight = params.get("weight", &shape, Self::init(inputs, window))?;
        Ok(Self { weight, bias: None, window, channels })
    }

    /// The same with `bias` (O).
    ///
    /// # Errors
    /// As [`Conv2d::new`].
    pub fn with_bias(params: &Params, input: usize, output: usize, window: Window, channels: Channels) -> Result<Self> {
        let conv = Self::new(params, input, output, window, channels)?;
        let bias = params.get("bias", &[output], Self::init(conv.weight.dim(1)?, window))?;
        Ok(Self { bias: Some(bias), ..conv })
    }

    /// The type of the weights.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    fn init(inputs: usize, window: Window) -> Init {
        super::Linear::torch_init(inputs.saturating_mul(window.size * window.size))
    }

    /// # Shapes
    /// (B,H,W,C) → (B,H',W',O).
    ///
    /// # Errors
    /// When `x` has other channels or is smaller than the window.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let is_pointwise = self.window == Window::tiling(1);
        let y = match self.channels {
            Channels::Dense if is_pointwise => {
                return ops::linear(x, &self.weight.flatten_from(1)?, self.bias.as_ref());
            }
            Channels::Dense => ops::conv2d(x, &self.weight, self.window)?,
            Channels::Depthwise => ops::depthwise_conv2d(x, &self.weight, self.window)?,
        };
        self.bias.as_ref().map_or(Ok(y.clone()), |bias| ops::add_row(&y, bias))
    }
}

/// Batch normalisation by running statistics (Ioffe, Szegedy 2015, arXiv 1502.03167):
/// `y = (x − running_mean) / √(running_var + eps) · weight + bias` for every channel.
///
/// The statistics are buffers: they are read, saved and never trained, and training normalises by them too, as frozen batch
/// norms do. A batch of contrastive training thus never leaks from one item to another.
#[derive(Debug, Clone)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: f64,
}

impl BatchNorm2d {
    /// PyTorch's default `eps`.
    pub const EPS: f64 = 1e-5;

    /// Reads `weight`, `bias` and the buffers `running_mean`, `running_var`, all (C).
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, channels: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: params.get("weight", &[channels], Init::ONES)?,
            bias: params.get("bias", &[channels], Init::ZEROS)?,
            running_mean: params.buffer("running_mean", &[channels], Init::ZEROS)?,
            running_var: params.buffer("running_var", &[channels], Init::ONES)?,
            eps,
        })
    }

    /// # Shapes
    /// (…,C) → (…,C).
    ///
    /// # Errors
    /// When the last dimension of `x` is not C.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // candle's own product would leave a gradient for the statistics.
        let scale = ops::scale_row(&(&self.running_var + self.eps)?.sqrt()?.recip()?, &self.weight)?;
        let shift = (&self.bias - ops::scale_row(&self.running_mean, &scale)?)?;
        ops::add_row(&ops::scale_row(x, &scale)?, &shift)
    }
}

/// Squeeze and excitation (Hu et al. 2017, arXiv 1709.01507): `x · σ(fc2(relu(fc1(mean of the map))))`, channel by channel.
#[derive(Debug, Clone)]
pub struct SqueezeExcite {
    reduce: Conv2d,
    expand: Conv2d,
}

impl SqueezeExcite {
    /// Reads `fc1` (R,C,1,1) and `fc2` (C,R,1,1) with their biases.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, channels: usize, reduced: usize) -> Result<Self> {
        let layer = |name: &str, input, output| {
            Conv2d::with_bias(&params.pp(name), input, output, Window::tiling(1), Channels::Dense)
        };
        Ok(Self { reduce: layer("fc1", channels, reduced)?, expand: layer("fc2", reduced, channels)? })
    }

    /// # Shapes
    /// (B,H,W,C) → (B,H,W,C).
    ///
    /// # Errors
    /// When `x` has other channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, _, _, channels) = x.dims4()?;
        let squeezed = ops::activate(&self.reduce.forward(&map_mean(x)?)?, Activation::Relu)?;
        let gate = candle_nn::ops::sigmoid(&self.expand.forward(&squeezed)?)?;
        Ok(x.broadcast_mul(&gate.reshape((batch, 1, 1, channels))?)?)
    }
}

/// Pixels with the channels last, of the type of the tower's parameters.
///
/// # Shapes
/// `pixel_values` (B,C,H,W) → (B,H,W,C).
///
/// # Errors
/// When the input is not (B,C,H,W) with `channels` channels, or has a side below `smallest` pixels.
pub fn channels_last(pixel_values: &Tensor, dtype: DType, channels: usize, smallest: usize) -> Result<Tensor> {
    match *pixel_values.dims() {
        [_, found, height, width] if found == channels && height >= smallest && width >= smallest => {
            Ok(pixel_values.to_dtype(dtype)?.permute((0, 2, 3, 1))?.contiguous()?)
        }
        _ => {
            let message = format!(
                "expected (B,{channels},H,W) with at least {smallest}×{smallest} pixels, found shape {:?}",
                pixel_values.dims()
            );
            Err(Error::argument("pixel_values", message))
        }
    }
}

/// A map's places as tokens, row after row.
///
/// # Shapes
/// (B,H,W,C) → (B,H·W,C).
///
/// # Errors
/// When `x` has another rank.
pub fn map_tokens(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten(1, 2)?)
}

/// The mean over a map's places.
///
/// # Shapes
/// (B,H,W,C) → (B,C).
///
/// # Errors
/// When `x` has another rank.
pub fn map_mean(x: &Tensor) -> Result<Tensor> {
    let tokens = map_tokens(x)?;
    let (batch, length, _) = tokens.dims3()?;
    ops::mean_pool(&tokens, &vec![true; batch * length])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::weights::RandomSource;

    fn params() -> Params {
        Params::new(RandomSource::new(3, DType::F32, &Device::Cpu))
    }

    #[test]
    fn running_statistics_shift_and_scale_and_get_no_gradient() -> Result<()> {
        let source = [("weight", 3f32), ("bias", 1.0), ("running_mean", 2.0), ("running_var", 4.0)];
        let map = source.map(|(name, value)| (name.to_string(), Tensor::new(&[value], &Device::Cpu)));
        let map = map.into_iter().map(|(name, t)| Ok((name, t?))).collect::<Result<_>>()?;
        let builder = candle_nn::VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
        let norm = BatchNorm2d::new(&Params::new(crate::weights::VarBuilderSource(builder)), 1, 0.0)?;
        let y = norm.forward(&Tensor::new(&[[4f32], [2.0]], &Device::Cpu)?)?;
        assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [4.0, 1.0]);

        let params = params();
        let norm = BatchNorm2d::new(&params, 2, 1e-5)?;
        let grads = norm.forward(&Tensor::ones((1, 1, 1, 2), DType::F32, &Device::Cpu)?)?.sum_all()?.backward()?;
        let parameters = params.finish("test")?;
        for (name, tensor) in parameters.iter() {
            assert_eq!(grads.get(&tensor).is_some(), !parameters.is_buffer(name), "{name}");
        }
        Ok(())
    }

    #[test]
    fn impossible_inputs_are_refused() -> Result<()> {
        assert!(Conv2d::new(&params(), 3, 4, Window::tiling(1), Channels::Depthwise).is_err());
        let conv = Conv2d::new(&params(), 3, 4, Window::tiling(4), Channels::Dense)?;
        for shape in [[1, 3, 8, 3], [1, 8, 8, 2], [0, 2, 2, 3]] {
            assert!(conv.forward(&Tensor::zeros(&shape, DType::F32, &Device::Cpu)?).is_err(), "{shape:?}");
        }
        let pixels = Tensor::zeros((1, 3, 8, 8), DType::F32, &Device::Cpu)?;
        assert!(channels_last(&pixels, DType::F32, 3, 32).is_err());
        assert_eq!(channels_last(&pixels, DType::F32, 3, 8)?.dims(), [1, 8, 8, 3]);
        Ok(())
    }
}
