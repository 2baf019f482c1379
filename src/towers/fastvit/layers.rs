//! FastViT's layers, each in two forms: branches with their batch norms, summed, or the one convolution that they come to.
//!
//! A branched convolution (MobileOne, Vasu et al. 2022, arXiv 2206.04040) is `bn(k×k) + bn(1×1) + bn(x)`, as far as sizes allow.

use candle_core::{DType, Tensor};

use super::{AttentionNorm, BranchForm, FastVitConfig, FastVitStageConfig, TokenMixer};
use crate::Result;
use crate::nn::{BatchNorm2d, Channels, Conv2d, LayerNorm, Linear, SqueezeExcite, map_tokens};
use crate::ops::{self, Activation, AttentionMask, Window};
use crate::weights::{Init, Params};

/// The activation of every layer.
const ACTIVATION: Activation = Activation::Gelu;
/// Standard deviation of fresh linear layers.
const INIT: Init = Init::Normal { std: 0.02 };
/// Where a fresh LayerScale starts.
const SCALE: Init = Init::Const(1e-5);
/// Side of the windows that mix places.
const MIXER: usize = 3;
/// Side of the windows in front of an MLP, and of those that halve a map.
const LARGE: usize = 7;
/// Added to the variance by the LayerNorm before attention.
const LAYER_NORM_EPS: f64 = 1e-5;

/// A convolution without bias, then batch norm (timm's `ConvNormAct`).
struct Normed {
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl Normed {
    fn new(params: &Params, input: usize, output: usize, window: Window, channels: Channels) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(&params.pp("conv"), input, output, window, channels)?,
            norm: BatchNorm2d::new(&params.pp("bn"), output, BatchNorm2d::EPS)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?)
    }
}

/// What a sum of branches is made of.
enum Branches {
    Fused(Conv2d),
    Sum { convs: Vec<Normed>, identity: Option<BatchNorm2d> },
}

impl Branches {
    fn fused(params: &Params, input: usize, output: usize, window: Window, channels: Channels) -> Result<Self> {
        Ok(Self::Fused(Conv2d::with_bias(&params.pp("reparam_conv"), input, output, window, channels)?))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Fused(conv) => conv.forward(x),
            Self::Sum { convs, identity } => {
                let mut sum = identity.as_ref().map(|norm| norm.forward(x)).transpose()?;
                for conv in convs {
                    let y = conv.forward(x)?;
                    sum = Some(sum.map_or(Ok(y.clone()), |sum| sum + y)?);
                }
                Ok(sum.unwrap_or_else(|| x.clone()))
            }
        }
    }
}

/// Sizes of a [`Branched`] convolution.
#[derive(Clone, Copy)]
pub(super) struct BranchedConfig {
    input: usize,
    output: usize,
    window: Window,
    channels: Channels,
    /// Whether a window larger than 1×1 has a 1×1 branch.
    scale: bool,
    /// Width inside a squeeze-and-excite behind the sum.
    squeeze_size: Option<usize>,
    activation: Option<Activation>,
}

impl BranchedConfig {
    pub(super) fn new(input: usize, output: usize, window: Window, channels: Channels) -> Self {
        Self { input, output, window, channels, scale: true, squeeze_size: None, activation: Some(ACTIVATION) }
    }

    /// With or without the 1×1 branch.
    pub(super) fn scale(self, scale: bool) -> Self {
        Self { scale, ..self }
    }

    /// With a squeeze-and-excite this wide inside.
    pub(super) fn squeezed(self, size: usize) -> Self {
        Self { squeeze_size: Some(size), ..self }
    }

    /// With nothing behind the sum.
    fn plain(self) -> Self {
        Self { activation: None, ..self }
    }
}

/// A convolution that may have branches, squeeze-and-excite, and the activation (timm's `MobileOneBlock`).
pub(super) struct Branched {
    branches: Branches,
    squeeze: Option<SqueezeExcite>,
    activation: Option<Activation>,
    dtype: DType,
}

impl Branched {
    pub(super) fn new(params: &Params, config: &BranchedConfig, form: BranchForm) -> Result<Self> {
        let BranchedConfig { input, output, window, channels, scale, squeeze_size, activation } = *config;
        let branches = match form {
            BranchForm::Fused => Branches::fused(params, input, output, window, channels)?,
            BranchForm::Branches => {
                let mut convs = vec![Normed::new(&params.pp("conv_kxk.0"), input, output, window, channels)?];
                if scale && window.size > 1 {
                    let point = Window { size: 1, padding: 0, ..window };
                    convs.push(Normed::new(&params.pp("conv_scale"), input, output, point, channels)?);
                }
                let identity = (input == output && window.stride == 1)
                    .then(|| BatchNorm2d::new(&params.pp("identity"), input, BatchNorm2d::EPS));
                Branches::Sum { convs, identity: identity.transpose()? }
            }
        };
        let dtype = match &branches {
            Branches::Fused(conv) => conv.dtype(),
            Branches::Sum { convs, .. } => convs.first().map_or(DType::F32, |first| first.conv.dtype()),
        };
        let squeeze = squeeze_size.map(|reduced| SqueezeExcite::new(&params.pp("se"), output, reduced));
        Ok(Self { branches, squeeze: squeeze.transpose()?, activation, dtype })
    }

    /// The type of the weights.
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.branches.forward(x)?;
        if let Some(squeeze) = &self.squeeze {
            y = squeeze.forward(&y)?;
        }
        self.activation.map_or(Ok(y.clone()), |activation| ops::activate(&y, activation))
    }
}

/// From a map to one of half its side (timm's `PatchEmbed`): depthwise 7×7 and 3×3 with stride 2, then 1×1.
pub(super) struct DownsampleLayer {
    branches: Branches,
    squeeze: Option<SqueezeExcite>,
    widen: Branched,
}

impl DownsampleLayer {
    pub(super) fn new(
        params: &Params,
        input: usize,
        output: usize,
        squeeze_size: Option<usize>,
        form: BranchForm,
    ) -> Result<Self> {
        let first = params.pp(0);
        let window = |size| Window::centred(size, 2);
        let branch = |name: &str, size| Normed::new(&first.pp(name), input, output, window(size), Channels::Depthwise);
        let branches = match form {
            BranchForm::Fused => Branches::fused(&first, input, output, window(LARGE), Channels::Depthwise)?,
            BranchForm::Branches => Branches::Sum {
                convs: vec![branch("large_conv", LARGE)?, branch("small_conv", MIXER)?],
                identity: None,
            },
        };
        let squeeze = squeeze_size.map(|reduced| SqueezeExcite::new(&first.pp("se"), output, reduced));
        let widen = BranchedConfig::new(output, output, Window::tiling(1), Channels::Dense);
        Ok(Self { branches, squeeze: squeeze.transpose()?, widen: Branched::new(&params.pp(1), &widen, form)? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.branches.forward(x)?;
        if let Some(squeeze) = &self.squeeze {
            y = squeeze.forward(&y)?;
        }
        self.widen.forward(&ops::activate(&y, ACTIVATION)?)
    }
}

/// Positions by a depthwise convolution (Chu et al. 2021, arXiv 2102.10882), with a shortcut unless fused.
pub(super) struct PositionLayer {
    conv: Conv2d,
    form: BranchForm,
}

impl PositionLayer {
    pub(super) fn new(params: &Params, width: usize, window: Window, form: BranchForm) -> Result<Self> {
        let name = match form {
            BranchForm::Branches => "pos_enc",
            BranchForm::Fused => "reparam_conv",
        };
        let conv = Conv2d::with_bias(&params.pp(name), width, width, window, Channels::Depthwise)?;
        Ok(Self { conv, form })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.conv.forward(x)?;
        match self.form {
            BranchForm::Branches => Ok((y + x)?),
            BranchForm::Fused => Ok(y),
        }
    }
}

/// A learned factor a channel, (C,1,1) in the file.
struct Scale(Tensor);

impl Scale {
    fn new(params: &Params, width: usize) -> Result<Self> {
        Ok(Self(params.get("gamma", &[width, 1, 1], SCALE)?))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::scale_row(x, &self.0.flatten_all()?)
    }
}

/// Depthwise 7×7 with batch norm, then two linear layers over the channels (timm's `ConvMlp`).
struct ConvMlp {
    conv: Normed,
    fc1: Conv2d,
    fc2: Conv2d,
}

impl ConvMlp {
    fn new(params: &Params, width: usize, inside: usize) -> Result<Self> {
        let linear = |name: &str, input, output| {
            Conv2d::with_bias(&params.pp(name), input, output, Window::tiling(1), Channels::Dense)
        };
        let window = Window::centred(LARGE, 1);
        Ok(Self {
            conv: Normed::new(&params.pp("conv"), width, width, window, Channels::Depthwise)?,
            fc1: linear("fc1", width, inside)?,
            fc2: linear("fc2", inside, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&ops::activate(&self.fc1.forward(&self.conv.forward(x)?)?, ACTIVATION)?)
    }
}

/// `x + γ · (mixed(x) − norm(x))`, or the one convolution that this comes to.
enum RepMixer {
    Fused(Branches),
    Branches { mixer: Branched, norm: BatchNorm2d, scale: Scale },
}

impl RepMixer {
    fn new(params: &Params, width: usize, form: BranchForm) -> Result<Self> {
        let window = Window::centred(MIXER, 1);
        if form == BranchForm::Fused {
            return Ok(Self::Fused(Branches::fused(params, width, width, window, Channels::Depthwise)?));
        }
        let mixer = BranchedConfig::new(width, width, window, Channels::Depthwise).plain();
        Ok(Self::Branches {
            mixer: Branched::new(&params.pp("mixer"), &mixer, form)?,
            norm: BatchNorm2d::new(&params.pp("norm.identity"), width, BatchNorm2d::EPS)?,
            scale: Scale::new(&params.pp("layer_scale"), width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Fused(conv) => conv.forward(x),
            Self::Branches { mixer, norm, scale } => {
                Ok((scale.forward(&(mixer.forward(x)? - norm.forward(x)?)?)? + x)?)
            }
        }
    }
}

/// Attention over a map's places, normed before.
struct Attention {
    norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
    scale: Scale,
}

enum Norm {
    Batch(BatchNorm2d),
    Layer(LayerNorm),
}

impl Attention {
    fn new(params: &Params, config: &FastVitConfig, width: usize) -> Result<Self> {
        let norm = params.pp("norm");
        let mixer = params.pp("token_mixer");
        let linear = |name: &str| Linear::without_bias(&mixer.pp(name), width, width, INIT);
        Ok(Self {
            norm: match config.attention_norm {
                AttentionNorm::Batch => Norm::Batch(BatchNorm2d::new(&norm, width, BatchNorm2d::EPS)?),
                AttentionNorm::Layer => Norm::Layer(LayerNorm::new(&norm, width, LAYER_NORM_EPS)?),
            },
            query: linear("q_proj")?,
            key: linear("k_proj")?,
            value: linear("v_proj")?,
            output: Linear::new(&mixer.pp("proj"), width, width, INIT)?,
            heads: width / config.head_size,
            scale: Scale::new(&params.pp("layer_scale_1"), width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = match &self.norm {
            Norm::Batch(norm) => norm.forward(x)?,
            Norm::Layer(norm) => norm.forward(x)?,
        };
        let tokens = map_tokens(&normed)?;
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|layer| layer.forward(&tokens));
        let mixed = ops::attention(&q?, &k?, &v?, self.heads, &AttentionMask::none())?;
        let mixed = self.output.forward(&mixed)?.reshape(x.shape())?;
        Ok((self.scale.forward(&mixed)? + x)?)
    }
}

/// Mixing places, then channels (timm's `RepMixerBlock` and `AttentionBlock`).
pub(super) struct Block {
    mixer: Mixer,
    mlp: ConvMlp,
    scale: Scale,
}

enum Mixer {
    RepMixer(RepMixer),
    Attention(Attention),
}

impl Block {
    pub(super) fn new(params: &Params, config: &FastVitConfig, stage: &FastVitStageConfig) -> Result<Self> {
        let width = stage.width;
        let (mixer, scale) = match stage.mixer {
            TokenMixer::RepMixer => {
                (Mixer::RepMixer(RepMixer::new(&params.pp("token_mixer"), width, config.form)?), "layer_scale")
            }
            TokenMixer::Attention => (Mixer::Attention(Attention::new(params, config, width)?), "layer_scale_2"),
        };
        Ok(Self {
            mixer,
            mlp: ConvMlp::new(&params.pp("mlp"), width, stage.intermediate_size)?,
            scale: Scale::new(&params.pp(scale), width)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = match &self.mixer {
            Mixer::RepMixer(mixer) => mixer.forward(x)?,
            Mixer::Attention(attention) => attention.forward(x)?,
        };
        Ok((self.scale.forward(&self.mlp.forward(&x)?)? + x)?)
    }
}
