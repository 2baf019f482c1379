//! FastViT (Vasu et al. 2023, arXiv 2303.14189), the image tower of MobileCLIP (arXiv 2311.17049, 2508.20691; reference: timm's
//! `fastvit.py`): stages of blocks that mix places by small depthwise convolutions, in the last stages by attention.
//!
//! pixels (B,C,H,W) → stem (B,H/4,W/4,E₀) → stages, each but the first at half the side → last convolution (B,h,w,D) → mean →
//! pooled (B,D). Maps have their channels last; sides that are odd are rounded up.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use self::layers::{Block, Branched, BranchedConfig, DownsampleLayer, PositionLayer};
use super::maps::{FeatureMaps, MapTower, Note};
use super::{BuildImageTower, ImagePooling, ImageTower, check_depth, check_sizes};
use crate::nn::{BatchNorm2d, Channels, channels_last};
use crate::ops::Window;
use crate::weights::Params;
use crate::{Error, Result};

mod layers;

/// Sizes and choices of a FastViT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastVitConfig {
    /// The stages in their order.
    pub stages: Vec<FastVitStageConfig>,
    /// Width D of the last convolution and the pooled output; a multiple of the last stage's width.
    pub output_size: usize,
    /// Width inside the squeeze-and-excite after the last convolution.
    pub output_squeeze_size: usize,
    /// Whether the stem's convolutions have a 1×1 branch, while they have branches.
    pub stem_scale_branch: bool,
    /// Width of a head of attention.
    pub head_size: usize,
    /// The norm before attention.
    pub attention_norm: AttentionNorm,
    /// Whether convolutions have branches.
    pub form: BranchForm,
    /// Side of the images that the tower was trained with, in pixels; it takes others.
    pub image_size: usize,
    /// Colour channels C.
    pub num_channels: usize,
}

/// Sizes and choices of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastVitStageConfig {
    /// Blocks.
    pub depth: usize,
    /// Channels.
    pub width: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// What mixes places.
    pub mixer: TokenMixer,
    /// What stands before the blocks.
    pub downsample: Downsample,
    /// Side of the depthwise windows that encode positions before the blocks, if any do; odd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_kernel: Option<usize>,
}

/// What mixes the places of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenMixer {
    /// Depthwise 3×3 convolutions.
    RepMixer,
    /// Attention.
    Attention,
}

/// How a map comes to half its side before a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Downsample {
    /// It does not.
    None,
    /// A depthwise 7×7 convolution with stride 2, GELU and a 1×1 convolution.
    Convolution,
    /// The same with squeeze-and-excite before the GELU.
    SqueezeExcite {
        /// Width inside of it.
        squeeze_size: usize,
    },
}

/// The norm before attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionNorm {
    /// Batch norm.
    Batch,
    /// LayerNorm over the channels.
    Layer,
}

/// Whether the sums of branches are one convolution each already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchForm {
    /// Each branch with its batch norm, as trained.
    Branches,
    /// One convolution with a bias (timm's `inference_mode`, `reparameterize`).
    Fused,
}

impl FastVitConfig {
    fn check(&self) -> Result<()> {
        let sizes = [
            ("num_channels", self.num_channels),
            ("output_size", self.output_size),
            ("output_squeeze_size", self.output_squeeze_size),
            ("image_size", self.image_size),
        ];
        let last = self.stages.last().map_or(0, |stage| stage.width);
        check_sizes(last, 1, BatchNorm2d::EPS, &sizes)?;
        if self.stages.len() > 8 {
            return Err(Error::argument("stages", format!("{} are more than 8", self.stages.len())));
        }
        for stage in &self.stages {
            check_depth(stage.depth)?;
            let heads = match stage.mixer {
                TokenMixer::RepMixer => 1,
                TokenMixer::Attention => stage.width.checked_div(self.head_size).unwrap_or(0),
            };
            let squeeze_size = match stage.downsample {
                Downsample::SqueezeExcite { squeeze_size } => squeeze_size,
                Downsample::None | Downsample::Convolution => 1,
            };
            let sizes = [("intermediate_size", stage.intermediate_size), ("squeeze_size", squeeze_size)];
            check_sizes(stage.width, heads, BatchNorm2d::EPS, &sizes)?;
            if stage.position_kernel.is_some_and(|size| size.is_multiple_of(2) || size > 1 << 8) {
                return Err(Error::argument("position_kernel", "is not odd, or above 255"));
            }
        }
        Ok(())
    }
}

/// The built tower.
pub(super) struct FastVit {
    config: FastVitConfig,
    stem: [Branched; 3],
    stages: Vec<Stage>,
    output: Branched,
}

struct Stage {
    downsample: Option<DownsampleLayer>,
    position: Option<PositionLayer>,
    blocks: Vec<Block>,
}

impl Stage {
    fn new(params: &Params, config: &FastVitConfig, index: usize) -> Result<Self> {
        let stage = &config.stages[index];
        let before = config.stages[index.saturating_sub(1)].width;
        let squeeze_size = match stage.downsample {
            Downsample::SqueezeExcite { squeeze_size } => Some(squeeze_size),
            Downsample::None if before != stage.width => {
                let message = format!("stage {index} widens {before} to {} channels without a layer", stage.width);
                return Err(Error::argument("downsample", message));
            }
            Downsample::None | Downsample::Convolution => None,
        };
        let downsample = (stage.downsample != Downsample::None).then(|| {
            DownsampleLayer::new(&params.pp("downsample.proj"), before, stage.width, squeeze_size, config.form)
        });
        let position = stage
            .position_kernel
            .map(|size| PositionLayer::new(&params.pp("pos_emb"), stage.width, Window::centred(size, 1), config.form));
        let blocks = (0..stage.depth).map(|block| Block::new(&params.pp("blocks").pp(block), config, stage));
        Ok(Self {
            downsample: downsample.transpose()?,
            position: position.transpose()?,
            blocks: blocks.collect::<Result<_>>()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.downsample.as_ref().map_or(Ok(x.clone()), |layer| layer.forward(x))?;
        let x = self.position.as_ref().map_or(Ok(x.clone()), |layer| layer.forward(&x))?;
        self.blocks.iter().try_fold(x, |x, block| block.forward(&x))
    }
}

impl FastVit {
    pub(super) fn new(params: &Params, config: &FastVitConfig, pooling: ImagePooling) -> Result<Self> {
        config.check()?;
        if pooling != ImagePooling::Mean {
            return Err(Error::argument("image pooling", format!("'{pooling}': FastViT has its mean only")));
        }
        let (first, last) = (config.stages[0].width, config.stages[config.stages.len() - 1].width);
        let stem = |index: usize, input, window, channels| {
            let branched = BranchedConfig::new(input, first, window, channels).scale(config.stem_scale_branch);
            Branched::new(&params.pp("stem").pp(index), &branched, config.form)
        };
        let output = BranchedConfig::new(last, config.output_size, Window::centred(3, 1), Channels::Depthwise);
        let output = output.squeezed(config.output_squeeze_size);
        let stages = (0..config.stages.len()).map(|index| Stage::new(&params.pp("stages").pp(index), config, index));
        Ok(Self {
            stem: [
                stem(0, config.num_channels, Window::centred(3, 2), Channels::Dense)?,
                stem(1, first, Window::centred(3, 2), Channels::Depthwise)?,
                stem(2, first, Window::tiling(1), Channels::Dense)?,
            ],
            stages: stages.collect::<Result<_>>()?,
            output: Branched::new(&params.pp("final_conv"), &output, config.form)?,
            config: config.clone(),
        })
    }
}

impl BuildImageTower for FastVitConfig {
    fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>> {
        Ok(Box::new(MapTower(FastVit::new(params, self, pooling)?)))
    }

    fn pooled_size(&self, _: ImagePooling) -> usize {
        self.output_size
    }

    fn image_size(&self) -> usize {
        self.image_size
    }
}

impl FeatureMaps for FastVit {
    fn features(&self, pixel_values: &Tensor, note: Note<'_>) -> Result<Tensor> {
        let mut x = channels_last(pixel_values, self.output.dtype(), self.config.num_channels, 1)?;
        for layer in &self.stem {
            x = layer.forward(&x)?;
        }
        note(&x)?;
        for stage in &self.stages {
            x = stage.forward(&x)?;
            note(&x)?;
        }
        self.output.forward(&x)
    }
}
