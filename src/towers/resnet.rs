//! CLIP's ResNet (Radford et al. 2021, arXiv 2103.00020, §2.4; reference: open_clip's `modified_resnet.py`): a stem of three
//! convolutions, bottlenecks that average before they go to half the side, and attention as the last pooling.
//!
//! pixels (B,C,H,W) → stem (B,H/4,W/4,w) → four stages → map (B,H/32,W/32,32w) → mean and places as tokens → one query, the
//! mean → pooled (B,D). Maps have their channels last.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::maps::{FeatureMaps, MapTower, Note};
use super::{BuildImageTower, ImagePooling, ImageTower, check_depth, check_sizes};
use crate::nn::{
    BatchNorm2d, Channels, Conv2d, Linear, PositionResize, channels_last, interpolate_positions, map_mean, map_tokens,
};
use crate::ops::{self, Activation, AttentionMask, Window};
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes of CLIP's ResNet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Bottlenecks of each of the four stages.
    pub depths: [usize; 4],
    /// Channels w after the stem; the last map has 32 times as many.
    pub width: usize,
    /// Heads of the attention that pools; they divide 32·w.
    pub num_attention_heads: usize,
    /// Width D of the pooled output.
    pub output_size: usize,
    /// Side in pixels that the position embeddings are made for; other sizes interpolate them.
    pub image_size: usize,
    /// Colour channels C.
    pub num_channels: usize,
}

impl ResNetConfig {
    /// How many times smaller than the image the last map is.
    const REDUCTION: usize = 32;
    /// How many times wider a bottleneck's output is than its inside.
    const EXPANSION: usize = 4;

    /// Width 32·w of the last map.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.width.saturating_mul(8 * Self::EXPANSION)
    }

    fn check(&self) -> Result<()> {
        let sizes = [
            ("width", self.width / 2),
            ("output_size", self.output_size),
            ("num_channels", self.num_channels),
            ("image_size", self.image_size / Self::REDUCTION),
        ];
        check_sizes(self.hidden_size(), self.num_attention_heads, BatchNorm2d::EPS, &sizes)?;
        self.depths.iter().try_for_each(|&depth| check_depth(depth))
    }
}

/// The built tower.
pub(super) struct ResNet {
    config: ResNetConfig,
    stem: [Normed; 3],
    stages: Vec<Vec<Bottleneck>>,
    pool: AttentionPool,
}

/// A convolution and its batch norm.
struct Normed {
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl Normed {
    fn new(conv: &Params, norm: &Params, input: usize, output: usize, window: Window) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(conv, input, output, window, Channels::Dense)?,
            norm: BatchNorm2d::new(norm, output, BatchNorm2d::EPS)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?)
    }

    fn forward_relu(&self, x: &Tensor) -> Result<Tensor> {
        ops::activate(&self.forward(x)?, Activation::Relu)
    }
}

/// 1×1, 3×3, mean of squares where the side halves, 1×1; around it a shortcut that is averaged and widened where need be.
struct Bottleneck {
    reduce: Normed,
    conv: Normed,
    expand: Normed,
    shortcut: Option<Normed>,
    stride: usize,
}

impl Bottleneck {
    fn new(params: &Params, input: usize, width: usize, stride: usize) -> Result<Self> {
        let output = width * ResNetConfig::EXPANSION;
        let layer = |conv: &str, norm: &str, input, output, window| {
            Normed::new(&params.pp(conv), &params.pp(norm), input, output, window)
        };
        let pointwise = Window::tiling(1);
        Ok(Self {
            reduce: layer("conv1", "bn1", input, width, pointwise)?,
            conv: layer("conv2", "bn2", width, width, Window::centred(3, 1))?,
            expand: layer("conv3", "bn3", width, output, pointwise)?,
            shortcut: (stride > 1 || input != output)
                .then(|| layer("downsample.0", "downsample.1", input, output, pointwise))
                .transpose()?,
            stride,
        })
    }

    fn halved(&self, x: &Tensor) -> Result<Tensor> {
        if self.stride > 1 { ops::average_pool2d(x, self.stride) } else { Ok(x.clone()) }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inside = self.conv.forward_relu(&self.reduce.forward_relu(x)?)?;
        let y = self.expand.forward(&self.halved(&inside)?)?;
        let around = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&self.halved(x)?)?,
            None => x.clone(),
        };
        ops::activate(&(y + around)?, Activation::Relu)
    }
}

/// Attention over a map's mean and its places, with the mean as the only query.
struct AttentionPool {
    positions: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

impl AttentionPool {
    fn new(params: &Params, config: &ResNetConfig) -> Result<Self> {
        let (size, side) = (config.hidden_size(), config.image_size / ResNetConfig::REDUCTION);
        let init = Init::Normal { std: 1.0 / (size as f32).sqrt() };
        let layer = |name: &str, output| Linear::new(&params.pp(name), size, output, init);
        Ok(Self {
            positions: params.get("positional_embedding", &[side * side + 1, size], init)?,
            query: layer("q_proj", size)?,
            key: layer("k_proj", size)?,
            value: layer("v_proj", size)?,
            output: layer("c_proj", config.output_size)?,
            heads: config.num_attention_heads,
        })
    }

    /// (B,H,W,E) → (B,D).
    fn forward(&self, map: &Tensor) -> Result<Tensor> {
        let (_, rows, columns, _) = map.dims4()?;
        let tokens = Tensor::cat(&[map_mean(map)?.unsqueeze(1)?, map_tokens(map)?], 1)?;
        let positions = interpolate_positions(&self.positions, 1, (rows, columns), PositionResize::BicubicAntialias)?;
        let tokens = ops::add_row(&tokens, &positions)?;
        let query = self.query.forward(&tokens.narrow(1, 0, 1)?.contiguous()?)?;
        let (key, value) = (self.key.forward(&tokens)?, self.value.forward(&tokens)?);
        let pooled = ops::attention(&query, &key, &value, self.heads, &AttentionMask::none())?;
        self.output.forward(&pooled.squeeze(1)?)
    }
}

impl ResNet {
    pub(super) fn new(params: &Params, config: &ResNetConfig, pooling: ImagePooling) -> Result<Self> {
        config.check()?;
        if pooling != ImagePooling::Pooler {
            return Err(Error::argument("image pooling", format!("'{pooling}': CLIP's ResNet has its pooler only")));
        }
        let (width, half) = (config.width, config.width / 2);
        let stem = |index: usize, input, output, window| {
            let (conv, norm) = (format!("conv{index}"), format!("bn{index}"));
            Normed::new(&params.pp(conv), &params.pp(norm), input, output, window)
        };
        let mut input = width;
        let mut stages = Vec::with_capacity(config.depths.len());
        for (index, &depth) in config.depths.iter().enumerate() {
            let inside = width << index;
            let params = params.pp(format!("layer{}", index + 1));
            let mut blocks = Vec::with_capacity(depth);
            for block in 0..depth {
                let stride = if index > 0 && block == 0 { 2 } else { 1 };
                blocks.push(Bottleneck::new(&params.pp(block), input, inside, stride)?);
                input = inside * ResNetConfig::EXPANSION;
            }
            stages.push(blocks);
        }
        Ok(Self {
            stem: [
                stem(1, config.num_channels, half, Window::centred(3, 2))?,
                stem(2, half, half, Window::centred(3, 1))?,
                stem(3, half, width, Window::centred(3, 1))?,
            ],
            stages,
            pool: AttentionPool::new(&params.pp("attnpool"), config)?,
            config: config.clone(),
        })
    }
}

impl BuildImageTower for ResNetConfig {
    fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>> {
        Ok(Box::new(MapTower(ResNet::new(params, self, pooling)?)))
    }

    fn pooled_size(&self, _: ImagePooling) -> usize {
        self.output_size
    }

    fn image_size(&self) -> usize {
        self.image_size
    }
}

impl FeatureMaps for ResNet {
    fn features(&self, pixel_values: &Tensor, note: Note<'_>) -> Result<Tensor> {
        let dtype = self.stem[0].conv.dtype();
        let mut x = channels_last(pixel_values, dtype, self.config.num_channels, ResNetConfig::REDUCTION)?;
        for layer in &self.stem {
            x = layer.forward_relu(&x)?;
        }
        x = ops::average_pool2d(&x, 2)?;
        note(&x)?;
        for stage in &self.stages {
            x = stage.iter().try_fold(x, |x, block| block.forward(&x))?;
            note(&x)?;
        }
        Ok(x)
    }

    fn pool(&self, map: &Tensor) -> Result<Tensor> {
        self.pool.forward(map)
    }
}
