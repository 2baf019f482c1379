//! [`ClipModel`]: two encoders, two projections, a logit scale.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::encoder::{Built, ImageEncoder, ImageEncoderConfig, TextEncoder, TextEncoderConfig};
use crate::image::{ImageProcessor, NaflexProcessor};
use crate::loader::Loader;
use crate::logit_scale::{LogitConfig, LogitScale};
use crate::matching::MatchingConfig;
use crate::project::{LinearProject, ProjectionConfig};
use crate::text::{TextTokenizer, TokenBatch};
use crate::weights::{Parameters, Params, RandomSource, Stored};
use crate::zero_shot::{Template, ZeroShot};
use crate::{Error, Result, ops};

mod embed;

/// A whole dual encoder's configuration, as our own `config.json` holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// The text tower and its pooling.
    pub text: TextEncoderConfig,
    /// The image tower and its pooling.
    pub image: ImageEncoderConfig,
    /// The images' projection, and the texts' too where they have none of their own.
    pub projection: ProjectionConfig,
    /// The texts' projection where it differs from the images'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_projection: Option<ProjectionConfig>,
    /// What lies between cosines and logits.
    #[serde(default)]
    pub logits: LogitConfig,
    /// The head that judges pairs, where the checkpoint has one (BLIP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchingConfig>,
}

impl ClipConfig {
    /// Where the text tower's parameters live among the model's.
    pub(crate) const TEXT: &str = "text_model";
    /// Where the image tower's parameters live among the model's.
    pub(crate) const IMAGE: &str = "vision_model";
    /// Where the parameters of the matching head live among the model's.
    pub(crate) const MATCHING: &str = "matching";

    /// Asks `params` for every parameter of the model, so that all problems are known before the first is reported.
    pub(crate) fn collect(&self, params: &Params) -> Result<()> {
        self.text.build(&params.pp(Self::TEXT))?;
        self.image.build(&params.pp(Self::IMAGE))?;
        self.build_heads(params)?;
        if let Some(matching) = &self.matching {
            matching.build(&self.text, &params.pp(Self::TEXT), &params.pp(Self::MATCHING))?;
        }
        Ok(())
    }

    fn build_heads(&self, params: &Params) -> Result<Box<Heads>> {
        let text = self.text_projection.as_ref().unwrap_or(&self.projection);
        if text.embed_dim != self.projection.embed_dim {
            let message = format!("texts have {}, images {}", text.embed_dim, self.projection.embed_dim);
            return Err(Error::argument("embed_dim", message));
        }
        let projection = |name: &str, size, config| LinearProject::new(&params.pp(name), size, config);
        Ok(Box::new(Heads {
            text_projection: projection("text_projection", self.text.pooled_size(), text)?,
            visual_projection: projection("visual_projection", self.image.pooled_size(), &self.projection)?,
            logit_scale: LogitScale::new(params, self.logits)?,
        }))
    }
}

/// What stands behind the towers.
struct Heads {
    text_projection: LinearProject,
    visual_projection: LinearProject,
    logit_scale: LogitScale,
}

/// What [`ClipModel::forward`] computes for B images and M texts.
#[derive(Debug, Clone)]
pub struct ClipOutput {
    /// Projected images (B,D).
    pub image_features: Tensor,
    /// Projected texts (M,D).
    pub text_features: Tensor,
    /// Projected images of unit length (B,D).
    pub image_embeds: Tensor,
    /// Projected texts of unit length (M,D).
    pub text_embeds: Tensor,
    /// The factor exp(logit_scale), a scalar.
    pub logit_scale: Tensor,
    /// The bias added to the logits, a scalar, where the model has one (SigLIP).
    pub logit_bias: Option<Tensor>,
    /// Factor × cosine (+ bias), rows are images (B,M). Its transpose has texts as rows.
    pub logits_per_image: Tensor,
}

/// The files a model came from: what writes it back in the layout it had.
pub(crate) struct Origin {
    /// `config.json` as it was.
    pub(crate) config: Value,
    /// For each of our names how the files hold it.
    pub(crate) stored: BTreeMap<String, Stored>,
}

/// A dual encoder: images and texts in one space.
///
/// A clone shares its variables with the original: training one trains both.
#[derive(Clone)]
pub struct ClipModel {
    config: ClipConfig,
    text: TextEncoder,
    image: ImageEncoder,
    heads: Built<Heads>,
    /// Frozen: embeddings and losses never read them.
    matching: Parameters,
    origin: Option<Arc<Origin>>,
}

impl ClipModel {
    /// Loads a dual encoder from a folder or a hub id.
    ///
    /// # Errors
    /// When the folder holds no dual encoder that this crate knows, or its tensors do not fit its configuration; the error
    /// lists every tensor at fault.
    ///
    /// ```no_run
    /// let model = diptych::ClipModel::from_pretrained("openai/clip-vit-base-patch32")?;
    /// let images = model.embed_images(["cat.jpg", "dog.jpg"])?;
    /// let texts = model.embed_texts(&["a photo of a cat"])?;
    /// println!("{}", images.cosine(&texts)?); // (2, 1)
    /// # Ok::<(), diptych::Error>(())
    /// ```
    pub fn from_pretrained(id_or_dir: &str) -> Result<Self> {
        Loader::new().clip(id_or_dir)
    }

    /// Everything else that loading can be told: device, dtype, revision, pooling, ….
    #[must_use]
    pub fn loader() -> Loader {
        Loader::new()
    }

    /// The design of the origin: any text encoder and any image encoder, two fresh projections (unit rows → Linear → GELU →
    /// LayerNorm, `embed_dim` wide) drawn from seed 0, and a logit scale of ln(1/0.07).
    ///
    /// # Errors
    /// When `embed_dim` is zero.
    pub fn from_encoders(text: TextEncoder, image: ImageEncoder, embed_dim: usize) -> Result<Self> {
        Self::with_projection(text, image, ProjectionConfig::mlp(embed_dim), 0)
    }

    /// Any two encoders with fresh projections of any kind, drawn from `seed`.
    ///
    /// # Errors
    /// When the projection's width is zero.
    pub fn with_projection(
        text: TextEncoder,
        image: ImageEncoder,
        projection: ProjectionConfig,
        seed: u64,
    ) -> Result<Self> {
        let config = ClipConfig {
            text: text.config().clone(),
            image: image.config().clone(),
            projection,
            text_projection: None,
            logits: LogitConfig::Scale,
            matching: None,
        };
        let dtype = |parameters: &Parameters| parameters.iter().next().map_or(DType::F32, |(_, tensor)| tensor.dtype());
        let (text_dtype, image_dtype) = (dtype(text.parameters()), dtype(image.parameters()));
        if text_dtype != image_dtype || !text.device().same_device(image.device()) {
            let message = format!(
                "the text tower is {text_dtype:?} on {:?}, the image tower {image_dtype:?} on {:?}; load both alike",
                text.device().location(),
                image.device().location()
            );
            return Err(Error::argument("text, image", message));
        }
        let params = Params::new(RandomSource::new(seed, image_dtype, image.device()));
        config.build_heads(&params)?;
        let heads = Built::new(params.finish("projections")?, |params| config.build_heads(params))?;
        Ok(Self { config, text, image, heads, matching: Parameters::default(), origin: None })
    }

    /// A model whose parameters come from `params`: from a candle `VarBuilder`, say, through
    /// [`VarBuilderSource`](crate::weights::VarBuilderSource), or from a seed.
    ///
    /// # Errors
    /// When parameters are missing or have another shape.
    pub fn from_params(
        config: &ClipConfig,
        tokenizer: TextTokenizer,
        processor: ImageProcessor,
        params: &Params,
        device: &Device,
    ) -> Result<Self> {
        config.collect(params)?;
        Self::from_parameters(config.clone(), tokenizer, processor, params.finish("model")?, device)
    }

    pub(crate) fn from_parameters(
        config: ClipConfig,
        tokenizer: TextTokenizer,
        processor: ImageProcessor,
        parameters: Parameters,
        device: &Device,
    ) -> Result<Self> {
        let (text, image) = (parameters.under(ClipConfig::TEXT), parameters.under(ClipConfig::IMAGE));
        Ok(Self {
            text: TextEncoder::from_parameters(config.text.clone(), tokenizer, text, device)?,
            image: ImageEncoder::from_parameters(config.image.clone(), processor, image, device)?,
            heads: Built::new(
                parameters.without(&[ClipConfig::TEXT, ClipConfig::IMAGE, ClipConfig::MATCHING]),
                |params| config.build_heads(params),
            )?,
            matching: parameters.under(ClipConfig::MATCHING).detached(),
            config,
            origin: None,
        })
    }

    pub(crate) fn with_origin(self, origin: Option<Origin>) -> Self {
        Self { origin: origin.map(Arc::new), ..self }
    }

    pub(crate) fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
    }

    /// The same model where the parameters that `trainable` says yes to are trained and the others frozen. Names are as in
    /// [`ClipModel::parameters`].
    ///
    /// # Errors
    /// When candle cannot allocate a variable.
    pub fn with_trainable(self, trainable: impl Fn(&str) -> bool) -> Result<Self> {
        self.map_parameters(|parameters| parameters.with_trainable(&trainable))
    }

    /// The same model with what `map` makes of its parameters, a half at a time, under the names of [`ClipModel::parameters`].
    pub(crate) fn map_parameters(self, map: impl Fn(&Parameters) -> Result<Parameters>) -> Result<Self> {
        let half = |prefix: &'static str| {
            let map = &map;
            move |parameters: &Parameters| Ok(map(&parameters.prefixed(prefix))?.under(prefix))
        };
        let text = self.text.map_parameters(half(ClipConfig::TEXT))?;
        let image = self.image.map_parameters(half(ClipConfig::IMAGE))?;
        let heads = Built::new(map(self.heads.parameters())?, |params| self.config.build_heads(params))?;
        Ok(Self { text, image, heads, ..self })
    }

    /// The names of all linear layers, sorted: what may have adapters.
    #[must_use]
    pub fn linear_layers(&self) -> Vec<String> {
        let heads = self.heads.linears().iter().cloned();
        let text = self.text.linears().map(|name| format!("{}.{name}", ClipConfig::TEXT));
        let image = self.image.linears().map(|name| format!("{}.{name}", ClipConfig::IMAGE));
        let mut all: Vec<String> = heads.chain(text).chain(image).collect();
        all.sort();
        all
    }

    /// The type of the heads' parameters.
    pub(crate) fn dtype(&self) -> DType {
        self.heads.parameters().iter().next().map_or(DType::F32, |(_, t)| t.dtype())
    }

    /// Both halves of a batch, with the graph of the trainable parameters.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W), `tokens` (M,L); see [`ClipOutput`].
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, pixel_values: &Tensor, tokens: &TokenBatch) -> Result<ClipOutput> {
        let forward = || {
            let image_features = self.project_image(&self.image.pooled(pixel_values)?)?;
            let text_features = self.project_text(&self.text.pooled(tokens)?)?;
            self.output(image_features, text_features)
        };
        self.image.threads().install_on(pixel_values.device(), forward)
    }

    /// An image tower's pooled output (B,E) to features (B,D), with the projection's graph.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn project_image(&self, pooled: &Tensor) -> Result<Tensor> {
        let project = || self.heads.tracked().visual_projection.forward(pooled);
        self.image.threads().install_on(pooled.device(), project)
    }

    /// A text tower's pooled output (B,E) to features (B,D), with the projection's graph.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn project_text(&self, pooled: &Tensor) -> Result<Tensor> {
        let project = || self.heads.tracked().text_projection.forward(pooled);
        self.text.threads().install_on(pooled.device(), project)
    }

    /// Features (B,D) and (M,D) to unit rows and logits.
    ///
    /// # Errors
    /// When the widths differ.
    pub fn output(&self, image_features: Tensor, text_features: Tensor) -> Result<ClipOutput> {
        let (image_embeds, text_embeds) = (ops::l2_normalize(&image_features)?, ops::l2_normalize(&text_features)?);
        let (logit_scale, logit_bias) = self.logit_factor(&image_embeds)?;
        let mut logits_per_image = image_embeds.matmul(&text_embeds.t()?)?.broadcast_mul(&logit_scale)?;
        if let Some(bias) = &logit_bias {
            logits_per_image = logits_per_image.broadcast_add(bias)?;
        }
        Ok(ClipOutput {
            image_features,
            text_features,
            image_embeds,
            text_embeds,
            logit_scale,
            logit_bias,
            logits_per_image,
        })
    }

    /// The factor exp(logit_scale) and the bias, where there is one, scalars with their graph, as losses take them; `like` says of
    /// what type and on which device where nothing is learned.
    ///
    /// # Errors
    /// When candle fails.
    pub fn logit_factor(&self, like: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let scale = &self.heads.tracked().logit_scale;
        Ok((scale.factor(like)?, scale.bias().cloned()))
    }

    /// A zero-shot classifier for `labels`, prompted with "a photo of a {}".
    ///
    /// # Errors
    /// When the list is empty or a label is blank or named twice.
    pub fn zero_shot(&self, labels: &[impl AsRef<str>]) -> Result<ZeroShot<'_>> {
        ZeroShot::new(self, labels, &Template::photo())
    }

    /// A zero-shot classifier for `labels` with prompts of your own, averaged a class.
    ///
    /// # Errors
    /// As [`ClipModel::zero_shot`], and when there is no template.
    pub fn zero_shot_with(&self, labels: &[impl AsRef<str>], templates: &[Template]) -> Result<ZeroShot<'_>> {
        ZeroShot::new(self, labels, templates)
    }

    /// The factor exp(logit_scale) as a number.
    ///
    /// # Errors
    /// When candle fails.
    pub fn logit_scale(&self) -> Result<f64> {
        self.heads.detached().logit_scale.value()
    }

    /// The bias that the logits have, zero where the model has none.
    ///
    /// # Errors
    /// When candle fails.
    pub fn logit_bias(&self) -> Result<f64> {
        let bias = self.heads.detached().logit_scale.bias();
        Ok(bias.map(|bias| bias.to_dtype(DType::F64)?.to_scalar()).transpose()?.unwrap_or(0.0))
    }

    /// Brings the logarithm of the scale back into `[lowest, largest]`; cross-entropy training does so after each step with
    /// [0, ln 100] (Radford et al. 2021, section 2.5).
    ///
    /// # Errors
    /// When the scale is not a number any more.
    pub fn clamp_logit_scale(&self, lowest: f64, largest: f64) -> Result<()> {
        self.heads.tracked().logit_scale.clamp(lowest, largest)
    }

    pub(crate) fn matching_parameters(&self) -> &Parameters {
        &self.matching
    }

    pub(crate) fn with_naflex(self, naflex: NaflexProcessor) -> Result<Self> {
        Ok(Self { image: self.image.with_naflex(naflex)?, ..self })
    }

    /// Every parameter by name; the names are those of Hugging Face's `CLIPModel`. Those of a matching head, under `matching.`,
    /// are never trainable: embeddings do not read them.
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        let mut all = self.heads.parameters().clone();
        all.extend(self.text.parameters().prefixed(ClipConfig::TEXT));
        all.extend(self.image.parameters().prefixed(ClipConfig::IMAGE));
        all.extend(self.matching.prefixed(ClipConfig::MATCHING));
        all
    }

    /// The trainable parameters: named variables that any candle optimiser can step.
    #[must_use]
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.parameters().trainable().map(|(name, var)| (name.to_string(), var)).collect()
    }

    /// The text half.
    #[must_use]
    pub fn text_encoder(&self) -> &TextEncoder {
        &self.text
    }

    /// The image half.
    #[must_use]
    pub fn image_encoder(&self) -> &ImageEncoder {
        &self.image
    }

    /// Towers, poolings and projections.
    #[must_use]
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }
}
