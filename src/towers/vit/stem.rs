//! From pixels to patches: one convolution, or the convolutions of a hybrid.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::config::VitConfig;
use super::mbconv::MbConvStages;
use crate::nn::{BatchNorm2d, Channels, Conv2d, PatchEmbed, channels_last, map_tokens};
use crate::ops::{self, Activation, Window};
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// How pixels become patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchStem {
    /// One convolution whose stride is its kernel.
    #[default]
    Patches,
    /// MobileCLIP-B's: convolutions of 4, 2 and 2 pixels side by side, `inner` channels between them, batch norm and GELU after
    /// the first two (reference: `ConvStem` of timm's `vision_transformer_hybrid.py`). Patches are 16 pixels wide.
    MobileClip {
        /// Channels of the first two convolutions.
        inner: usize,
    },
    /// ViTamin's: two stages of inverted bottlenecks, then a convolution (Chen et al. 2024, arXiv 2404.02132; reference:
    /// `MbConvStages` of timm's `vitamin.py`). Patches are 16 pixels wide.
    Vitamin {
        /// Channels before the stages, and of each.
        widths: [usize; 3],
        /// Blocks of each stage.
        depths: [usize; 2],
    },
}

/// What the hybrids' strides come to.
const HYBRID_PATCH: usize = 16;

impl PatchStem {
    /// Refuses sizes that cannot be.
    pub(super) fn check(&self, patch_size: usize) -> Result<()> {
        let sizes: &[usize] = match self {
            Self::Patches => return Ok(()),
            Self::MobileClip { inner } => std::slice::from_ref(inner),
            Self::Vitamin { widths, depths } => {
                if depths.iter().any(|&depth| depth == 0 || depth > 1 << 10) {
                    return Err(Error::argument("stem", format!("{depths:?} blocks; a stage has one or more")));
                }
                widths
            }
        };
        if patch_size != HYBRID_PATCH || sizes.iter().any(|&size| size == 0 || size > 1 << 16) {
            let message =
                format!("{self:?} with patches of {patch_size}; it has channels, and patches of {HYBRID_PATCH}");
            return Err(Error::argument("stem", message));
        }
        Ok(())
    }
}

/// The built stem.
pub(super) enum Stem {
    Patches(PatchEmbed),
    Hybrid { channels: usize, backbone: Backbone },
}

/// The convolutions of a hybrid.
pub(super) enum Backbone {
    MobileClip(Box<MobileClipStem>),
    Vitamin(Box<MbConvStages>),
}

/// MobileCLIP-B's three convolutions, two of them with a norm.
pub(super) struct MobileClipStem {
    first: (Conv2d, BatchNorm2d),
    second: (Conv2d, BatchNorm2d),
    last: Conv2d,
}

impl MobileClipStem {
    /// (B,H,W,C) → (B,H/16,W/16,E).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let layer = |(conv, norm): &(Conv2d, BatchNorm2d), x: &Tensor| {
            ops::activate(&norm.forward(&conv.forward(x)?)?, Activation::Gelu)
        };
        self.last.forward(&layer(&self.second, &layer(&self.first, x)?)?)
    }
}

impl Stem {
    /// Reads `patch_embedding`, or what is below `stem`.
    pub(super) fn new(embeddings: &Params, config: &VitConfig, init: Init) -> Result<Self> {
        let (channels, size) = (config.num_channels, config.hidden_size);
        let params = embeddings.pp("stem");
        let backbone = match config.stem {
            PatchStem::Patches => {
                let params = embeddings.pp("patch_embedding");
                let (patch, bias) = (config.patch_size, config.patch_bias);
                return Ok(Self::Patches(PatchEmbed::new(&params, channels, patch, size, bias, init)?));
            }
            PatchStem::MobileClip { inner } => {
                let layer = |i: usize, input: usize, window: Window| -> Result<_> {
                    let conv = Conv2d::new(&params.pp(i).pp("conv"), input, inner, window, Channels::Dense)?;
                    Ok((conv, BatchNorm2d::new(&params.pp(i).pp("bn"), inner, BatchNorm2d::EPS)?))
                };
                let last = params.pp(2).pp("conv");
                Backbone::MobileClip(Box::new(MobileClipStem {
                    first: layer(0, channels, Window::tiling(4))?,
                    second: layer(1, inner, Window::tiling(2))?,
                    last: Conv2d::with_bias(&last, inner, size, Window::tiling(2), Channels::Dense)?,
                }))
            }
            PatchStem::Vitamin { widths, depths } => {
                Backbone::Vitamin(Box::new(MbConvStages::new(&params, channels, widths, depths, size)?))
            }
        };
        Ok(Self::Hybrid { channels, backbone })
    }

    /// The patches and the grid (rows, columns) they came from.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,P,E).
    pub(super) fn forward(&self, pixel_values: &Tensor) -> Result<(Tensor, (usize, usize))> {
        let (channels, backbone) = match self {
            Self::Patches(patches) => return patches.forward(pixel_values),
            Self::Hybrid { channels, backbone } => (*channels, backbone),
        };
        let map = match backbone {
            Backbone::MobileClip(stem) => {
                stem.forward(&channels_last(pixel_values, stem.last.dtype(), channels, HYBRID_PATCH)?)?
            }
            Backbone::Vitamin(stages) => {
                stages.forward(&channels_last(pixel_values, stages.dtype(), channels, HYBRID_PATCH)?)?
            }
        };
        let (_, rows, columns, _) = map.dims4()?;
        Ok((map_tokens(&map)?, (rows, columns)))
    }
}
