//! [`Loader`]: from a folder or a hub id to a model, and [`save_folder`], the way back.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use serde_json::Value;

use crate::Inspection;
use crate::encoder::{ImageEncoder, TextEncoder};
use crate::families::{
    ClipPlan, Config, Families, FamilySource, ImagePlan, Outgoing, Plan, ProcessorPlan, Role, SentenceTransformer,
    TextPlan,
};
use crate::image::{DecodeOptions, ImageProcessor, ImageProcessorConfig, NaflexConfig, NaflexProcessor};
use crate::model::{ClipConfig, ClipModel, Origin};
use crate::towers::{ImagePooling, TextPooling};
use crate::weights::{self, Checkpoint, Folder, HubOptions, Layout};
use crate::{Error, Result};

mod inspect;
mod parameters;
mod quantize;
mod threads;
mod tokenizer;

pub use quantize::Quantization;
use quantize::Wanted;

/// Everything loading can be told. Each setter states its default.
///
/// ```no_run
/// use diptych::{ClipModel, TextEncoder, towers::TextPooling};
/// let model = ClipModel::loader().offline(true).clip("openai/clip-vit-base-patch32")?;
/// let text = ClipModel::loader().text_pooling(TextPooling::Cls).text_encoder("FacebookAI/roberta-base")?;
/// # Ok::<(), diptych::Error>(())
/// ```
#[derive(Clone)]
pub struct Loader {
    hub: HubOptions,
    families: Arc<Families>,
    device: Device,
    dtype: DType,
    text_pooling: Option<TextPooling>,
    image_pooling: Option<ImagePooling>,
    image_size: Option<u32>,
    decode: DecodeOptions,
    random: Option<u64>,
    trainable: bool,
    quantization: Wanted,
    threads: Option<usize>,
}

/// What a folder turned out to hold.
#[derive(Clone)]
pub enum Loaded {
    /// A dual encoder.
    Clip(Box<ClipModel>),
    /// A text tower alone.
    Text(Box<TextEncoder>),
    /// An image tower alone.
    Image(Box<ImageEncoder>),
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

impl Loader {
    /// Weights as they are, on the CPU, in f32, trainable; the hub as the environment configures it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            hub: HubOptions::from_env(),
            families: Arc::default(),
            device: Device::Cpu,
            dtype: DType::F32,
            text_pooling: None,
            image_pooling: None,
            image_size: None,
            decode: DecodeOptions::default(),
            random: None,
            trainable: true,
            quantization: Wanted::AsStored,
            threads: None,
        }
    }

    /// Where the parameters go (the CPU).
    #[must_use]
    pub fn device(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    /// The type parameters are converted to (f32).
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// The branch, tag or commit on the hub ("main").
    #[must_use]
    pub fn revision(mut self, revision: &str) -> Self {
        self.hub.revision = revision.to_string();
        self
    }

    /// Whether the network is left alone and only folders and the cache are read (as `HF_HUB_OFFLINE` says).
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.hub.offline = offline;
        self
    }

    /// Cache folder, token, endpoint and the rest of the hub's settings (the environment's).
    #[must_use]
    pub fn hub(self, hub: HubOptions) -> Self {
        Self { hub, ..self }
    }

    /// The families that are known ([`Families::default`]).
    #[must_use]
    pub fn families(self, families: Families) -> Self {
        Self { families: Arc::new(families), ..self }
    }

    /// How the text tower is pooled (as its checkpoint says).
    #[must_use]
    pub fn text_pooling(self, pooling: TextPooling) -> Self {
        Self { text_pooling: Some(pooling), ..self }
    }

    /// How the image tower is pooled (as its checkpoint says).
    #[must_use]
    pub fn image_pooling(self, pooling: ImagePooling) -> Self {
        Self { image_pooling: Some(pooling), ..self }
    }

    /// Side of the square input in pixels (as the checkpoint's processor says); position embeddings are interpolated.
    #[must_use]
    pub fn image_size(self, image_size: u32) -> Self {
        Self { image_size: Some(image_size), ..self }
    }

    /// Pixel limit and EXIF orientation of image files (Pillow's limit; orientation applied).
    #[must_use]
    pub fn decode_options(self, decode: DecodeOptions) -> Self {
        Self { decode, ..self }
    }

    /// Random weights drawn from `seed` in place of the checkpoint's: only its configuration, tokenizer and processor are read.
    #[must_use]
    pub fn random_weights(self, seed: u64) -> Self {
        Self { random: Some(seed), ..self }
    }

    /// Whether parameters are loaded as variables that training can change (true). Where not, the weights of linear layers are
    /// packed for the CPU as they are read, and products are faster.
    #[must_use]
    pub fn trainable(self, trainable: bool) -> Self {
        Self { trainable, ..self }
    }

    /// Loads a dual encoder from a folder or a hub id.
    ///
    /// # Errors
    /// When the folder holds none, or something in it does not fit; the error names it.
    pub fn clip(&self, id_or_dir: &str) -> Result<ClipModel> {
        let load = || match self.open(id_or_dir)? {
            (Plan::Clip(plan), files) => self.build_clip(*plan, &files),
            (_, files) => Err(Error::file(
                files.folder.path(),
                "it holds one tower, not a dual encoder; load it with TextEncoder or ImageEncoder",
            )),
        };
        self.on_threads(load, ClipModel::with_threads)
    }

    /// Loads a text tower from a folder or a hub id; of a dual encoder, its text half and nothing else.
    ///
    /// # Errors
    /// When the folder holds none, or something in it does not fit; the error names it.
    pub fn text_encoder(&self, id_or_dir: &str) -> Result<TextEncoder> {
        let load = || match self.open(id_or_dir)? {
            (Plan::Text(plan), files) => self.build_text(*plan, &files),
            (Plan::Clip(plan), files) => {
                let plan = TextPlan { config: plan.config.text, renames: plan.text, tokens: plan.tokens };
                self.build_text(plan, &files)
            }
            (Plan::Image(_), files) => {
                Err(Error::file(files.folder.path(), "it holds an image tower, not a text tower"))
            }
        };
        self.on_threads(load, TextEncoder::with_threads)
    }

    /// Loads an image tower from a folder or a hub id; of a dual encoder, its image half and nothing else.
    ///
    /// # Errors
    /// When the folder holds none, or something in it does not fit; the error names it.
    pub fn image_encoder(&self, id_or_dir: &str) -> Result<ImageEncoder> {
        let load = || match self.open(id_or_dir)? {
            (Plan::Image(plan), files) => self.build_image(*plan, &files),
            (Plan::Clip(plan), files) => {
                let ClipPlan { config, image: renames, processor, .. } = *plan;
                self.build_image(ImagePlan { config: config.image, renames, processor }, &files)
            }
            (Plan::Text(_), files) => {
                Err(Error::file(files.folder.path(), "it holds a text tower, not an image tower"))
            }
        };
        self.on_threads(load, ImageEncoder::with_threads)
    }

    /// Loads whatever the folder holds.
    ///
    /// # Errors
    /// When it is no model that this crate knows, or something in it does not fit; the error names it.
    pub fn load(&self, id_or_dir: &str) -> Result<Loaded> {
        let load = || {
            Ok(match self.open(id_or_dir)? {
                (Plan::Clip(plan), files) => Loaded::Clip(Box::new(self.build_clip(*plan, &files)?)),
                (Plan::Text(plan), files) => Loaded::Text(Box::new(self.build_text(*plan, &files)?)),
                (Plan::Image(plan), files) => Loaded::Image(Box::new(self.build_image(*plan, &files)?)),
            })
        };
        self.on_threads(load, Loaded::with_threads)
    }

    /// What the folder holds, from its configuration and the headers of its files: no weight is read. What keeps it from loading
    /// is in [`Inspection::problems`].
    ///
    /// # Errors
    /// When there is no such folder or no readable configuration in it, or no family that reads it.
    pub fn inspect(&self, id_or_dir: &str) -> Result<Inspection> {
        let loader = Self { random: None, ..self.clone() };
        let (plan, files) = loader.open(id_or_dir)?;
        inspect::inspect(&loader, plan, &files)
    }

    fn open(&self, id_or_dir: &str) -> Result<(Plan, Files)> {
        let folder = weights::resolve(id_or_dir, &self.hub)?;
        let sentences = SentenceTransformer::of(&folder)?;
        let folder = sentences.as_ref().map_or(Ok(folder), |sentences| Folder::open(&sentences.transformer))?;
        let (config, layout) = self.configuration(&folder)?;
        // The hub was asked for the layout that the files suggest, before it was known that no family reads it.
        let folder = match layout == folder.layout()? {
            true => folder,
            false => weights::resolve(id_or_dir, &HubOptions { layout: Some(layout), ..self.hub.clone() })?,
        };
        let checkpoint = match self.random {
            Some(_) => None,
            None => Some(Arc::new(Checkpoint::open_layout(&folder, layout)?)),
        };
        let shape = |checkpoint: &'_ Arc<Checkpoint>| -> Vec<(String, Vec<usize>)> {
            let info = |name: &str| Some((name.to_string(), checkpoint.info(name)?.shape.to_vec()));
            checkpoint.names().filter_map(info).collect()
        };
        let shapes = checkpoint.as_ref().map(shape);
        let tensors = shapes.as_ref().map(|shapes| shapes.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect());
        let mut plan = self.families.plan(&FamilySource { config: config.clone(), tensors, role: Role::Alone })?;
        if let Some(sentences) = sentences {
            sentences.apply(&mut plan);
        }
        let config_file = config.path().to_path_buf();
        Ok((plan, Files { folder, layout, config: config.to_value(), config_file, checkpoint }))
    }

    /// The configuration of the folder and the layout that it belongs to. A folder that holds both layouts is read in Hugging
    /// Face's, if its weights are there and a family knows its model type.
    fn configuration(&self, folder: &Folder) -> Result<(Config, Layout)> {
        let layout = folder.layout()?;
        let known = |value: &Value| {
            value.get("model_type").and_then(Value::as_str).is_some_and(|name| self.families.knows(name))
        };
        let open_clip = Layout::OpenClip.config_file();
        let other = match layout {
            Layout::HuggingFace if folder.file(open_clip).is_some() => !known(&folder.config()?),
            _ => layout == Layout::OpenClip,
        };
        let layout = if other { Layout::OpenClip } else { Layout::HuggingFace };
        let mut value = folder.config_of(layout)?;
        if let (Layout::OpenClip, Some(fields)) = (layout, value.as_object_mut()) {
            fields.insert("model_type".to_string(), Value::from("open_clip"));
        }
        Ok((Config::new(&folder.path().join(layout.config_file()), value)?, layout))
    }

    fn build_clip(&self, plan: ClipPlan, files: &Files) -> Result<ClipModel> {
        let mut config = plan.config.clone();
        self.apply_pooling(Some(&mut config.text.pooling), Some(&mut config.image.pooling));
        let parts = [(ClipConfig::TEXT, &plan.text), (ClipConfig::IMAGE, &plan.image), ("", &plan.heads)];
        // A vocabulary takes as long to read as a hundred megabytes of weights.
        let (parameters, tokenizer) = rayon::join(
            || self.parameters(files, &parts, |params| config.collect(params)),
            || self.tokenizer(files, plan.tokens.clone()),
        );
        let ((parameters, branches), tokenizer) = (parameters?, tokenizer?);
        // Another pooling is another model than the folder's.
        let origin = match branches {
            Some(branches) if config == plan.config => {
                Some(Origin { config: files.config.clone(), stored: branches.stored(&parameters) })
            }
            _ => None,
        };
        let processor = self.processor(files, plan.processor.clone())?;
        let model = ClipModel::from_parameters(config, tokenizer, processor, parameters, &self.device)?;
        let model = match self.naflex(files, &plan.processor)? {
            Some(naflex) => model.with_naflex(naflex)?,
            None => model,
        };
        Ok(model.with_origin(origin))
    }

    fn build_text(&self, plan: TextPlan, files: &Files) -> Result<TextEncoder> {
        let mut config = plan.config;
        self.apply_pooling(Some(&mut config.pooling), None);
        let (parameters, tokenizer) = rayon::join(
            || self.parameters(files, &[("", &plan.renames)], |params| config.build(params).map(drop)),
            || self.tokenizer(files, plan.tokens.clone()),
        );
        TextEncoder::from_parameters(config, tokenizer?, parameters?.0, &self.device)
    }

    fn build_image(&self, plan: ImagePlan, files: &Files) -> Result<ImageEncoder> {
        let mut config = plan.config;
        self.apply_pooling(None, Some(&mut config.pooling));
        let (parameters, _) =
            self.parameters(files, &[("", &plan.renames)], |params| config.build(params).map(drop))?;
        let processor = self.processor(files, plan.processor.clone())?;
        let encoder = ImageEncoder::from_parameters(config, processor, parameters, &self.device)?;
        match self.naflex(files, &plan.processor)? {
            Some(naflex) => encoder.with_naflex(naflex),
            None => Ok(encoder),
        }
    }

    fn apply_pooling(&self, text: Option<&mut TextPooling>, image: Option<&mut ImagePooling>) {
        if let (Some(pooling), Some(chosen)) = (text, self.text_pooling) {
            *pooling = chosen;
        }
        if let (Some(pooling), Some(chosen)) = (image, self.image_pooling) {
            *pooling = chosen;
        }
    }

    fn processor(&self, files: &Files, plan: ProcessorPlan) -> Result<ImageProcessor> {
        let mut config = match plan {
            ProcessorPlan::Folder(class) => ImageProcessorConfig::from_folder(files.folder.path(), class)?,
            ProcessorPlan::Given(config) => *config,
            ProcessorPlan::Naflex => NaflexConfig::from_folder(files.folder.path())?.squares(),
        };
        if let Some(size) = self.image_size {
            config = config.with_image_size(size)?;
        }
        Ok(ImageProcessor::new(config)?.with_decode_options(self.decode))
    }

    /// What makes patches, for towers that take them.
    fn naflex(&self, files: &Files, plan: &ProcessorPlan) -> Result<Option<NaflexProcessor>> {
        let ProcessorPlan::Naflex = plan else { return Ok(None) };
        if self.image_size.is_some() {
            let message = "a NaFlex model has no image size; see NaflexProcessor::with_max_num_patches";
            return Err(Error::argument("image_size", message));
        }
        let processor = NaflexProcessor::new(NaflexConfig::from_folder(files.folder.path())?)?;
        Ok(Some(processor.with_decode_options(self.decode)))
    }
}

struct Files {
    folder: Folder,
    layout: Layout,
    config: Value,
    config_file: std::path::PathBuf,
    checkpoint: Option<Arc<Checkpoint>>,
}

/// What a model's numbers are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Floats of one type.
    Floats(DType),
    /// The integers of quantised weights, and the rest in floats that lose nothing.
    Quantized,
}

/// Writes a model's folder, complete or not at all.
pub(crate) fn save_folder(model: &ClipModel, outgoing: &Outgoing, folder: &Path, numbers: Numbers) -> Result<()> {
    let Outgoing { layout, config, stored } = outgoing;
    weights::save_folder(folder, |target| {
        write_json(&target.join(layout.config_file()), config)?;
        if *layout == Layout::HuggingFace {
            let processor = model.image_encoder().preprocessor_config()?;
            write_json(&target.join("preprocessor_config.json"), &processor)?;
        }
        model.text_encoder().tokenizer().save(target)?;
        let file = target.join(layout.weights_file());
        match numbers {
            Numbers::Floats(dtype) => {
                weights::save_safetensors(file, weights::as_stored(&model.parameters(), stored, dtype)?, &[])
            }
            Numbers::Quantized => weights::save_quantized(&file, &model.parameters()),
        }
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::file(path, error))?;
    std::fs::write(path, text + "\n").map_err(|error| Error::file(path, error))
}
