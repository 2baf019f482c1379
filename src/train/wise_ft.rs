//! WiSE-FT: the straight line between a model before and after fine-tuning (Wortsman et al. 2021, arXiv 2109.01903, equation 1).
//!
//! ```text
//! θ(α) = (1 − α)·θ₀ + α·θ₁
//! ```
//!
//! over every parameter that was trained, the logarithm of the scale included. In between a model often keeps what it knew and
//! loses little of what it learned, or is better than both ends. [`WiseFt`] remembers θ₀; its curve over α says where to stop.
//! It wants a model that could do something before: fresh projections have no θ₀ worth going back to.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{ClipModel, Error, Result};

/// What a model was before it was fine-tuned.
#[derive(Debug, Clone)]
pub struct WiseFt {
    before: BTreeMap<String, Tensor>,
}

/// One model on the line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WisePoint {
    /// α: 0 is the model before, 1 the model after.
    pub alpha: f64,
    /// What the training was for, in percent; more is better.
    pub target: f64,
    /// What shall not be lost, in percent, where it was measured.
    pub canary: Option<f64>,
}

/// Target and canary over α, in the order of α; 0 and 1 are among them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WiseCurve {
    /// The points.
    pub points: Vec<WisePoint>,
}

impl WiseFt {
    /// The αs that are usual: 0, 0.1, … 1.
    pub const ALPHAS: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
    /// How many points the canary may lose where nothing else is said.
    pub const CANARY_LOSS: f64 = 1.0;

    /// Copies what will be trained: the trainable parameters, and the weights that adapters stand on.
    ///
    /// # Errors
    /// When candle cannot allocate the copies.
    pub fn before(model: &ClipModel) -> Result<Self> {
        let trained = trained(model);
        let merged = model.clone().merge_lora()?.parameters();
        let copy = |name: String| {
            let missing = || Error::argument("model", format!("has no parameter '{name}'"));
            let value = merged.get(&name).ok_or_else(missing)?.copy()?.detach();
            Ok((name, value))
        };
        Ok(Self { before: trained.into_iter().map(copy).collect::<Result<_>>()? })
    }

    /// The model θ(α) between what was and `after`; adapters are merged, and nothing of it is trainable.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if α is not in [0, 1], or `after` trains what was frozen before or has another shape.
    pub fn at(&self, after: &ClipModel, alpha: f64) -> Result<ClipModel> {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::argument("alpha", format!("is {alpha}; it must be in [0, 1]")));
        }
        if let Some(name) = trained(after).into_iter().find(|name| !self.before.contains_key(name)) {
            let message = format!("trains '{name}', which was frozen when WiseFt::before was called");
            return Err(Error::argument("after", message));
        }
        let merged = after.clone().merge_lora()?.with_trainable(|_| false)?;
        merged.map_parameters(|parameters| {
            parameters.map_plain(|name, after| match self.before.get(name) {
                Some(before) => mix(name, before, after, alpha),
                None => Ok(after.clone()),
            })
        })
    }

    /// Measures the model at 0, at 1 and at every α of `alphas`; `measure` gives target and canary, in percent.
    ///
    /// # Errors
    /// As [`WiseFt::at`], when a measure is not finite, and whatever `measure` fails with.
    pub fn curve(
        &self,
        after: &ClipModel,
        alphas: &[f64],
        mut measure: impl FnMut(&ClipModel) -> Result<(f64, Option<f64>)>,
    ) -> Result<WiseCurve> {
        let mut alphas = [alphas, &[0.0, 1.0]].concat();
        alphas.sort_by(f64::total_cmp);
        alphas.dedup();
        let point = |alpha: f64| {
            let (target, canary) = measure(&self.at(after, alpha)?)?;
            if !(target.is_finite() && canary.is_none_or(f64::is_finite)) {
                return Err(Error::argument("measure", format!("gave {target} and {canary:?} at α = {alpha}")));
            }
            Ok(WisePoint { alpha, target, canary })
        };
        Ok(WiseCurve { points: alphas.into_iter().map(point).collect::<Result<_>>()? })
    }
}

impl WiseCurve {
    /// The point with the best target among those whose canary is at most `canary_loss` points below that of α = 0; of equal
    /// ones that of the smallest α. Without a canary the best target decides alone.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if there is no point.
    pub fn choose(&self, canary_loss: f64) -> Result<WisePoint> {
        let lowest = self.points.first().and_then(|before| before.canary).map(|before| before - canary_loss);
        let kept = |point: &&WisePoint| match (lowest, point.canary) {
            (Some(lowest), Some(canary)) => canary >= lowest,
            _ => true,
        };
        let better = |best: WisePoint, point: &WisePoint| if point.target > best.target { *point } else { best };
        let mut points = self.points.iter().filter(kept);
        let first = points.next().ok_or_else(|| Error::argument("points", "there are none to choose from"))?;
        Ok(points.fold(*first, better))
    }
}

/// The names of what is trained, where adapters are merged.
fn trained(model: &ClipModel) -> Vec<String> {
    let parameters = model.parameters();
    let of_adapter = |name: &str| name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
    let plain = parameters.trainable().map(|(name, _)| name.to_string()).filter(|name| !of_adapter(name));
    plain.chain(parameters.adapters().map(|(module, _)| format!("{module}.weight"))).collect()
}

fn mix(name: &str, before: &Tensor, after: &Tensor, alpha: f64) -> Result<Tensor> {
    if before.dims() != after.dims() {
        let message = format!("'{name}' is {:?}, before it was {:?}", after.dims(), before.dims());
        return Err(Error::argument("after", message));
    }
    // The ends are exact, and a copy: training may go on.
    if alpha == 0.0 || alpha == 1.0 {
        return Ok(if alpha == 0.0 { before } else { after }.copy()?.detach());
    }
    let wide = |t: &Tensor, factor: f64| t.detach().to_dtype(DType::F32)? * factor;
    Ok((wide(before, 1.0 - alpha)? + wide(after, alpha)?)?.to_dtype(after.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64, Option<f64>)]) -> WiseCurve {
        let point = |&(alpha, target, canary): &(f64, f64, Option<f64>)| WisePoint { alpha, target, canary };
        WiseCurve { points: points.iter().map(point).collect() }
    }

    #[test]
    fn the_best_target_that_keeps_the_canary_is_chosen() {
        let all = curve(&[(0.0, 10.0, Some(50.0)), (0.5, 30.0, Some(49.0)), (1.0, 40.0, Some(45.0))]);
        assert_eq!(all.choose(1.0).unwrap().alpha, 0.5);
        assert_eq!(all.choose(0.5).unwrap().alpha, 0.0);
        assert_eq!(all.choose(5.0).unwrap().alpha, 1.0);
        // Of equal ones the one that is closest to what was; without a canary the target alone.
        let equal = curve(&[(0.0, 10.0, None), (0.4, 30.0, None), (0.8, 30.0, None), (1.0, 20.0, None)]);
        assert_eq!(equal.choose(1.0).unwrap().alpha, 0.4);
        assert!(curve(&[]).choose(1.0).is_err());
    }
}
