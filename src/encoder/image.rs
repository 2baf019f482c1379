//! [`ImageEncoder`]: an image processor and an image tower.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Built;
use super::stream::ImageStream;
use crate::Result;
use crate::image::{ImageInput, ImageProcessor, NaflexBatch, NaflexProcessor};
use crate::loader::Loader;
use crate::threads::Threads;
use crate::towers::{Collect, ImagePooling, ImageTower, ImageTowerConfig, PatchDepth, PatchDropout, TowerOutput};
use crate::weights::{Parameters, Params, RandomSource};

/// Which tower, and how it is pooled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEncoderConfig {
    /// The tower and its sizes.
    pub tower: ImageTowerConfig,
    /// How its tokens become one row.
    pub pooling: ImagePooling,
}

impl ImageEncoderConfig {
    pub(crate) fn build(&self, params: &Params) -> Result<Box<dyn ImageTower>> {
        self.tower.build(params, self.pooling)
    }

    /// Width E of the pooled output.
    #[must_use]
    pub fn pooled_size(&self) -> usize {
        self.tower.pooled_size(self.pooling)
    }
}

/// Images in, one row each out: the preprocessing of the checkpoint and its tower.
#[derive(Clone)]
pub struct ImageEncoder {
    config: ImageEncoderConfig,
    processor: ImageProcessor,
    naflex: Option<NaflexProcessor>,
    tower: Built<dyn ImageTower>,
    device: Device,
    threads: Threads,
    batch_size: usize,
}

impl ImageEncoder {
    /// Loads an image tower from a folder or a hub id; of a dual encoder's folder, its image half.
    ///
    /// # Errors
    /// When the folder holds no image tower that this crate knows, or its tensors do not fit its configuration.
    ///
    /// ```no_run
    /// let encoder = diptych::ImageEncoder::from_pretrained("google/vit-base-patch16-224")?;
    /// let pooled = encoder.encode(["cat.jpg", "dog.jpg"])?; // (2, 1000): this checkpoint is a classifier
    /// # Ok::<(), diptych::Error>(())
    /// ```
    pub fn from_pretrained(id_or_dir: &str) -> Result<Self> {
        Loader::new().image_encoder(id_or_dir)
    }

    /// A tower with random, trainable weights drawn from `seed`.
    ///
    /// # Errors
    /// When the configuration asks for impossible sizes.
    pub fn random(config: &ImageEncoderConfig, processor: ImageProcessor, seed: u64, device: &Device) -> Result<Self> {
        let params = Params::new(RandomSource::new(seed, DType::F32, device));
        Self::from_params(config, processor, &params, device)
    }

    /// A tower whose parameters come from `params`: from a candle `VarBuilder`, say, through
    /// [`VarBuilderSource`](crate::weights::VarBuilderSource).
    ///
    /// # Errors
    /// When parameters are missing or have another shape.
    pub fn from_params(
        config: &ImageEncoderConfig,
        processor: ImageProcessor,
        params: &Params,
        device: &Device,
    ) -> Result<Self> {
        config.build(params)?;
        Self::from_parameters(config.clone(), processor, params.finish("image tower")?, device)
    }

    pub(crate) fn from_parameters(
        config: ImageEncoderConfig,
        processor: ImageProcessor,
        parameters: Parameters,
        device: &Device,
    ) -> Result<Self> {
        let tower = Built::new(parameters, |params| config.build(params))?;
        let (device, threads) = (device.clone(), Threads::default());
        Ok(Self { config, processor, naflex: None, tower, device, threads, batch_size: 32 })
    }

    pub(crate) fn with_threads(self, threads: Threads) -> Self {
        Self { threads, ..self }
    }

    pub(crate) fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The same encoder whose images keep their proportions: [`ImageEncoder::encode`] makes patches of them with `naflex`.
    ///
    /// # Errors
    /// When the tower takes no patches.
    pub fn with_naflex(self, naflex: NaflexProcessor) -> Result<Self> {
        match self.config.tower {
            ImageTowerConfig::Naflex(_) => Ok(Self { naflex: Some(naflex), ..self }),
            _ => Err(crate::Error::argument("naflex", "the tower takes pixel_values (B,C,H,W), not patches")),
        }
    }

    /// The same encoder with nothing to train.
    ///
    /// # Errors
    /// Never for a built encoder.
    pub fn freeze(self) -> Result<Self> {
        self.with_trainable(|_| false)
    }

    /// The same encoder where the parameters that `trainable` says yes to are trained and the others frozen. Names are as in
    /// [`ImageEncoder::parameters`].
    ///
    /// # Errors
    /// When candle cannot allocate a variable.
    pub fn with_trainable(self, trainable: impl Fn(&str) -> bool) -> Result<Self> {
        self.map_parameters(|parameters| parameters.with_trainable(&trainable))
    }

    /// The same encoder with what `map` makes of its parameters.
    pub(crate) fn map_parameters(self, map: impl FnOnce(&Parameters) -> Result<Parameters>) -> Result<Self> {
        let tower = Built::new(map(self.tower.parameters())?, |params| self.config.build(params))?;
        Ok(Self { tower, ..self })
    }

    /// The names of the tower's linear layers.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &str> {
        self.tower.linears().iter().map(String::as_str)
    }

    /// How many images [`ImageEncoder::encode`] takes at a time (32).
    #[must_use]
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        Self { batch_size: batch_size.max(1), ..self }
    }

    /// The same encoder for square inputs of `image_size` pixels; position embeddings are interpolated.
    ///
    /// # Errors
    /// When the size is zero.
    pub fn with_image_size(self, image_size: u32) -> Result<Self> {
        if self.naflex.is_some() {
            let message = "a NaFlex model has no image size; see NaflexProcessor::with_max_num_patches and with_naflex";
            return Err(crate::Error::argument("image_size", message));
        }
        let config = self.processor.config().with_image_size(image_size)?;
        let processor = ImageProcessor::new(config)?.with_decode_options(*self.processor.decode_options());
        Ok(Self { processor, ..self })
    }

    /// Pooled outputs with no graph, in batches, decoding and preprocessing included: what [`ImageEncoder::encode_iter`] gives,
    /// together.
    ///
    /// # Shapes
    /// N images → (N,E).
    ///
    /// # Errors
    /// When the list is empty or an image cannot be read; the error names its file and its index.
    pub fn encode<I>(&self, images: I) -> Result<Tensor>
    where
        I: IntoIterator,
        I::Item: Into<ImageInput>,
    {
        let rows = self.encode_iter(images).collect::<Result<Vec<_>>>()?;
        if rows.is_empty() {
            return Err(crate::Error::argument("images", "the list is empty; give at least one image"));
        }
        Ok(Tensor::cat(&rows, 0)?)
    }

    /// Pooled outputs with no graph, a batch at a time, in the order of `images`. While the tower works on a batch, images of the
    /// next are drawn from `images`, decoded and resized on as many other threads as the tower has; a batch and that many images
    /// are prepared at most, however many there are. The first error ends the iterator; dropping it stops the other threads after
    /// the image each is busy with.
    ///
    /// # Shapes
    /// Each item (B,E), B being the [batch size](ImageEncoder::with_batch_size), fewer in the last.
    ///
    /// # Errors
    /// Of an item: when an image cannot be read (the error names its file and its index), or those of a batch differ in size.
    pub fn encode_iter<I>(&self, images: I) -> impl Iterator<Item = Result<Tensor>> + use<'_, I>
    where
        I: IntoIterator,
        I::Item: Into<ImageInput>,
    {
        ImageStream::new(self, images.into_iter().map(Into::into))
    }

    /// How many images [`ImageEncoder::encode_iter`] takes at a time.
    pub(super) fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Pooled outputs of patches, without a graph.
    pub(super) fn pooled_patches(&self, batch: &NaflexBatch) -> Result<Tensor> {
        let forward = || self.tower.detached().forward_patches(batch, Collect::Last);
        Ok(self.threads.install_on(&self.device, forward)?.pooled)
    }

    /// Pooled outputs, with the graph of the trainable parameters.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.threads.install_on(&self.device, || self.tower.tracked().pooled(pixel_values))
    }

    /// [`ImageEncoder::pooled`] of some of the patches, for training.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W), `patches` of B images → (B,E).
    ///
    /// # Errors
    /// When the tower's patches cannot be dropped, or shapes do not fit.
    pub fn pooled_of_some(&self, pixel_values: &Tensor, patches: &PatchDropout) -> Result<Tensor> {
        self.threads.install_on(&self.device, || self.tower.tracked().pooled_of_some(pixel_values, patches))
    }

    /// [`ImageEncoder::pooled`], of some of the patches where `patches` says which, and the tokens of these patches at `depth`.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,E) and (B,K,E′).
    ///
    /// # Errors
    /// When the tower is no vision transformer or its patches cannot be dropped, or shapes do not fit.
    pub fn pooled_and_patches(
        &self,
        pixel_values: &Tensor,
        patches: Option<&PatchDropout>,
        depth: PatchDepth,
    ) -> Result<(Tensor, Tensor)> {
        let forward = || self.tower.tracked().pooled_and_patches(pixel_values, patches, depth);
        self.threads.install_on(&self.device, forward)
    }

    /// Pooled outputs without a graph.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn pooled_detached(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.threads.install_on(&self.device, || self.tower.detached().pooled(&pixel_values.detach()))
    }

    /// Token-level outputs and, if asked for, every layer's hidden states, with the graph of the trainable parameters.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, pixel_values: &Tensor, collect: Collect) -> Result<TowerOutput> {
        self.threads.install_on(&self.device, || self.tower.tracked().forward(pixel_values, collect))
    }

    /// [`ImageEncoder::forward`] of images that keep their proportions, as [`ImageEncoder::naflex`] makes them; only NaFlex towers
    /// take them.
    ///
    /// # Errors
    /// When the tower is no NaFlex tower, or shapes do not fit.
    pub fn forward_patches(&self, batch: &NaflexBatch, collect: Collect) -> Result<TowerOutput> {
        self.threads.install_on(&self.device, || self.tower.tracked().forward_patches(batch, collect))
    }

    /// [`ImageEncoder::forward`] without a graph.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_detached(&self, pixel_values: &Tensor, collect: Collect) -> Result<TowerOutput> {
        self.threads.install_on(&self.device, || self.tower.detached().forward(&pixel_values.detach(), collect))
    }

    /// Every parameter by name; the names are those of Hugging Face's `CLIPVisionModel`.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        self.tower.parameters()
    }

    /// Whether nothing is trained.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.tower.is_frozen()
    }

    /// The tower's configuration and pooling.
    #[must_use]
    pub fn config(&self) -> &ImageEncoderConfig {
        &self.config
    }

    /// What turns files into patches, where images keep their proportions.
    #[must_use]
    pub fn naflex(&self) -> Option<&NaflexProcessor> {
        self.naflex.as_ref()
    }

    /// The `preprocessor_config.json` of this encoder.
    pub(crate) fn preprocessor_config(&self) -> Result<serde_json::Value> {
        match &self.naflex {
            Some(naflex) => Ok(naflex.config().to_hugging_face()),
            None => self.processor.config().to_hugging_face(),
        }
    }

    /// What turns files into pixel values. A NaFlex tower takes pixel values too, of any size: with this processor, squares.
    #[must_use]
    pub fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// Where the parameters are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }
}
