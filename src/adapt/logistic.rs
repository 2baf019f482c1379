//! The fitting of a [`LinearProbe`](super::LinearProbe): multinomial logistic regression over the whole batch.

use candle_core::{DType, Device, Tensor};

use super::lbfgs::minimize;
use super::linear_probe::ProbeConfig;
use crate::data::Sampler;
use crate::{Error, Result};

/// Features with a mean of zero and a standard deviation of one over all of them.
pub(super) struct Standardized {
    rows: Tensor,
    mean: Tensor,
    deviation: f64,
}

impl Standardized {
    pub(super) fn new(features: &Tensor) -> Result<Self> {
        let features = host(features)?;
        let mean = features.mean(0)?;
        let centred = features.broadcast_sub(&mean)?;
        let deviation = f64::from(centred.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt();
        if !deviation.is_finite() {
            return Err(Error::argument("features", "hold a value that is not finite"));
        }
        let deviation = if deviation == 0.0 { 1.0 } else { deviation };
        Ok(Self { rows: (centred / deviation)?, mean, deviation })
    }

    /// The λ under which images that were not fitted are told apart best; of equal ones that with the least loss.
    pub(super) fn choose(&self, targets: &[usize], classes: usize, config: &ProbeConfig) -> Result<f64> {
        let (fitted, held) = split(targets, classes, config)?;
        let unseen = self.select(&held)?;
        let held_targets: Vec<usize> = held.iter().map(|&i| targets[i]).collect();
        let width = unseen.dim(1)?;
        let mut tried = Vec::new();
        let mut start: Option<Vec<f64>> = None;
        let mut attempt = |l2: f64, tried: &mut Vec<Tried>| -> Result<()> {
            let layer = self.fit(&fitted, targets, classes, l2, config.max_iterations, start.take())?;
            let (weight, bias) = tensors(&layer, classes, width)?;
            let logits = unseen.matmul(&weight.t()?)?.broadcast_add(&bias)?.to_vec2::<f32>()?;
            let hits = hits(&logits, held_targets.iter().copied(), 1);
            tried.push(Tried { l2, hits, loss: loss(&unseen, &held_targets, classes, 0.0, &layer)?.0 });
            start = Some(layer);
            Ok(())
        };
        // From strong to weak: each solution is a good start for the next.
        let mut strengths = config.l2.clone();
        strengths.sort_by(|a, b| b.total_cmp(a));
        strengths.dedup();
        strengths.iter().try_for_each(|&l2| attempt(l2, &mut tried))?;
        let decade = best(&tried);
        let beside = strengths.windows(2).filter(|pair| pair.contains(&decade)).map(|p| (p[0] * p[1]).sqrt());
        beside.collect::<Vec<f64>>().into_iter().try_for_each(|l2| attempt(l2, &mut tried))?;
        Ok(best(&tried))
    }

    fn select(&self, indices: &[usize]) -> Result<Tensor> {
        let indices: Vec<u32> = indices.iter().map(|&i| i as u32).collect();
        Ok(self.rows.index_select(&Tensor::new(indices, &Device::Cpu)?, 0)?)
    }

    /// Weight (C,E) and bias (C), one after the other.
    pub(super) fn fit(
        &self,
        indices: &[usize],
        targets: &[usize],
        classes: usize,
        l2: f64,
        max_iterations: usize,
        start: Option<Vec<f64>>,
    ) -> Result<Vec<f64>> {
        let rows = self.select(indices)?;
        let targets: Vec<usize> = indices.iter().map(|&i| targets[i]).collect();
        let start = start.unwrap_or_else(|| vec![0.0; classes * (rows.dims()[1] + 1)]);
        minimize(start, max_iterations, |layer| loss(&rows, &targets, classes, l2, layer))
    }

    /// The layer for features as they are: W/σ, b − W·μ/σ.
    pub(super) fn unscaled(&self, layer: &[f64], classes: usize) -> Result<(Tensor, Tensor)> {
        let (weight, bias) = tensors(layer, classes, self.mean.dim(0)?)?;
        let weight = (weight / self.deviation)?;
        let shift = weight.matmul(&self.mean.unsqueeze(1)?)?.squeeze(1)?;
        Ok((weight, (bias - shift)?))
    }
}

/// The loss and its gradient by weight and bias.
fn loss(rows: &Tensor, targets: &[usize], classes: usize, l2: f64, layer: &[f64]) -> Result<(f64, Vec<f64>)> {
    let (count, width) = rows.dims2()?;
    let (weight, bias) = tensors(layer, classes, width)?;
    let mut logits = rows.matmul(&weight.t()?)?.broadcast_add(&bias)?.flatten_all()?.to_vec1::<f32>()?;
    let mut value = 0.0;
    for (row, &target) in logits.chunks_mut(classes).zip(targets) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let at_target = f64::from(row[target] - max);
        row.iter_mut().for_each(|logit| *logit = (*logit - max).exp());
        let sum: f64 = row.iter().map(|&p| f64::from(p)).sum();
        value += sum.ln() - at_target;
        // The gradient by the logits: p − 1 at the target, p elsewhere.
        row.iter_mut().for_each(|p| *p = (f64::from(*p) / sum / count as f64) as f32);
        row[target] -= (1.0 / count as f64) as f32;
    }
    let by_logits = Tensor::from_vec(logits, (count, classes), &Device::Cpu)?;
    let by_weight = by_logits.t()?.contiguous()?.matmul(rows)?.flatten_all()?.to_vec1::<f32>()?;
    let by_bias = by_logits.sum(0)?.to_vec1::<f32>()?;
    let weights = &layer[..classes * width];
    let square: f64 = weights.iter().map(|w| w * w).sum();
    let of_weight = by_weight.iter().zip(weights).map(|(&g, w)| f64::from(g) + l2 * w);
    let gradient = of_weight.chain(by_bias.iter().map(|&g| f64::from(g))).collect();
    Ok((value / count as f64 + 0.5 * l2 * square, gradient))
}

fn tensors(layer: &[f64], classes: usize, width: usize) -> Result<(Tensor, Tensor)> {
    let single: Vec<f32> = layer.iter().map(|&value| value as f32).collect();
    let (weight, bias) = single.split_at(classes * width);
    let weight = Tensor::from_slice(weight, (classes, width), &Device::Cpu)?;
    Ok((weight, Tensor::from_slice(bias, classes, &Device::Cpu)?))
}

/// Which images are fitted and which held out: of each class the same share, at least one where it has two.
fn split(targets: &[usize], classes: usize, config: &ProbeConfig) -> Result<(Vec<usize>, Vec<usize>)> {
    if !(config.held_out > 0.0 && config.held_out < 1.0) {
        return Err(Error::argument("held_out", format!("is {}; it must be in (0, 1)", config.held_out)));
    }
    let mut of_class = vec![Vec::new(); classes];
    for i in Sampler::new(config.seed).order(0, targets.len()) {
        of_class[targets[i]].push(i);
    }
    let (mut fitted, mut held) = (Vec::new(), Vec::new());
    for mut images in of_class.into_iter().filter(|images| !images.is_empty()) {
        let out = (images.len() as f64 * config.held_out).round() as usize;
        held.extend(images.drain(..out.clamp(usize::from(images.len() > 1), images.len() - 1)));
        fitted.extend(images);
    }
    if held.is_empty() {
        return Err(Error::argument("targets", "no class has two images to choose l2 with; give one l2"));
    }
    Ok((fitted, held))
}

/// What a λ came to on images that were held out.
struct Tried {
    l2: f64,
    hits: usize,
    loss: f64,
}

/// The λ with the most hits; of equal ones that with the least loss.
fn best(tried: &[Tried]) -> f64 {
    let order = |a: &&Tried, b: &&Tried| a.hits.cmp(&b.hits).then(b.loss.total_cmp(&a.loss));
    tried.iter().max_by(order).map_or(f64::NAN, |best| best.l2)
}

/// How many rows have their target among the `k` largest; of equal ones the first counts as larger.
pub(super) fn hits(logits: &[Vec<f32>], targets: impl Iterator<Item = usize>, k: usize) -> usize {
    let hit = |(row, target): &(&Vec<f32>, usize)| {
        let own = row[*target];
        let ahead = row.iter().enumerate().filter(|&(i, &logit)| logit > own || (logit == own && i < *target));
        ahead.count() < k
    };
    logits.iter().zip(targets).filter(hit).count()
}

pub(super) fn host(features: &Tensor) -> Result<Tensor> {
    Ok(features.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let wave: Vec<f32> = (0..30).map(|i| 100.0 + (i as f32 * 0.9).sin()).collect();
        let features = Tensor::from_vec(wave, (15, 2), &Device::Cpu).unwrap();
        let targets: Vec<usize> = (0..15).map(|i| i % 3).collect();
        let rows = Standardized::new(&features).unwrap().rows;
        let layer: Vec<f64> = (0..9).map(|i| (f64::from(i) * 1.7).sin()).collect();
        let (_, gradient) = loss(&rows, &targets, 3, 0.3, &layer).unwrap();
        for i in 0..9 {
            let at = |delta: f64| {
                let mut moved = layer.clone();
                moved[i] += delta;
                loss(&rows, &targets, 3, 0.3, &moved).unwrap().0
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope - gradient[i]).abs() < 1e-3, "{i}: {slope} against {}", gradient[i]);
        }
    }
}
