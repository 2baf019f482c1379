//! ConvNeXt (Liu et al. 2022, arXiv 2201.03545; reference: timm's `convnext.py`): stages of residual blocks, each a 7×7
//! depthwise convolution, a LayerNorm over channels, and an MLP.
//!
//! pixels (B,C,H,W) → stem (B,H/p,W/p,E₀) → four stages, each but the first at half the side → map (B,H/8p,W/8p,E₃) → mean →
//! norm → pooled (B,E₃). Maps have their channels last.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::maps::{FeatureMaps, MapTower, Note};
use super::{BuildImageTower, ImagePooling, ImageTower, check_depth, check_sizes};
use crate::nn::{Channels, Conv2d, LayerNorm, Linear, channels_last, map_mean};
use crate::ops::{self, Activation, Window};
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes of a ConvNeXt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvNextConfig {
    /// The stages in their order.
    pub stages: Vec<ConvNextStageConfig>,
    /// Side p in pixels of the stem's patches.
    pub patch_size: usize,
    /// Side of the depthwise windows; odd.
    pub kernel_size: usize,
    /// Added to the variance in each LayerNorm.
    pub layer_norm_eps: f64,
    /// Side of the images that the tower was trained with, in pixels; it takes others.
    pub image_size: usize,
    /// Colour channels C.
    pub num_channels: usize,
}

/// Sizes of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvNextStageConfig {
    /// Blocks.
    pub depth: usize,
    /// Channels.
    pub width: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
}

impl ConvNextConfig {
    /// Channels of the last map, which is also the width of the pooled output.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.stages.last().map_or(0, |stage| stage.width)
    }

    fn check(&self) -> Result<()> {
        let sizes =
            [("num_channels", self.num_channels), ("patch_size", self.patch_size), ("image_size", self.image_size)];
        check_sizes(self.hidden_size(), 1, self.layer_norm_eps, &sizes)?;
        if self.kernel_size.is_multiple_of(2) || self.kernel_size > 1 << 8 || self.patch_size > 1 << 8 {
            let message = format!("{} is not odd, or patch_size {} is too large", self.kernel_size, self.patch_size);
            return Err(Error::argument("kernel_size", message));
        }
        if self.stages.len() > 8 {
            return Err(Error::argument("stages", format!("{} are more than 8", self.stages.len())));
        }
        self.stages.iter().try_for_each(|stage| {
            check_depth(stage.depth)?;
            check_sizes(stage.width, 1, self.layer_norm_eps, &[("intermediate_size", stage.intermediate_size)])
        })
    }
}

/// The built tower.
pub(super) struct ConvNext {
    config: ConvNextConfig,
    stem: Conv2d,
    stem_norm: LayerNorm,
    stages: Vec<Stage>,
    head_norm: LayerNorm,
}

struct Stage {
    downsample: Option<(LayerNorm, Conv2d)>,
    blocks: Vec<Block>,
}

struct Block {
    conv: Conv2d,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    scale: Tensor,
}

/// Standard deviation of fresh weights inside of the MLPs.
const INIT: Init = Init::Normal { std: 0.02 };
/// Where a fresh LayerScale starts.
const SCALE: Init = Init::Const(1e-6);

impl Block {
    fn new(params: &Params, config: &ConvNextConfig, stage: &ConvNextStageConfig) -> Result<Self> {
        let (width, inside) = (stage.width, stage.intermediate_size);
        let window = Window::centred(config.kernel_size, 1);
        Ok(Self {
            conv: Conv2d::with_bias(&params.pp("conv_dw"), width, width, window, Channels::Depthwise)?,
            norm: LayerNorm::new(&params.pp("norm"), width, config.layer_norm_eps)?,
            fc1: Linear::new(&params.pp("mlp.fc1"), width, inside, INIT)?,
            fc2: Linear::new(&params.pp("mlp.fc2"), inside, width, INIT)?,
            scale: params.get("gamma", &[width], SCALE)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.norm.forward(&self.conv.forward(x)?)?;
        let y = self.fc2.forward(&self.fc1.forward_activated(&normed, Activation::Gelu)?)?;
        Ok((ops::scale_row(&y, &self.scale)? + x)?)
    }
}

impl Stage {
    fn new(params: &Params, config: &ConvNextConfig, index: usize) -> Result<Self> {
        let stage = &config.stages[index];
        let before = index.checked_sub(1).map(|before| config.stages[before].width);
        let downsample = before.map(|before| {
            let norm = LayerNorm::new(&params.pp("downsample.0"), before, config.layer_norm_eps)?;
            let window = Window::tiling(2);
            let conv = Conv2d::with_bias(&params.pp("downsample.1"), before, stage.width, window, Channels::Dense)?;
            Ok::<_, Error>((norm, conv))
        });
        let blocks = (0..stage.depth).map(|block| Block::new(&params.pp("blocks").pp(block), config, stage));
        Ok(Self { downsample: downsample.transpose()?, blocks: blocks.collect::<Result<_>>()? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = match &self.downsample {
            Some((norm, conv)) => conv.forward(&norm.forward(x)?)?,
            None => x.clone(),
        };
        self.blocks.iter().try_fold(x, |x, block| block.forward(&x))
    }
}

impl ConvNext {
    pub(super) fn new(params: &Params, config: &ConvNextConfig, pooling: ImagePooling) -> Result<Self> {
        config.check()?;
        if pooling != ImagePooling::Mean {
            return Err(Error::argument("image pooling", format!("'{pooling}': ConvNeXt has its mean only")));
        }
        let (width, window) = (config.stages[0].width, Window::tiling(config.patch_size));
        let stages = (0..config.stages.len()).map(|index| Stage::new(&params.pp("stages").pp(index), config, index));
        Ok(Self {
            stem: Conv2d::with_bias(&params.pp("stem.0"), config.num_channels, width, window, Channels::Dense)?,
            stem_norm: LayerNorm::new(&params.pp("stem.1"), width, config.layer_norm_eps)?,
            stages: stages.collect::<Result<_>>()?,
            head_norm: LayerNorm::new(&params.pp("head.norm"), config.hidden_size(), config.layer_norm_eps)?,
            config: config.clone(),
        })
    }
}

impl BuildImageTower for ConvNextConfig {
    fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>> {
        Ok(Box::new(MapTower(ConvNext::new(params, self, pooling)?)))
    }

    fn pooled_size(&self, _: ImagePooling) -> usize {
        self.hidden_size()
    }

    fn image_size(&self) -> usize {
        self.image_size
    }
}

impl FeatureMaps for ConvNext {
    fn features(&self, pixel_values: &Tensor, note: Note<'_>) -> Result<Tensor> {
        let smallest = self.config.patch_size << (self.stages.len() - 1);
        let x = channels_last(pixel_values, self.stem.dtype(), self.config.num_channels, smallest)?;
        let mut x = self.stem_norm.forward(&self.stem.forward(&x)?)?;
        note(&x)?;
        for stage in &self.stages {
            x = stage.forward(&x)?;
            note(&x)?;
        }
        Ok(x)
    }

    fn pool(&self, map: &Tensor) -> Result<Tensor> {
        self.head_norm.forward(&map_mean(map)?)
    }
}
