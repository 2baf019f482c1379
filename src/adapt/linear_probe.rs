//! [`LinearProbe`]: logistic regression on the features of a frozen tower (Radford et al. 2021, appendix A.3).
//!
//! With features x (N,E), centred and divided by their standard deviation σ, and C classes:
//!
//! ```text
//! p = softmax(W·(x − μ)/σ + b)
//! loss = −1/N Σᵢ ln pᵢ[classᵢ] + λ/2 ‖W‖²
//! ```
//!
//! The whole batch at once, by L-BFGS. λ is chosen on images held out, in decades and then in halves of them; then all images
//! are fitted. The layer that comes out takes the features as they are: μ and σ are in its weight and bias.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::logistic::{Standardized, hits, host};
use crate::weights::save_safetensors;
use crate::zero_shot::{Classification, ZeroShotReport, best_first, check_labels, softmax};
use crate::{Error, Result};

/// How a [`LinearProbe`] is fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeConfig {
    /// The λs to choose from, each above zero; a single one is taken as it is.
    pub l2: Vec<f64>,
    /// The share of each class that is held out while λ is chosen, in (0, 1).
    pub held_out: f64,
    /// The most iterations of one fit.
    pub max_iterations: usize,
    /// The seed of what is held out.
    pub seed: u64,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        let l2 = (-6..=0).map(|exponent| 10f64.powi(exponent)).collect();
        Self { l2, held_out: 0.2, max_iterations: 1000, seed: 0 }
    }
}

/// A linear layer from features to classes.
#[derive(Debug, Clone)]
pub struct LinearProbe {
    labels: Vec<String>,
    weight: Tensor,
    bias: Tensor,
    l2: f64,
}

impl LinearProbe {
    /// Fits a layer to `features`, whose classes are the `targets` among `labels`. Pooled outputs
    /// ([`ImageEncoder::encode`](crate::ImageEncoder::encode)) do as well as embeddings.
    ///
    /// # Shapes
    /// `features` (N,E), N targets.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if shapes do not fit, a target is no label, a feature is not finite, a λ or share is out of its
    /// range, or no class has two images while λ is to be chosen.
    pub fn fit(features: &Tensor, targets: &[usize], labels: &[impl AsRef<str>], config: &ProbeConfig) -> Result<Self> {
        check_labels(labels)?;
        check(features, targets, labels.len())?;
        if config.l2.is_empty() || !config.l2.iter().all(|&l2| l2.is_finite() && l2 > 0.0) {
            return Err(Error::argument("l2", format!("is {:?}; finite numbers above 0 are needed", config.l2)));
        }
        let data = Standardized::new(features)?;
        let classes = labels.len();
        let l2 = match config.l2[..] {
            [l2] => l2,
            _ => data.choose(targets, classes, config)?,
        };
        let all: Vec<usize> = (0..targets.len()).collect();
        let layer = data.fit(&all, targets, classes, l2, config.max_iterations, None)?;
        let (weight, bias) = data.unscaled(&layer, classes)?;
        Ok(Self { labels: labels.iter().map(|label| label.as_ref().to_string()).collect(), weight, bias, l2 })
    }

    /// The labels, in the order of the weight's rows.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The layer's weight (C,E), f32 on the CPU.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The layer's bias (C).
    #[must_use]
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// The λ that was chosen.
    #[must_use]
    pub fn l2(&self) -> f64 {
        self.l2
    }

    /// # Shapes
    /// `features` (N,E) → (N,C), f32 on the CPU.
    ///
    /// # Errors
    /// When the width is another.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let width = self.weight.dim(1)?;
        if features.rank() != 2 || features.dim(1)? != width {
            let message = format!("expected (N, {width}), found {:?}", features.dims());
            return Err(Error::argument("features", message));
        }
        Ok(host(features)?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?)
    }

    /// For each row all labels with their probabilities, best first.
    ///
    /// # Shapes
    /// `features` (N,E) → N lists, each of all classes.
    ///
    /// # Errors
    /// As [`LinearProbe::logits`].
    pub fn probabilities(&self, features: &Tensor) -> Result<Vec<Vec<Classification>>> {
        let rows = self.logits(features)?.to_vec2::<f32>()?;
        Ok(rows.iter().map(|logits| best_first(&self.labels, softmax(logits))).collect())
    }

    /// How often the label of a row comes first, and how often among the first five, in percent.
    ///
    /// # Errors
    /// As [`LinearProbe::logits`], and when the targets do not fit.
    pub fn evaluate(&self, features: &Tensor, targets: &[usize]) -> Result<ZeroShotReport> {
        check(features, targets, self.labels.len())?;
        let logits = self.logits(features)?.to_vec2::<f32>()?;
        let percent = |k: usize| 100.0 * hits(&logits, targets.iter().copied(), k) as f64 / targets.len() as f64;
        Ok(ZeroShotReport { top1: percent(1), top5: percent(5), images: targets.len(), classes: self.labels.len() })
    }

    /// Writes the layer as a safetensors file: `weight`, `bias`, and the labels in its header.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let labels = serde_json::to_string(&self.labels).map_err(|e| Error::file(path, e))?;
        let l2 = self.l2.to_string();
        let tensors = [("weight", &self.weight), ("bias", &self.bias)];
        save_safetensors(path, tensors, &[("labels", labels.as_str()), ("l2", l2.as_str())])
    }

    /// Reads what [`LinearProbe::save`] wrote.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be read or is something else.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
        let other = || Error::file(path, "is no linear probe: weight (C,E), bias (C) and C labels are expected");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| Error::file(path, e))?;
        let said = |name: &str| header.metadata().as_ref().and_then(|said| said.get(name).cloned());
        let labels: Vec<String> = said("labels").and_then(|json| serde_json::from_str(&json).ok()).ok_or_else(other)?;
        let l2 = said("l2").and_then(|l2| l2.parse().ok()).ok_or_else(other)?;
        let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let mut take = |name: &str| tensors.remove(name).ok_or_else(other);
        let (weight, bias) = (host(&take("weight")?)?, host(&take("bias")?)?);
        if weight.rank() != 2 || weight.dims()[0] != labels.len() || bias.dims() != [labels.len()] {
            return Err(other());
        }
        check_labels(&labels)?;
        Ok(Self { labels, weight, bias, l2 })
    }
}

fn check(features: &Tensor, targets: &[usize], classes: usize) -> Result<()> {
    let fits = matches!(features.dims(), &[count, width] if count == targets.len() && count > 0 && width > 0);
    if !fits {
        let message =
            format!("expected (N, E) for {} targets, at least one; found {:?}", targets.len(), features.dims());
        return Err(Error::argument("features", message));
    }
    match targets.iter().find(|&&target| target >= classes) {
        Some(target) => Err(Error::argument("targets", format!("there is no label {target}; there are {classes}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three clouds in the plane, far from the origin and of another scale, that lines tell apart.
    fn clouds(per_class: usize) -> (Tensor, Vec<usize>) {
        let centres = [[100f32, 0.0], [104.0, 0.0], [102.0, 4.0]];
        let (mut values, mut targets) = (Vec::new(), Vec::new());
        for i in 0..3 * per_class {
            let angle = i as f32 * 2.4;
            let radius = (i % 7) as f32 / 7.0 * 1.5;
            let [x, y] = centres[i % 3];
            values.extend([x + radius * angle.cos(), y + radius * angle.sin()]);
            targets.push(i % 3);
        }
        (Tensor::from_vec(values, (3 * per_class, 2), &Device::Cpu).unwrap(), targets)
    }

    const LABELS: [&str; 3] = ["a", "b", "c"];

    #[test]
    fn clouds_that_lines_tell_apart_are_told_apart() {
        let (features, targets) = clouds(40);
        let probe = LinearProbe::fit(&features, &targets, &LABELS, &ProbeConfig::default()).unwrap();
        let report = probe.evaluate(&features, &targets).unwrap();
        assert_eq!((report.top1, report.top5, report.images, report.classes), (100.0, 100.0, 120, 3));
        let first = &probe.probabilities(&features).unwrap()[4][0];
        assert!(first.label == "b" && first.probability > 0.5, "{first:?}");
        let other = features.narrow(1, 0, 1).unwrap();
        assert!(probe.logits(&other).unwrap_err().to_string().contains("(N, 2)"));
    }

    #[test]
    fn noise_wants_a_strong_l2_and_the_chosen_one_is_among_those_tried() {
        // Ten classes by chance in forty dimensions: what is fitted does not carry over.
        let mut rng = crate::random::stream(1, "probe");
        let values: Vec<f32> = (0..200 * 40).map(|_| rand::Rng::random::<f32>(&mut rng)).collect();
        let features = Tensor::from_vec(values, (200, 40), &Device::Cpu).unwrap();
        let targets: Vec<usize> = (0..200).map(|i| i % 2).collect();
        let config = ProbeConfig { l2: vec![1e-6, 1e-3], ..ProbeConfig::default() };
        let probe = LinearProbe::fit(&features, &targets, &["a", "b"], &config).unwrap();
        assert!((1e-6..=1e-3).contains(&probe.l2()), "{}", probe.l2());
        let one = ProbeConfig { l2: vec![0.5], ..ProbeConfig::default() };
        let fixed = LinearProbe::fit(&features, &targets, &["a", "b"], &one).unwrap();
        assert_eq!(fixed.l2(), 0.5);
        let norm = |probe: &LinearProbe| probe.weight().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(norm(&fixed) < norm(&probe));
    }

    #[test]
    fn a_saved_probe_is_the_same_probe() {
        let folder = tempfile::tempdir().unwrap();
        let (features, targets) = clouds(10);
        let probe = LinearProbe::fit(&features, &targets, &LABELS, &ProbeConfig::default()).unwrap();
        let path = folder.path().join("probe.safetensors");
        probe.save(&path).unwrap();
        let read = LinearProbe::load(&path).unwrap();
        assert_eq!((read.labels(), read.l2()), (probe.labels(), probe.l2()));
        let logits = |probe: &LinearProbe| probe.logits(&features).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logits(&read), logits(&probe));
        save_safetensors(&path, [("weight", probe.weight())], &[]).unwrap();
        assert!(LinearProbe::load(&path).unwrap_err().to_string().contains("no linear probe"));
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let (features, targets) = clouds(10);
        let fit = |targets: &[usize], config: &ProbeConfig| {
            LinearProbe::fit(&features, targets, &LABELS, config).err().unwrap().to_string()
        };
        let config = ProbeConfig::default();
        assert!(fit(&targets[1..], &config).contains("29 targets"));
        assert!(fit(&[3; 30], &config).contains("no label 3"));
        assert!(fit(&targets, &ProbeConfig { l2: vec![], ..config.clone() }).starts_with("l2"));
        assert!(fit(&targets, &ProbeConfig { held_out: 1.0, ..config.clone() }).starts_with("held_out"));
        let one = features.narrow(0, 0, 1).unwrap();
        let alone = LinearProbe::fit(&one, &[0], &LABELS, &config).unwrap_err().to_string();
        assert!(alone.contains("two images"), "{alone}");
        let nan = (features.clone() * f64::NAN).unwrap();
        assert!(LinearProbe::fit(&nan, &targets, &LABELS, &config).is_err());
    }
}
