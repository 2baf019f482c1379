//! Saving: which layout can express a model, and what it looks like there.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use serde_json::Value;

use super::{diptych, hf_clip, open_clip, siglip};
use crate::loader::Numbers;
use crate::model::{ClipConfig, ClipModel};
use crate::ops::{Activation, Packing, Weight};
use crate::project::{InputNorm, ProjectionKind};
use crate::towers::{
    ImageTowerConfig, PooledToken, PositionTable, PrefixTokens, TextAttention, TextPooling, TextTowerConfig,
};
use crate::weights::{Layout, Parameters, Stored, View};
use crate::{Error, Quantization, Result};

/// Whose files a model is saved as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelLayout {
    /// transformers': `config.json`, `preprocessor_config.json`, `model.safetensors`.
    HuggingFace,
    /// open_clip's: `open_clip_config.json`, `open_clip_model.safetensors`.
    OpenClip,
    /// Our own (`model_type: diptych`), which can express every model.
    Diptych,
}

impl ClipModel {
    /// Writes the model with its tokenizer and processor: in the layout it was loaded from, else in Hugging Face's `CLIPModel`
    /// layout where that can express it, else in our own (`model_type: diptych`). [`ClipModel::from_pretrained`] reads it back with equal bits.
    /// A quantised model is always written in our own, which alone has words for its integers.
    ///
    /// # Errors
    /// When the folder cannot be written, or holds something that is no model.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.check_merged()?;
        let numbers = self.numbers();
        let outgoing = match numbers {
            Numbers::Quantized => own(self, numbers)?,
            Numbers::Floats(_) => fitting(self)?,
        };
        write(self, outgoing, folder.as_ref(), numbers)
    }

    /// [`ClipModel::save_pretrained`] with the weights converted to `dtype`: f16 and bf16 take half the room of f32. Of a quantised
    /// model these are the numbers that its integers stand for, in the layout that it was loaded from.
    ///
    /// # Errors
    /// As [`ClipModel::save_pretrained`].
    pub fn save_pretrained_as(&self, folder: impl AsRef<Path>, dtype: DType) -> Result<()> {
        self.check_merged()?;
        write(self, fitting(self)?, folder.as_ref(), Numbers::Floats(dtype))
    }

    /// [`ClipModel::save_pretrained`] in a layout of your choice. A model in transformers' CLIP layout is written in open_clip's
    /// and the other way round where the other has words for it: native towers with the same activation, a processor that
    /// crops to the size it resizes to.
    ///
    /// # Errors
    /// When the layout has no words for the model, or as [`ClipModel::save_pretrained`].
    pub fn save_pretrained_in(&self, folder: impl AsRef<Path>, layout: ModelLayout) -> Result<()> {
        self.check_merged()?;
        save_in(self, layout, folder.as_ref())
    }

    /// What the numbers are saved as where nobody says: as they are kept.
    fn numbers(&self) -> Numbers {
        let integers = |weight: &Weight| matches!(weight, Weight::Packed(packed) if packed.packing() == Packing::Int8);
        match self.parameters().weights().any(|(_, weight)| integers(weight)) {
            true => Numbers::Quantized,
            false => Numbers::Floats(self.dtype()),
        }
    }

    fn check_merged(&self) -> Result<()> {
        match self.parameters().adapters().next() {
            None => Ok(()),
            Some((module, _)) => {
                let message =
                    format!("'{module}' has a LoRA adapter; merge_lora first, or save_lora the adapters alone");
                Err(Error::argument("model", message))
            }
        }
    }
}

/// A model as a layout has it.
pub(crate) struct Outgoing {
    /// Which files there are.
    pub(crate) layout: Layout,
    /// The configuration.
    pub(crate) config: Value,
    /// How the file holds what it does not hold under our own names and shapes.
    pub(crate) stored: BTreeMap<String, Stored>,
}

/// A model in the layout it came in, else in the first that can express it, in floats.
fn fitting(model: &ClipModel) -> Result<Outgoing> {
    match as_loaded(model).or_else(|| hugging_face(model)) {
        Some(outgoing) => Ok(outgoing),
        None => own(model, Numbers::Floats(model.dtype())),
    }
}

/// Writes a model in the layout `layout`.
fn save_in(model: &ClipModel, layout: ModelLayout, folder: &Path) -> Result<()> {
    let numbers = model.numbers();
    if numbers == Numbers::Quantized && layout != ModelLayout::Diptych {
        let message = format!(
            "{layout:?} has no words for quantised weights; save in Diptych, load with `dequantize` first, or save_pretrained_as f32"
        );
        return Err(Error::argument("layout", message));
    }
    let loaded = |wanted: Layout| as_loaded(model).filter(|outgoing| outgoing.layout == wanted);
    let not = |name: &'static str| {
        let supported = "models whose every choice its configuration has a word for; Diptych has words for all, and save_pretrained takes a \
             layout that fits";
        Error::unsupported(folder.display().to_string(), "layout", name, supported)
    };
    let outgoing = match layout {
        ModelLayout::HuggingFace => loaded(Layout::HuggingFace)
            .filter(|outgoing| outgoing.config["model_type"] != "diptych")
            .or_else(|| hugging_face(model))
            .ok_or_else(|| Error::argument("layout", no_words(model)))?,
        ModelLayout::OpenClip => match loaded(Layout::OpenClip) {
            Some(outgoing) => outgoing,
            None => open_clip::to_open_clip(model, folder)?.ok_or_else(|| not("OpenClip"))?,
        },
        ModelLayout::Diptych => own(model, numbers)?,
    };
    write(model, outgoing, folder, numbers)
}

fn write(model: &ClipModel, mut outgoing: Outgoing, folder: &Path, numbers: Numbers) -> Result<()> {
    for key in ["dtype", "torch_dtype"] {
        if let Some(named @ Value::String(_)) = outgoing.config.get_mut(key) {
            *named = Value::from(match numbers {
                Numbers::Floats(DType::F16) => "float16",
                Numbers::Floats(DType::BF16) => "bfloat16",
                _ => "float32",
            });
        }
    }
    crate::loader::save_folder(model, &outgoing, folder, numbers)
}

/// The files it came from, where they still say what it is.
fn as_loaded(model: &ClipModel) -> Option<Outgoing> {
    let origin = model.origin()?;
    if open_clip::is_its(&origin.config) {
        return open_clip::as_loaded(model, origin);
    }
    // What was quantised is written anew: its file had no floats.
    if origin.config.get("quantization").is_some() && origin.config["model_type"] == "diptych" {
        return None;
    }
    let outgoing =
        Outgoing { layout: Layout::HuggingFace, config: origin.config.clone(), stored: origin.stored.clone() };
    fits_input(model).then_some(outgoing)
}

fn hugging_face(model: &ClipModel) -> Option<Outgoing> {
    let pad_id = model.text_encoder().tokenizer().pad_id();
    let mut stored = hugging_face_shapes(&model.parameters());
    let config = hf_clip::to_hugging_face(model.config(), pad_id)
        .or_else(|| siglip::to_hugging_face(model.config(), pad_id))
        .or_else(|| {
            let (config, names) = with_text_head(model)?;
            stored.extend(names);
            siglip::to_hugging_face(&config, pad_id)
        })?;
    fits_input(model).then_some(Outgoing { layout: Layout::HuggingFace, config, stored })
}

/// What keeps a model from transformers' layout, and what to do.
fn no_words(model: &ClipModel) -> String {
    let ClipConfig { text, image, projection, .. } = model.config();
    let part = if !matches!(text.tower, TextTowerConfig::TextTransformer(_)) {
        "the kind of its text tower"
    } else if !matches!(image.tower, ImageTowerConfig::Vit(_) | ImageTowerConfig::Naflex(_)) {
        "the kind of its image tower"
    } else if !fits_input(model) {
        "an image input of another size than its configuration's"
    } else if projection.input != InputNorm::None
        || !matches!(projection.kind, ProjectionKind::Linear | ProjectionKind::Identity)
    {
        "its projection"
    } else {
        "the details of its towers"
    };
    format!(
        "HuggingFace: transformers' CLIP and SigLIP have no word for {part}; save it in Diptych, which has words for all"
    )
}

/// A text projection with a bias behind the last token, as open_clip's SigLIP has it, said as the head of the text tower that
/// transformers' SigLIP has; and the names of its parameters there.
fn with_text_head(model: &ClipModel) -> Option<(ClipConfig, BTreeMap<String, Stored>)> {
    let mut config = model.config().clone();
    let projection = config.text_projection?;
    let TextTowerConfig::TextTransformer(text) = &mut config.text.tower else { return None };
    if projection.kind != ProjectionKind::LinearBias || config.projection.kind != ProjectionKind::Identity {
        return None;
    }
    if text.head_size.replace(projection.embed_dim).is_some() {
        return None;
    }
    config.text_projection = None;
    let parameters = model.parameters();
    let place = |end: &str| {
        let shape = parameters.get(&format!("text_projection.{end}"))?.dims().to_vec();
        let stored = Stored { name: format!("{}.head.{end}", ClipConfig::TEXT), shape, view: View::Whole };
        Some((format!("text_projection.{end}"), stored))
    };
    Some((config, [place("weight")?, place("bias")?].into()))
}

fn own(model: &ClipModel, numbers: Numbers) -> Result<Outgoing> {
    let quantization = (numbers == Numbers::Quantized).then_some(Quantization::Int8);
    let config = diptych::to_config(model.config(), model.text_encoder().tokenizer(), quantization)?;
    Ok(Outgoing { layout: Layout::HuggingFace, config, stored: BTreeMap::new() })
}

/// transformers refuses other input sizes than the configuration's, to which we interpolate.
pub(super) fn fits_input(model: &ClipModel) -> bool {
    let input = model.image_encoder().processor().config().output_size();
    let side = model.config().image.tower.image_size();
    let naflex = model.image_encoder().naflex().is_some();
    naflex || input.is_none_or(|size| (size.height as usize, size.width as usize) == (side, side))
}

/// Where CLIP's and SigLIP's files in Hugging Face's layout hold a tensor otherwise than we do: the class token without a row,
/// the pooling query with one more axis, its three projections in one, SigLIP's scale and bias as lists of one.
fn hugging_face_shapes(parameters: &Parameters) -> BTreeMap<String, Stored> {
    const HEAD: &str = "vision_model.head.attention.";
    let siglip = parameters.get("logit_bias").is_some();
    let stored = |(name, tensor): (&str, &Weight)| {
        let whole = |shape: Vec<usize>| Stored { name: name.to_string(), shape, view: View::Whole };
        let stored = match (name, tensor.dims()) {
            ("logit_scale" | "logit_bias", _) if siglip => whole(vec![1]),
            ("vision_model.embeddings.class_embedding", [1, size]) => whole(vec![*size]),
            ("vision_model.head.probe", [size]) => whole(vec![1, 1, *size]),
            (_, dims) => {
                let (part, kind) = name.strip_prefix(HEAD)?.split_once("_proj.")?;
                let index = ["q", "k", "v"].iter().position(|other| *other == part)?;
                let shape = [&[3 * dims.first()?], &dims[1..]].concat();
                let view = View::Part { index, count: 3 };
                Stored { name: format!("{HEAD}in_proj_{kind}"), shape, view }
            }
        };
        Some((name.to_string(), stored))
    };
    parameters.weights().filter_map(stored).collect()
}

/// What is left of a configuration when everything is taken off that changes no feature of a loaded model: how weights start, how
/// positions would be resized, and words of which layouts have only one for the same thing.
pub(super) fn essence(config: &ClipConfig) -> ClipConfig {
    let mut config = config.clone();
    let pooling = config.text.pooling;
    if let TextTowerConfig::TextTransformer(text) = &mut config.text.tower {
        text.initializer_range = 0.02;
        text.layer_scale = text.layer_scale.map(|_| 1.0);
        // The end of the text sees no padding behind it.
        if pooling == TextPooling::Eos && text.attention == TextAttention::CausalWithoutPadding {
            text.attention = TextAttention::Causal;
        }
        // No id is larger than the last one, and elsewhere it is not asked for.
        let last = text.vocab_size.checked_sub(1).and_then(|last| u32::try_from(last).ok());
        if pooling != TextPooling::Eos || last.map(PooledToken::FirstId) == Some(text.pooled_token) {
            text.pooled_token = PooledToken::FirstLargest;
        }
    }
    if let ImageTowerConfig::Vit(image) = &mut config.image.tower {
        image.initializer_range = 0.02;
        image.layer_scale = image.layer_scale.map(|_| 1.0);
        image.position_resize = crate::nn::PositionResize::default();
        if image.prefix_tokens == PrefixTokens::None && image.positions == PositionTable::All {
            image.positions = PositionTable::Patches;
        }
    }
    config.text_projection = config.text_projection.filter(|text| *text != config.projection);
    config
}

/// open_clip's word for an activation: whether it is the quick one, and what is said of the other.
pub(super) fn gelu(activation: Activation) -> Option<(bool, Option<&'static str>)> {
    match activation {
        Activation::QuickGelu => Some((true, None)),
        Activation::Gelu => Some((false, None)),
        Activation::GeluTanh => Some((false, Some("tanh"))),
        _ => None,
    }
}
