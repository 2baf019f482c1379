//! [`ZeroShotHead`]: one weight a class, made of the embeddings of the class's prompts.
//!
//! With the unit embeddings tₖ of a class's K prompts, a unit image embedding x and the scale s (already exponentiated):
//!
//! ```text
//! w = normalize(1/K Σₖ tₖ)        (open_clip, zero_shot_classifier.py)
//! p(class | x) = softmax over the classes of s · x·w
//! ```
//!
//! A model with a logit bias b (SigLIP) learned whether an image and a text belong together, each pair for itself. There, as in
//! transformers' `zero_shot_image_classification.py`, `p(class | x) = sigmoid(s · x·w + b)`: probabilities do not sum to 1, and
//! an image of none of the classes may get low ones throughout.

use std::collections::HashSet;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::retrieval::top_k;
use crate::{Embeddings, Error, Result};

/// A label and how probable it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// The class's label.
    pub label: String,
    /// Its probability in [0, 1]; those of all classes sum to 1, except where the model has a logit bias.
    pub probability: f32,
}

/// What an evaluation on labelled images found, in percent. Serialised, percentages have two decimals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ZeroShotReport {
    /// How many images have their own label in the first place.
    #[serde(serialize_with = "crate::retrieval::two_decimals")]
    pub top1: f64,
    /// How many have it among the first five.
    #[serde(serialize_with = "crate::retrieval::two_decimals")]
    pub top5: f64,
    /// How many images there were.
    pub images: usize,
    /// How many classes there were.
    pub classes: usize,
}

/// A classifier made of words: labels, a unit weight for each of them, and the model's scale and bias.
#[derive(Debug, Clone, PartialEq)]
pub struct ZeroShotHead {
    labels: Vec<String>,
    weights: Embeddings,
    scale: f32,
    bias: Option<f32>,
}

impl ZeroShotHead {
    /// The head of `labels` from the embeddings of their prompts, which come in the order of
    /// [`prompts`](crate::zero_shot::prompts); `scale` is the model's logit scale, already exponentiated.
    ///
    /// # Shapes
    /// `prompt_embeddings` (classes·`templates`, D) → weights (classes, D).
    ///
    /// # Errors
    /// When the labels are none, blank or repeated, the numbers do not fit, the scale is not positive and finite, or the
    /// prompts of a class cancel out.
    pub fn from_prompt_embeddings(
        labels: &[impl AsRef<str>],
        prompt_embeddings: &Embeddings,
        templates: usize,
        scale: f32,
    ) -> Result<Self> {
        check_labels(labels)?;
        if templates == 0 || labels.len().checked_mul(templates) != Some(prompt_embeddings.len()) {
            let (labels, prompts) = (labels.len(), prompt_embeddings.len());
            let message = format!("{prompts} rows do not fit {labels} labels with {templates} templates each");
            return Err(Error::argument("prompt_embeddings", message));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Error::argument("scale", format!("is {scale}; it must be positive and finite")));
        }
        let dim = prompt_embeddings.dim();
        let mut sums = vec![0f32; labels.len() * dim];
        for (prompt, row) in prompt_embeddings.rows().enumerate() {
            let class = prompt / templates * dim;
            sums[class..class + dim].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        if let Some(class) = sums.chunks(dim).position(|sum| sum.iter().all(|&value| value == 0.0)) {
            return Err(Error::argument("labels", format!("the prompts of '{}' cancel out", labels[class].as_ref())));
        }
        // The mean's factor 1/K goes away in the normalisation.
        let weights = Embeddings::from_features(&Tensor::from_vec(sums, (labels.len(), dim), &Device::Cpu)?)?;
        let weights = match prompt_embeddings.model() {
            Some(model) => weights.with_model(model),
            None => weights,
        };
        Ok(Self { labels: labels.iter().map(|label| label.as_ref().to_string()).collect(), weights, scale, bias: None })
    }

    /// The same head for a model with a logit bias: it is added to the logits, and each class's probability is the sigmoid of
    /// its own logit instead of the softmax of all.
    ///
    /// # Errors
    /// When the bias is not finite.
    pub fn with_bias(self, bias: f32) -> Result<Self> {
        if !bias.is_finite() {
            return Err(Error::argument("bias", format!("is {bias}; it must be finite")));
        }
        Ok(Self { bias: Some(bias), ..self })
    }

    /// The labels, in the order of the weights.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// One unit row a class (classes, D).
    #[must_use]
    pub fn weights(&self) -> &Embeddings {
        &self.weights
    }

    /// The factor between cosine and logit.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// What is added to the logits, where the model has it.
    #[must_use]
    pub fn bias(&self) -> Option<f32> {
        self.bias
    }

    /// Scale times cosine of each image with each class, plus the bias.
    ///
    /// # Shapes
    /// `images` (N,D) → (N, classes).
    ///
    /// # Errors
    /// When the images were embedded by another model or have another width.
    pub fn logits(&self, images: &Embeddings) -> Result<Tensor> {
        Ok(images.cosine(&self.weights)?.affine(f64::from(self.scale), f64::from(self.bias.unwrap_or(0.0)))?)
    }

    /// For each image all labels with their probabilities, best first; of equal ones the earlier label comes first.
    ///
    /// # Shapes
    /// `images` (N,D) → N lists, each of all classes.
    ///
    /// # Errors
    /// As [`ZeroShotHead::logits`].
    pub fn probabilities(&self, images: &Embeddings) -> Result<Vec<Vec<Classification>>> {
        Ok(self.logits(images)?.to_vec2::<f32>()?.iter().map(|logits| self.best_first(logits)).collect())
    }

    /// How often the label of an image comes first, and how often among the first five; `targets` are indices into the
    /// labels. With fewer than five classes `top5` is 100.
    ///
    /// # Errors
    /// When the numbers of images and targets differ, a target is no label, or as [`ZeroShotHead::logits`].
    pub fn evaluate(&self, images: &Embeddings, targets: &[usize]) -> Result<ZeroShotReport> {
        if images.len() != targets.len() {
            return Err(Error::argument("targets", format!("{} for {} images", targets.len(), images.len())));
        }
        if let Some(target) = targets.iter().find(|&&target| target >= self.labels.len()) {
            return Err(Error::argument(
                "targets",
                format!("there is no label {target}; there are {}", self.labels.len()),
            ));
        }
        let hits = top_k(images, &self.weights, 5)?;
        let percent = |k: usize| {
            let found = |(hits, target): &(&Vec<crate::retrieval::Hit>, &usize)| {
                hits.iter().take(k).any(|hit| hit.index == **target)
            };
            100.0 * hits.iter().zip(targets).filter(found).count() as f64 / targets.len().max(1) as f64
        };
        Ok(ZeroShotReport { top1: percent(1), top5: percent(5), images: images.len(), classes: self.labels.len() })
    }

    fn best_first(&self, logits: &[f32]) -> Vec<Classification> {
        best_first(&self.labels, if self.bias.is_some() { sigmoid(logits) } else { softmax(logits) })
    }
}

/// Labels with their probabilities, best first; of equal ones the earlier label comes first.
pub(crate) fn best_first(labels: &[String], probabilities: Vec<f32>) -> Vec<Classification> {
    let named = |(label, probability): (&String, f32)| Classification { label: label.clone(), probability };
    let mut classes: Vec<Classification> = labels.iter().zip(probabilities).map(named).collect();
    classes.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    classes
}

pub(crate) fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f32 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}

fn sigmoid(logits: &[f32]) -> Vec<f32> {
    logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect()
}

/// Labels must be there, say something, and differ.
pub(crate) fn check_labels(labels: &[impl AsRef<str>]) -> Result<()> {
    if labels.is_empty() {
        return Err(Error::argument("labels", "the list is empty; at least one label is needed"));
    }
    let mut seen = HashSet::new();
    for (i, label) in labels.iter().map(|label| label.as_ref().trim()).enumerate() {
        if label.is_empty() {
            return Err(Error::argument("labels", format!("label {i} is blank")));
        }
        if !seen.insert(label) {
            return Err(Error::argument("labels", format!("'{label}' comes twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings(rows: &[[f32; 2]]) -> Embeddings {
        Embeddings::from_features(&Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap())
            .unwrap()
    }

    fn head() -> ZeroShotHead {
        // "cat" lies between its two prompts, "dog" has two equal ones.
        let prompts = embeddings(&[[1.0, 0.0], [0.28, 0.96], [0.0, -1.0], [0.0, -3.0]]).with_model("m");
        ZeroShotHead::from_prompt_embeddings(&["cat", "dog"], &prompts, 2, 2.0).unwrap()
    }

    #[test]
    fn a_class_is_the_normalised_mean_of_its_prompts() {
        let head = head();
        let close = |found: &[f32], expected: [f32; 2]| found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6);
        assert!(close(head.weights().row(0).unwrap(), [0.8, 0.6]), "{:?}", head.weights());
        assert!(close(head.weights().row(1).unwrap(), [0.0, -1.0]), "{:?}", head.weights());
        assert_eq!(head.weights().model(), Some("m"));
        assert_eq!((head.labels(), head.scale()), (["cat".to_string(), "dog".to_string()].as_slice(), 2.0));
    }

    #[test]
    fn probabilities_are_the_softmax_of_the_scaled_cosines_best_first() {
        let found = head().probabilities(&embeddings(&[[0.0, 1.0], [0.0, -1.0]])).unwrap();
        let expected = 1.0 / (1.0 + (-2.0 - 1.2f32).exp());
        assert_eq!(found[0][0].label, "cat");
        assert!((found[0][0].probability - expected).abs() < 1e-6);
        assert!((found[0][1].probability - (1.0 - expected)).abs() < 1e-6);
        assert_eq!(found[1][0].label, "dog");
    }

    #[test]
    fn with_a_bias_each_class_has_the_sigmoid_of_its_own_logit() {
        let head = head().with_bias(-1.5).unwrap();
        let found = &head.probabilities(&embeddings(&[[0.0, 1.0]])).unwrap()[0];
        let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
        assert_eq!((found[0].label.as_str(), head.bias()), ("cat", Some(-1.5)));
        assert!((found[0].probability - sigmoid(2.0 * 0.6 - 1.5)).abs() < 1e-6, "{found:?}");
        assert!((found[1].probability - sigmoid(-2.0 - 1.5)).abs() < 1e-6, "{found:?}");
        assert!(head.with_bias(f32::NAN).unwrap_err().to_string().starts_with("bias"));
    }

    #[test]
    fn accuracy_counts_the_right_label_among_the_first() {
        let labels = ["n", "ne", "e", "se", "s", "sw"];
        let rows = [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, -1.0], [0.0, -1.0], [-1.0, -1.0]];
        let head = ZeroShotHead::from_prompt_embeddings(&labels, &embeddings(&rows), 1, 1.0).unwrap();
        let images = embeddings(&[[0.1, 1.0], [0.1, 1.0], [0.1, 1.0], [0.1, 1.0]]);
        let report = head.evaluate(&images, &[0, 1, 5, 4]).unwrap();
        assert_eq!(report, ZeroShotReport { top1: 25.0, top5: 75.0, images: 4, classes: 6 });
        assert_eq!(serde_json::to_string(&report).unwrap(), r#"{"top1":25.0,"top5":75.0,"images":4,"classes":6}"#);
    }

    #[test]
    fn what_makes_no_classifier_is_refused_by_name() {
        let two = embeddings(&[[1.0, 0.0], [-1.0, 0.0]]);
        let refused = |labels: &[&str], templates: usize, scale: f32| {
            ZeroShotHead::from_prompt_embeddings(labels, &two, templates, scale).unwrap_err().to_string()
        };
        assert!(refused(&[], 1, 1.0).contains("labels: the list is empty"));
        assert!(refused(&["cat", " "], 1, 1.0).contains("label 1 is blank"));
        assert!(refused(&["cat", "cat "], 1, 1.0).contains("'cat' comes twice"));
        assert!(refused(&["cat"], 1, 1.0).contains("2 rows do not fit 1 labels with 1 templates"));
        assert!(refused(&["cat", "dog"], 0, 1.0).contains("0 templates"));
        assert!(refused(&["cat", "dog"], 1, f32::NAN).starts_with("scale"));
        assert!(refused(&["cat"], 2, 1.0).contains("'cat' cancel out"));
        let other = embeddings(&[[1.0, 0.0]]).with_model("other");
        assert!(head().probabilities(&other).unwrap_err().to_string().contains("model 'other'"));
        assert!(head().evaluate(&two, &[0]).unwrap_err().to_string().contains("1 for 2 images"));
        assert!(head().evaluate(&two, &[0, 2]).unwrap_err().to_string().contains("no label 2; there are 2"));
    }
}
