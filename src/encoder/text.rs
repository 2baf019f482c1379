//! [`TextEncoder`]: a tokenizer and a text tower.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Built;
use crate::loader::Loader;
use crate::text::{TextTokenizer, TokenBatch};
use crate::threads::Threads;
use crate::towers::{Collect, TextPooling, TextTower, TextTowerConfig, TowerOutput};
use crate::weights::{Parameters, Params, RandomSource};
use crate::{Error, Result};

/// Which tower, and how it is pooled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderConfig {
    /// The tower and its sizes.
    pub tower: TextTowerConfig,
    /// How its tokens become one row.
    pub pooling: TextPooling,
}

impl TextEncoderConfig {
    pub(crate) fn build(&self, params: &Params) -> Result<Box<dyn TextTower>> {
        self.tower.build(params, self.pooling)
    }

    /// Width E of the pooled output.
    #[must_use]
    pub fn pooled_size(&self) -> usize {
        self.tower.pooled_size()
    }
}

/// Texts in, one row each out: the tokenizer of the checkpoint and its tower.
#[derive(Clone)]
pub struct TextEncoder {
    config: TextEncoderConfig,
    tokenizer: Arc<TextTokenizer>,
    tower: Built<dyn TextTower>,
    device: Device,
    threads: Threads,
    batch_size: usize,
}

impl TextEncoder {
    /// Loads a text tower from a folder or a hub id; of a dual encoder's folder, its text half. A folder of sentence-transformers
    /// keeps its pooling and its length: [`TextEncoder::encode`] gives its embedding before it is normalised.
    ///
    /// # Errors
    /// When the folder holds no text tower that this crate knows, or its tensors do not fit its configuration.
    ///
    /// ```no_run
    /// let encoder = diptych::TextEncoder::from_pretrained("FacebookAI/roberta-base")?;
    /// let pooled = encoder.encode(&["a photo of a cat"])?; // (1, 768), the mean over the tokens
    /// # Ok::<(), diptych::Error>(())
    /// ```
    pub fn from_pretrained(id_or_dir: &str) -> Result<Self> {
        Loader::new().text_encoder(id_or_dir)
    }

    /// A tower with random, trainable weights drawn from `seed`.
    ///
    /// # Errors
    /// When the configuration asks for impossible sizes.
    pub fn random(config: &TextEncoderConfig, tokenizer: TextTokenizer, seed: u64, device: &Device) -> Result<Self> {
        let params = Params::new(RandomSource::new(seed, DType::F32, device));
        Self::from_params(config, tokenizer, &params, device)
    }

    /// A tower whose parameters come from `params`: from a candle `VarBuilder`, say, through
    /// [`VarBuilderSource`](crate::weights::VarBuilderSource).
    ///
    /// # Errors
    /// When parameters are missing or have another shape.
    pub fn from_params(
        config: &TextEncoderConfig,
        tokenizer: TextTokenizer,
        params: &Params,
        device: &Device,
    ) -> Result<Self> {
        config.build(params)?;
        Self::from_parameters(config.clone(), tokenizer, params.finish("text tower")?, device)
    }

    pub(crate) fn from_parameters(
        config: TextEncoderConfig,
        tokenizer: TextTokenizer,
        parameters: Parameters,
        device: &Device,
    ) -> Result<Self> {
        let tower = Built::new(parameters, |params| config.build(params))?;
        let (device, threads) = (device.clone(), Threads::default());
        Ok(Self { config, tokenizer: Arc::new(tokenizer), tower, device, threads, batch_size: 32 })
    }

    pub(crate) fn with_threads(self, threads: Threads) -> Self {
        Self { threads, ..self }
    }

    pub(crate) fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The same encoder with nothing to train.
    ///
    /// # Errors
    /// Never for a built encoder.
    pub fn freeze(self) -> Result<Self> {
        self.with_trainable(|_| false)
    }

    /// The same encoder where the parameters that `trainable` says yes to are trained and the others frozen. Names are as in
    /// [`TextEncoder::parameters`].
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

    /// How many texts [`TextEncoder::encode`] takes at a time (32).
    #[must_use]
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        Self { batch_size: batch_size.max(1), ..self }
    }

    /// Token ids of `texts`, padded to one length and cut to the tower's positions.
    ///
    /// # Errors
    /// When the list is empty or the tokenizer fails.
    pub fn tokenize(&self, texts: &[impl AsRef<str> + Sync]) -> Result<TokenBatch> {
        self.threads.install(|| self.tokenizer.encode(texts))
    }

    /// Pooled outputs with no graph, in batches. Texts of like length share a batch, so little padding is computed.
    ///
    /// # Shapes
    /// N texts → (N,E).
    ///
    /// # Errors
    /// When the list is empty.
    pub fn encode(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Tensor> {
        self.encode_in_batches(texts, self.batch_size, |_| {})
    }

    /// [`TextEncoder::encode`] in batches of `batch_size`; `done` is told how many texts are done.
    pub(crate) fn encode_in_batches(
        &self,
        texts: &[impl AsRef<str> + Sync],
        batch_size: usize,
        mut done: impl FnMut(usize),
    ) -> Result<Tensor> {
        if texts.is_empty() {
            return Err(Error::argument("texts", "the list is empty; give at least one text"));
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| texts[i].as_ref().len());
        let mut rows = Vec::with_capacity(texts.len().div_ceil(batch_size));
        for batch in order.chunks(batch_size) {
            let batch: Vec<&str> = batch.iter().map(|&i| texts[i].as_ref()).collect();
            rows.push(self.pooled_detached(&self.tokenize(&batch)?)?);
            done(texts.len().min(rows.len() * batch_size));
        }
        let mut place = vec![0u32; order.len()];
        for (row, &text) in order.iter().enumerate() {
            place[text] = row as u32;
        }
        let place = Tensor::from_vec(place, order.len(), &self.device)?;
        Ok(Tensor::cat(&rows, 0)?.index_select(&place, 0)?)
    }

    /// Pooled outputs, with the graph of the trainable parameters.
    ///
    /// # Shapes
    /// `tokens` (B,L) → (B,E).
    ///
    /// # Errors
    /// When an id is outside of the vocabulary or the texts are longer than the tower's positions.
    pub fn pooled(&self, tokens: &TokenBatch) -> Result<Tensor> {
        self.threads.install_on(&self.device, || self.tower.tracked().pooled(tokens))
    }

    /// Pooled outputs without a graph.
    ///
    /// # Shapes
    /// `tokens` (B,L) → (B,E).
    ///
    /// # Errors
    /// As [`TextEncoder::pooled`].
    pub fn pooled_detached(&self, tokens: &TokenBatch) -> Result<Tensor> {
        self.threads.install_on(&self.device, || self.tower.detached().pooled(tokens))
    }

    /// Token-level outputs and, if asked for, every layer's hidden states, with the graph of the trainable parameters. This is
    /// what conditions a generator.
    ///
    /// # Errors
    /// As [`TextEncoder::pooled`].
    pub fn forward(&self, tokens: &TokenBatch, collect: Collect) -> Result<TowerOutput> {
        self.threads.install_on(&self.device, || self.tower.tracked().forward(tokens, collect))
    }

    /// Every parameter by name.
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
    pub fn config(&self) -> &TextEncoderConfig {
        &self.config
    }

    /// What turns texts into ids.
    #[must_use]
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Where the parameters are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }
}
