//! Whether a text and an image belong together, judged by a text tower that looks at the image: BLIP's matching head (Li et al.
//! 2022, arXiv 2201.12086, section 3.1; reference: `BlipForImageTextRetrieval` of transformers).
//!
//! ```text
//! image ─tower─▶ tokens (P,K) ─┐
//! text ──────────────────────▶ BERT with cross-attention ─▶ first token ─linear─▶ 2 logits ─softmax─▶ p(match)
//! ```
//!
//! It costs a pass of the text tower for each pair, so it re-ranks the short list that embeddings found.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::image::ImageInput;
use crate::model::ClipModel;
use crate::nn::Linear;
use crate::ops;
use crate::text::TokenBatch;
use crate::towers::{Collect, CrossBert, TextTowerConfig};
use crate::weights::{Init, Params};
use crate::{Error, Result, TextEncoderConfig};

/// A matching head and the cross-attention below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchingConfig {
    /// Width K of the image tokens that texts look at.
    pub image_token_size: usize,
}

/// The text tower with its cross-attention, and the head.
pub(crate) struct Matching {
    tower: CrossBert,
    head: Linear,
}

impl MatchingConfig {
    /// How many texts look at an image at a time.
    const BATCH_SIZE: usize = 32;

    /// Reads the text tower's own parameters from `text`, and the rest from `params`.
    pub(crate) fn build(&self, text: &TextEncoderConfig, text_params: &Params, params: &Params) -> Result<Matching> {
        let TextTowerConfig::Bert(tower) = &text.tower else {
            return Err(Error::argument("matching", "its text tower must be a BERT"));
        };
        let init = Init::Normal { std: tower.initializer_range as f32 };
        Ok(Matching {
            tower: CrossBert::new(text_params, params, tower, self.image_token_size)?,
            head: Linear::new(&params.pp("itm_head"), tower.hidden_size, 2, init)?,
        })
    }
}

impl Matching {
    fn logits(&self, image_tokens: &Tensor, tokens: &TokenBatch) -> Result<Tensor> {
        let read = self.tower.forward(tokens, image_tokens)?;
        self.head.forward(&ops::select_tokens(&read, &vec![0; tokens.batch()])?)
    }
}

impl ClipModel {
    /// The probability that a text matches an image, for each image with each text: rows are images. Each image's tokens are
    /// computed once and looked at by all texts, 32 at a time. No graph is kept.
    ///
    /// To re-rank, give one image and the texts found for it, or one text and the images found for it.
    ///
    /// # Shapes
    /// N images, M texts → N rows of M probabilities.
    ///
    /// # Errors
    /// When the model has no matching head (only BLIP's retrieval checkpoints have one), a list is empty, or an image cannot be
    /// read.
    ///
    /// ```no_run
    /// let model = diptych::ClipModel::from_pretrained("Salesforce/blip-itm-base-coco")?;
    /// let scores = model.match_scores(["cat.jpg"], &["a cat on a sofa", "a dog"])?;
    /// println!("{:.3} {:.3}", scores[0][0], scores[0][1]);
    /// # Ok::<(), diptych::Error>(())
    /// ```
    pub fn match_scores<I>(&self, images: I, texts: &[impl AsRef<str> + Sync]) -> Result<Vec<Vec<f32>>>
    where
        I: IntoIterator,
        I::Item: Into<ImageInput>,
    {
        let matching = self.matching()?;
        let images: Vec<ImageInput> = images.into_iter().map(Into::into).collect();
        if images.is_empty() {
            return Err(Error::argument("images", "the list is empty; give at least one image"));
        }
        let batches = texts.chunks(MatchingConfig::BATCH_SIZE);
        let batches = batches.map(|texts| self.text_encoder().tokenize(texts)).collect::<Result<Vec<_>>>()?;
        if batches.is_empty() {
            return Err(Error::argument("texts", "the list is empty; give at least one text"));
        }
        let encoder = self.image_encoder();
        let scores = |image: &ImageInput| -> Result<Vec<f32>> {
            let pixels = encoder.processor().pixel_values(std::slice::from_ref(image), encoder.device())?;
            let image_tokens = encoder.forward_detached(&pixels, Collect::Last)?.last_hidden_state;
            let (_, places, size) = image_tokens.dims3()?;
            let mut row = Vec::with_capacity(texts.len());
            for tokens in &batches {
                let same = image_tokens.broadcast_as((tokens.batch(), places, size))?.contiguous()?;
                row.extend(probabilities(&matching.logits(&same, tokens)?)?);
            }
            Ok(row)
        };
        images.iter().map(scores).collect()
    }

    /// The matching head's two numbers for each pair of an image and a text; index 1 speaks for a match. `image_tokens` are the
    /// image tower's `last_hidden_state`. No graph is kept.
    ///
    /// # Shapes
    /// `image_tokens` (B,P,K), `tokens` (B,L) → (B,2).
    ///
    /// # Errors
    /// When the model has no matching head, or shapes do not fit.
    pub fn match_logits(&self, image_tokens: &Tensor, tokens: &TokenBatch) -> Result<Tensor> {
        self.matching()?.logits(&image_tokens.detach(), tokens)
    }

    fn matching(&self) -> Result<Matching> {
        let Some(config) = self.config().matching else {
            let message = "the model has no matching head; BlipForImageTextRetrieval checkpoints have one. Rank by cosine, \
                           with embed_images and embed_texts";
            return Err(Error::argument("match_scores", message));
        };
        // Built anew: the parameters are shared, and those of the text tower may have been replaced.
        let text = Params::new(self.text_encoder().parameters().detached());
        config.build(&self.config().text, &text, &Params::new(self.matching_parameters().clone()))
    }
}

/// The softmax's second column.
fn probabilities(logits: &Tensor) -> Result<Vec<f32>> {
    let logits = logits.to_dtype(DType::F32)?;
    let difference = (logits.narrow(D::Minus1, 0, 1)? - logits.narrow(D::Minus1, 1, 1)?)?.flatten_all()?;
    Ok(difference.to_vec1::<f32>()?.into_iter().map(|d| 1.0 / (1.0 + d.exp())).collect())
}
