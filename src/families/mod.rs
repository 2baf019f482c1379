//! The names: one file per checkpoint family. A family reads a `config.json` into our configuration and says how the names in
//! the files become our names; [`towers`](crate::towers) do the mathematics and know no files.
//!
//! [`Families`] is a value, not a global: add a family of your own to it and hand it to a [`Loader`](crate::Loader).

mod bert;
mod config;
mod dinov2;
mod diptych;
mod hf_clip;
mod vision_text;
mod vit;

pub use config::Config;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use serde_json::Value;

use crate::encoder::{ImageEncoderConfig, TextEncoderConfig};
use crate::image::ProcessorClass;
use crate::model::{ClipConfig, ClipModel};
use crate::weights::Renames;
use crate::{Error, Result};

/// What a family reads: a configuration, and the names of the tensors it goes with.
pub struct FamilySource<'a> {
    /// The configuration, or the part of it that is this tower's.
    pub config: Config,
    /// The tensors' names as the files spell them, without the prefix of this part; none where weights are to be random.
    pub names: Option<Vec<&'a str>>,
    /// Whether the tower stands alone or in a dual encoder, which changes what "pooled" means.
    pub role: Role,
}

/// Where a tower stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The folder holds this tower only.
    Alone,
    /// One half of a dual encoder.
    Half,
}

impl FamilySource<'_> {
    /// Whether a tensor whose name ends like this is in the files.
    #[must_use]
    pub fn has(&self, suffix: &str) -> bool {
        self.names.as_ref().is_some_and(|names| names.iter().any(|name| name.ends_with(suffix)))
    }

    /// Whether the tower has a pooler: the files decide. Where weights are to be random, half of a dual encoder has one, as
    /// transformers builds it.
    #[must_use]
    pub fn has_pooler(&self) -> bool {
        self.has("pooler.dense.weight") || self.names.is_none() && self.role == Role::Half
    }
}

/// A text tower as its files describe it.
#[derive(Debug, Clone)]
pub struct TextPlan {
    /// The tower and its pooling.
    pub config: TextEncoderConfig,
    /// From the files' names to ours.
    pub renames: Renames,
    /// The padding id where the tokenizer's files name none.
    pub pad_id: u32,
}

/// An image tower as its files describe it.
#[derive(Debug, Clone)]
pub struct ImagePlan {
    /// The tower and its pooling.
    pub config: ImageEncoderConfig,
    /// From the files' names to ours.
    pub renames: Renames,
    /// The image processor where the folder's file names none.
    pub processor: ProcessorClass,
}

/// A dual encoder as its files describe it.
#[derive(Debug, Clone)]
pub struct ClipPlan {
    /// Towers and projections.
    pub config: ClipConfig,
    /// From the files' names to ours, for what is below `text_model`.
    pub text: Renames,
    /// From the files' names to ours, for what is below `vision_model`.
    pub image: Renames,
    /// From the files' names to ours, for projections and scale.
    pub heads: Renames,
    /// The padding id where the tokenizer's files name none.
    pub pad_id: u32,
    /// The image processor where the folder's file names none.
    pub processor: ProcessorClass,
}

/// What a folder holds.
#[derive(Debug, Clone)]
pub enum Plan {
    /// A text tower.
    Text(Box<TextPlan>),
    /// An image tower.
    Image(Box<ImagePlan>),
    /// A dual encoder.
    Clip(Box<ClipPlan>),
}

/// A checkpoint family: the names it answers to, and how its configuration is read.
pub trait Family: Send + Sync {
    /// The values of `model_type` that are this family's.
    fn model_types(&self) -> &[&str];

    /// Reads a configuration.
    ///
    /// # Errors
    /// When a value is missing, of the wrong type, or asks for something that the towers do not have.
    fn plan(&self, families: &Families, source: &FamilySource<'_>) -> Result<Plan>;
}

/// The families a loader knows.
pub struct Families(Vec<Box<dyn Family>>);

impl Default for Families {
    fn default() -> Self {
        Self(vec![
            Box::new(diptych::Diptych),
            Box::new(hf_clip::HfClip),
            Box::new(vision_text::VisionText),
            Box::new(bert::Bert),
            Box::new(vit::Vit),
            Box::new(dinov2::Dinov2),
        ])
    }
}

impl Families {
    /// These and one more, which is asked first.
    #[must_use]
    pub fn with(mut self, family: impl Family + 'static) -> Self {
        self.0.insert(0, Box::new(family));
        self
    }

    /// Reads a configuration with the family that its `model_type` names.
    ///
    /// # Errors
    /// When the type is missing or unknown, or the family refuses the configuration.
    pub fn plan(&self, source: &FamilySource<'_>) -> Result<Plan> {
        let model_type = source.config.model_type()?;
        let family = self.0.iter().find(|family| family.model_types().contains(&model_type.as_str()));
        let family = family.ok_or_else(|| {
            let known: Vec<&str> = self.0.iter().flat_map(|family| family.model_types()).copied().collect();
            Error::unsupported(source.config.path().display().to_string(), "model_type", model_type, known.join(", "))
        })?;
        family.plan(self, source)
    }
}

/// Writes a model in the layout it came in, else in the first that can express it.
pub(crate) fn save_clip(model: &ClipModel, folder: &Path, dtype: DType) -> Result<()> {
    // transformers refuses other input sizes than the configuration's, to which we interpolate.
    let input = model.image_encoder().processor().config().output_size();
    let side = model.config().image.tower.image_size();
    let fits = input.is_none_or(|size| (size.height as usize, size.width as usize) == (side, side));
    if let Some(origin) = model.origin().filter(|_| fits) {
        let mut config = origin.config.clone();
        for key in ["dtype", "torch_dtype"] {
            if let Some(named @ Value::String(_)) = config.get_mut(key) {
                *named = Value::from(match dtype {
                    DType::F16 => "float16",
                    DType::BF16 => "bfloat16",
                    _ => "float32",
                });
            }
        }
        return crate::loader::save_folder(model, &config, &origin.spelled, folder, dtype);
    }
    let hugging_face = hf_clip::to_hugging_face(model.config(), model.text_encoder().tokenizer().pad_id());
    let config: Value = match hugging_face.filter(|_| fits) {
        Some(config) => config,
        None => diptych::to_config(model.config(), model.text_encoder().tokenizer())?,
    };
    crate::loader::save_folder(model, &config, &BTreeMap::new(), folder, dtype)
}
