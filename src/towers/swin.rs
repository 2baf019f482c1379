//! Swin (Liu et al. 2021, arXiv 2103.14030; reference: timm's `swin_transformer.py`): attention inside of windows, which every
//! second block moves by half their side; between stages two by two patches become one.
//!
//! pixels (B,C,H,W) → patches (B,H/p,W/p,E₀) → stages, each but the first at half the side and twice the width → norm → mean →
//! pooled (B,E₃). Maps have their channels last.

mod windows;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::maps::{FeatureMaps, MapTower, Note};
use super::{BuildImageTower, ImagePooling, ImageTower, check_depth, check_sizes};
use crate::nn::{
    Attend, Attention, AttentionConfig, BlockConfig, LayerNorm, Linear, Mlp, MlpKind, NormPosition, PatchEmbed,
    QkvBias, pair_biases, way_count,
};
use crate::ops::{Activation, AttentionMask};
use crate::weights::{Init, Params};
use crate::{Error, Result};
use windows::Windows;

/// Sizes of a Swin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinConfig {
    /// The stages in their order.
    pub stages: Vec<SwinStageConfig>,
    /// Width E₀ of the first stage; every further one is twice as wide.
    pub hidden_size: usize,
    /// Side p of a patch in pixels.
    pub patch_size: usize,
    /// Side of the images that the tower is made for, in pixels; it takes no others.
    pub image_size: usize,
    /// Colour channels C.
    pub num_channels: usize,
    /// Added to the variance in each LayerNorm.
    pub layer_norm_eps: f64,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// Sizes of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinStageConfig {
    /// Blocks.
    pub depth: usize,
    /// Heads; they divide the stage's width.
    pub num_attention_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Side of a window in patches; one that is not smaller than the stage's map is never moved.
    pub window_size: usize,
}

impl SwinConfig {
    /// Width of stage `index`, and of the pooled output for the last.
    fn width(&self, index: usize) -> usize {
        self.hidden_size << index
    }

    /// Width of the pooled output.
    #[must_use]
    pub fn pooled_size(&self) -> usize {
        self.width(self.stages.len().saturating_sub(1))
    }

    /// Side of the map of stage `index` in patches, for images of `image_size`.
    fn side(&self, index: usize) -> usize {
        (0..index).fold(self.image_size / self.patch_size, |side, _| side.div_ceil(2))
    }

    fn check(&self) -> Result<()> {
        if self.stages.is_empty() || self.stages.len() > 8 || self.hidden_size > 1 << 16 {
            let message = format!("{} stages, the first {} wide", self.stages.len(), self.hidden_size);
            return Err(Error::argument("stages", message));
        }
        let sizes = [("patch_size", self.patch_size), ("num_channels", self.num_channels)];
        check_sizes(self.hidden_size, 1, self.layer_norm_eps, &sizes)?;
        if self.image_size < self.patch_size || self.image_size > 1 << 16 {
            let message = format!("{} is smaller than patch_size {} or above 65536", self.image_size, self.patch_size);
            return Err(Error::argument("image_size", message));
        }
        for (index, stage) in self.stages.iter().enumerate() {
            check_depth(stage.depth)?;
            if !(1..=1 << 8).contains(&stage.window_size) {
                let message = format!("{} is not between 1 and 256", stage.window_size);
                return Err(Error::argument("window_size", message));
            }
            let sizes = [("intermediate_size", stage.intermediate_size)];
            check_sizes(self.width(index), stage.num_attention_heads, self.layer_norm_eps, &sizes)?;
        }
        Ok(())
    }
}

/// The built tower.
pub(super) struct Swin {
    /// Side in patches of the map that the windows are made for.
    side: usize,
    patch_embed: PatchEmbed,
    patch_norm: LayerNorm,
    stages: Vec<Stage>,
    output_norm: LayerNorm,
}

struct Stage {
    downsample: Option<Downsample>,
    blocks: Vec<Block>,
}

/// Two by two patches side by side, normed, projected to twice a patch's width.
struct Downsample {
    norm: LayerNorm,
    reduction: Linear,
}

struct Block {
    window: usize,
    /// By how many patches the windows are moved.
    shift: usize,
    layer_norm1: LayerNorm,
    attention: Attention,
    /// One row of biases a way between two patches of a window.
    biases: Tensor,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Downsample {
    fn new(params: &Params, width: usize, eps: f64, init: Init) -> Result<Self> {
        Ok(Self {
            norm: LayerNorm::new(&params.pp("norm"), 4 * width, eps)?,
            reduction: Linear::without_bias(&params.pp("reduction"), 4 * width, 2 * width, init)?,
        })
    }

    /// (B,H,W,E) → (B,⌈H/2⌉,⌈W/2⌉,2E); an odd side gets zeros.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, height, width, size) = x.dims4()?;
        let x = x.pad_with_zeros(1, 0, height % 2)?.pad_with_zeros(2, 0, width % 2)?;
        let (height, width) = (height.div_ceil(2), width.div_ceil(2));
        // Of the four, the row changes first.
        let x = x.reshape(&[batch, height, 2, width, 2, size])?.permute([0, 1, 3, 4, 2, 5].as_slice())?;
        let x = x.contiguous()?.reshape((batch, height, width, 4 * size))?;
        self.reduction.forward(&self.norm.forward(&x)?)
    }
}

impl Block {
    fn new(params: &Params, config: &SwinConfig, index: usize, place: usize) -> Result<Self> {
        let (stage, size, eps) = (&config.stages[index], config.width(index), config.layer_norm_eps);
        let init = Init::Normal { std: config.initializer_range as f32 };
        let heads = stage.num_attention_heads;
        let blocks = BlockConfig {
            hidden_size: size,
            num_hidden_layers: stage.depth,
            num_attention_heads: heads,
            intermediate_size: stage.intermediate_size,
            hidden_act: Activation::Gelu,
            layer_norm_eps: eps,
            norm: NormPosition::Pre,
            mlp: MlpKind::Plain,
            qkv_bias: QkvBias::All,
            extras: Vec::new(),
            layer_scale: None,
            initializer_range: config.initializer_range as f32,
        };
        let attention = AttentionConfig {
            hidden_size: size,
            key_size: size,
            num_attention_heads: heads,
            qkv_bias: QkvBias::All,
            extras: &[],
            layer_norm_eps: eps,
            init,
        };
        let window = stage.window_size;
        let moves = place % 2 == 1 && config.side(index) > window;
        let self_attn = params.pp("self_attn");
        Ok(Self {
            window,
            shift: if moves { window / 2 } else { 0 },
            layer_norm1: LayerNorm::new(&params.pp("layer_norm1"), size, eps)?,
            attention: Attention::new(&self_attn, &attention)?,
            biases: self_attn.get("relative_position_bias_table", &[way_count((window, window)), heads], init)?,
            layer_norm2: LayerNorm::new(&params.pp("layer_norm2"), size, eps)?,
            mlp: Mlp::new(&params.pp("mlp"), &blocks)?,
        })
    }

    /// (B,H,W,E) → (B,H,W,E).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let windows = Windows::new(x.dims4()?, self.window, self.shift);
        let biases = pair_biases(&self.biases, (self.window, self.window))?;
        let attended = windows.each(&self.layer_norm1.forward(x)?, |x, hidden| {
            let biases = match hidden {
                Some(hidden) => biases.broadcast_add(&hidden.to_dtype(biases.dtype())?)?,
                None => biases.clone(),
            };
            let mask = AttentionMask::none().with_bias(biases)?;
            self.attention.forward(x, x, Attend::from(&mask))
        })?;
        let x = (x + attended)?;
        Ok((&x + self.mlp.forward(&self.layer_norm2.forward(&x)?)?)?)
    }
}

impl Stage {
    fn new(params: &Params, config: &SwinConfig, index: usize) -> Result<Self> {
        let init = Init::Normal { std: config.initializer_range as f32 };
        let before = index.checked_sub(1).map(|before| config.width(before));
        let downsample =
            before.map(|width| Downsample::new(&params.pp("downsample"), width, config.layer_norm_eps, init));
        let block = |place| Block::new(&params.pp("blocks").pp(place), config, index, place);
        let blocks = (0..config.stages[index].depth).map(block).collect::<Result<_>>()?;
        Ok(Self { downsample: downsample.transpose()?, blocks })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.downsample.as_ref().map_or(Ok(x.clone()), |downsample| downsample.forward(x))?;
        self.blocks.iter().try_fold(x, |x, block| block.forward(&x))
    }
}

impl Swin {
    pub(super) fn new(params: &Params, config: &SwinConfig, pooling: ImagePooling) -> Result<Self> {
        config.check()?;
        if pooling != ImagePooling::Mean {
            return Err(Error::argument("image pooling", format!("'{pooling}': Swin has its mean only")));
        }
        let (eps, init) = (config.layer_norm_eps, Init::Normal { std: config.initializer_range as f32 });
        let embeddings = params.pp("embeddings");
        let (patch, channels, size) = (config.patch_size, config.num_channels, config.hidden_size);
        let stages = (0..config.stages.len()).map(|index| Stage::new(&params.pp("stages").pp(index), config, index));
        Ok(Self {
            side: config.side(0),
            patch_embed: PatchEmbed::new(&embeddings.pp("patch_embedding"), channels, patch, size, true, init)?,
            patch_norm: LayerNorm::new(&embeddings.pp("norm"), size, eps)?,
            stages: stages.collect::<Result<_>>()?,
            output_norm: LayerNorm::new(&params.pp("post_layernorm"), config.pooled_size(), eps)?,
        })
    }
}

impl BuildImageTower for SwinConfig {
    fn build(&self, params: &Params, pooling: ImagePooling) -> Result<Box<dyn ImageTower>> {
        Ok(Box::new(MapTower(Swin::new(params, self, pooling)?)))
    }

    fn pooled_size(&self, _: ImagePooling) -> usize {
        SwinConfig::pooled_size(self)
    }

    fn image_size(&self) -> usize {
        self.image_size
    }
}

impl FeatureMaps for Swin {
    fn features(&self, pixel_values: &Tensor, note: Note<'_>) -> Result<Tensor> {
        let (patches, (rows, columns)) = self.patch_embed.forward(pixel_values)?;
        let (batch, _, size) = patches.dims3()?;
        // For another map timm would scale the windows, and with them the biases.
        if (rows, columns) != (self.side, self.side) {
            let message = format!("has {rows}×{columns} patches, this Swin is made for {}×{}", self.side, self.side);
            return Err(Error::argument("pixel_values", message));
        }
        let mut x = self.patch_norm.forward(&patches)?.reshape((batch, rows, columns, size))?;
        note(&x)?;
        for stage in &self.stages {
            x = stage.forward(&x)?;
            note(&x)?;
        }
        self.output_norm.forward(&x)
    }
}
