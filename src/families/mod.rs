//! The names: one file per checkpoint family. A family reads a `config.json` into our configuration and says how the names in
//! the files become our names; [`towers`](crate::towers) do the mathematics and know no files.
//!
//! [`Families`] is a value, not a global: add a family of your own to it and hand it to a [`Loader`](crate::Loader).

mod altclip;
mod altclip_text;
mod beit;
mod bert;
mod blip;
mod blip_text;
mod chinese_clip;
mod clipseg;
mod config;
mod dinov2;
mod diptych;
mod distilbert;
mod hf_clip;
mod m2m100;
mod metaclip_2;
mod modernbert;
mod mpnet;
mod open_clip;
mod save;
mod sentence_transformers;
mod siglip;
mod t5;
mod timm;
mod vision_text;
mod vit;

pub use config::Config;
pub(crate) use open_clip::tokenizer_repositories;
pub use save::ModelLayout;
pub(crate) use save::Outgoing;
pub(crate) use sentence_transformers::SentenceTransformer;

use std::collections::BTreeMap;

use crate::encoder::{ImageEncoderConfig, TextEncoderConfig};
use crate::image::{ImageProcessorConfig, ProcessorClass};
use crate::logit_scale::LogitConfig;
use crate::model::ClipConfig;
use crate::project::ProjectionConfig;
use crate::text::{PadId, TokenRules};
use crate::weights::Renames;
use crate::{Error, Result};

/// What a family reads: a configuration, and the names of the tensors it goes with.
pub struct FamilySource<'a> {
    /// The configuration, or the part of it that is this tower's.
    pub config: Config,
    /// The tensors and their shapes as the files have them, without the prefix of this part; none where weights are to be random.
    pub tensors: Option<BTreeMap<&'a str, &'a [usize]>>,
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

impl<'a> FamilySource<'a> {
    /// Whether a tensor whose name ends like this is in the files.
    #[must_use]
    pub fn has(&self, suffix: &str) -> bool {
        self.tensors.as_ref().is_some_and(|tensors| tensors.keys().any(|name| name.ends_with(suffix)))
    }

    /// The shape of a tensor in the files.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.as_ref()?.get(name).copied()
    }

    /// The same source for the part of the configuration under `part`, whose tensors' names begin with `prefix.`; a prefix that
    /// is empty leaves the names alone.
    ///
    /// # Errors
    /// When the part is no JSON object.
    pub fn part(&self, part: &str, prefix: &str) -> Result<Self> {
        Ok(Self { config: self.config.part(part)?, tensors: self.below(prefix), role: Role::Half })
    }

    /// The tensors whose names begin with `prefix.`, without it.
    #[must_use]
    pub fn below(&self, prefix: &str) -> Option<BTreeMap<&'a str, &'a [usize]>> {
        let strip = |name: &'a str| match prefix {
            "" => Some(name),
            prefix => name.strip_prefix(prefix)?.strip_prefix('.'),
        };
        let tensors = self.tensors.as_ref()?;
        Some(tensors.iter().filter_map(|(name, shape)| Some((strip(name)?, *shape))).collect())
    }

    /// How many numbered things there are below `prefix`: one more than the largest `n` of the names `prefix.n.…`.
    #[must_use]
    pub fn count(&self, prefix: &str) -> Option<usize> {
        let number = |name: &str| {
            name.strip_prefix(prefix)?
                .strip_prefix('.')?
                .split('.')
                .next()?
                .parse::<usize>()
                .ok()
                .filter(|&n| n < 1 << 16)
        };
        Some(self.tensors.as_ref()?.keys().filter_map(|name| number(name)).max().map_or(0, |largest| largest + 1))
    }

    /// Whether the tower has a pooler: the files decide. Where weights are to be random, half of a dual encoder has one, as
    /// transformers builds it.
    #[must_use]
    pub fn has_pooler(&self) -> bool {
        self.has("pooler.dense.weight") || self.tensors.is_none() && self.role == Role::Half
    }
}

/// A text tower as its files describe it.
#[derive(Debug, Clone)]
pub struct TextPlan {
    /// The tower and its pooling.
    pub config: TextEncoderConfig,
    /// From the files' names to ours.
    pub renames: Renames,
    /// How texts become rows of ids.
    pub tokens: TokenRules,
}

/// An image tower as its files describe it.
#[derive(Debug, Clone)]
pub struct ImagePlan {
    /// The tower and its pooling.
    pub config: ImageEncoderConfig,
    /// From the files' names to ours.
    pub renames: Renames,
    /// How images become pixel values.
    pub processor: ProcessorPlan,
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
    /// How texts become rows of ids.
    pub tokens: TokenRules,
    /// How images become pixel values.
    pub processor: ProcessorPlan,
}

impl ClipPlan {
    /// Two halves in Hugging Face's layout: towers below `text_model` and `vision_model`, one kind of projection for both.
    fn of_halves(text: TextPlan, image: ImagePlan, projection: ProjectionConfig, logits: LogitConfig) -> Result<Self> {
        Ok(Self {
            config: ClipConfig {
                text: text.config,
                image: image.config,
                projection,
                text_projection: None,
                logits,
                matching: None,
            },
            text: text.renames.within(ClipConfig::TEXT),
            image: image.renames.within(ClipConfig::IMAGE),
            heads: Renames::new(&[], &["text_model.*", "vision_model.*"])?,
            tokens: text.tokens,
            processor: image.processor,
        })
    }
}

/// Where an image processor's configuration comes from.
#[derive(Debug, Clone)]
pub enum ProcessorPlan {
    /// From the folder's `preprocessor_config.json`; of this class where it names none.
    Folder(ProcessorClass),
    /// From the folder's `preprocessor_config.json`, which makes patches of images in their own proportions; the tower is
    /// [`ImageTowerConfig::Naflex`](crate::towers::ImageTowerConfig::Naflex).
    Naflex,
    /// From the model's own configuration.
    Given(Box<ImageProcessorConfig>),
}

/// Rules for a tower with positions for `context_length` tokens: special tokens, padding to the longest row with the id that
/// the tokenizer's files name, else `pad_id`.
#[must_use]
pub fn token_rules(context_length: usize, pad_id: u32) -> TokenRules {
    TokenRules { pad_id: PadId::FromFiles { otherwise: pad_id }, ..TokenRules::new(context_length) }
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
            Box::new(siglip::Siglip),
            Box::new(chinese_clip::ChineseClip),
            Box::new(altclip::AltClip),
            Box::new(metaclip_2::MetaClip2),
            Box::new(clipseg::ClipSeg),
            Box::new(blip::Blip),
            Box::new(vision_text::VisionText),
            Box::new(open_clip::OpenClip),
            Box::new(bert::Bert),
            Box::new(distilbert::DistilBert),
            Box::new(mpnet::MpNet),
            Box::new(modernbert::ModernBert),
            Box::new(altclip_text::AltClipText),
            Box::new(blip_text::BlipText),
            Box::new(t5::T5),
            Box::new(m2m100::M2m100),
            Box::new(vit::Vit),
            Box::new(dinov2::Dinov2),
            Box::new(beit::Beit),
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

    /// Every `model_type` that a family answers to, in the order in which families are asked.
    pub fn model_types(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|family| family.model_types()).copied()
    }

    /// Whether a family answers to this `model_type`.
    #[must_use]
    pub fn knows(&self, model_type: &str) -> bool {
        self.0.iter().any(|family| family.model_types().contains(&model_type))
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
