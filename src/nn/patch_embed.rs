//! Cutting an image into patches and embedding each: a convolution whose stride is its kernel, written as one product.

use candle_core::Tensor;

use crate::ops::Weight;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Non-overlapping patches, each projected to a token (Dosovitskiy et al. 2020, arXiv 2010.11929).
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    weight: Weight,
    bias: Option<Tensor>,
    patch_size: usize,
    num_channels: usize,
}

impl PatchEmbed {
    /// Reads `weight` (E,C,p,p) and, where `bias` says so, `bias` (E).
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(
        params: &Params,
        num_channels: usize,
        patch_size: usize,
        hidden_size: usize,
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let weight = params.weight("weight", &[hidden_size, num_channels, patch_size, patch_size], init)?;
        let bias = bias.then(|| params.get("bias", &[hidden_size], Init::ZEROS)).transpose()?;
        Ok(Self { weight, bias, patch_size, num_channels })
    }

    /// The tokens and the grid (rows, columns) they came from. Rows and columns of pixels that fill no patch are left out.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,P,E), P = ⌊H/p⌋·⌊W/p⌋.
    ///
    /// # Errors
    /// When the input is not (B,C,H,W) with the tower's C, or is smaller than one patch.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<(Tensor, (usize, usize))> {
        let &[batch, channels, height, width] = pixel_values.dims() else {
            let message = format!("expected (B,C,H,W), found shape {:?}", pixel_values.dims());
            return Err(Error::argument("pixel_values", message));
        };
        let p = self.patch_size;
        if channels != self.num_channels || height < p || width < p {
            let message = format!(
                "expected {} channels and at least {p}×{p} pixels, found shape {:?}",
                self.num_channels,
                pixel_values.dims()
            );
            return Err(Error::argument("pixel_values", message));
        }
        let (rows, columns) = (height / p, width / p);
        let pixels = pixel_values.to_dtype(self.weight.dtype())?.narrow(2, 0, rows * p)?.narrow(3, 0, columns * p)?;
        let patches = pixels
            .contiguous()?
            .reshape(&[batch, channels, rows, p, columns, p])?
            .permute([0, 2, 4, 1, 3, 5].as_slice())?
            .contiguous()?
            .reshape((batch, rows * columns, channels * p * p))?;
        Ok((self.weight.forward(&patches, self.bias.as_ref(), None)?, (rows, columns)))
    }
}
