//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), as `torch.optim.AdamW` computes it:
//!
//! ```text
//! θ ← θ · (1 − lr · decay)
//! m ← β₁ m + (1 − β₁) g            v ← β₂ v + (1 − β₂) g²
//! θ ← θ − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps)
//! ```
//! On the CPU one fused, parallel pass updates θ, m and v in place; elsewhere, and for parameters that are not f32, plain tensor
//! operations do the same. The moments are f32 whatever the parameter's type. Clipping by the global norm is folded into that
//! pass, so gradients are read twice and never written.

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::norm::finite_norm;
use super::update::{State, Update};
use crate::{Error, Result};

/// The constants of [`AdamW`] that all groups share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// β₁, the decay of the first moment.
    pub beta1: f64,
    /// β₂, the decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Gradients of a larger global norm are scaled down to it; `None` leaves them as they are.
    pub clip_norm: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, clip_norm: None }
    }
}

/// Parameters that share a learning rate and a decay.
#[derive(Debug, Clone)]
pub struct ParamGroup {
    /// The parameters by name.
    pub vars: Vec<(String, Var)>,
    /// The peak learning rate, which the schedule's factor multiplies.
    pub lr: f64,
    /// The decoupled weight decay; each step takes `lr · weight_decay` of a parameter's value away.
    pub weight_decay: f64,
}

impl ParamGroup {
    /// Two groups of the same rate: the parameters that decay by `weight_decay` and those that do not (see [`decays`]).
    #[must_use]
    pub fn split_decay(vars: Vec<(String, Var)>, lr: f64, weight_decay: f64) -> [Self; 2] {
        let (with, without) = vars.into_iter().partition(|(_, var)| decays(var.dims()));
        [Self { vars: with, lr, weight_decay }, Self { vars: without, lr, weight_decay: 0.0 }]
    }
}

/// Whether a parameter of these dimensions decays: matrices and tables of embeddings do; biases, the gains of norms and the
/// logit scale, all of rank 0 or 1, do not.
#[must_use]
pub fn decays(dims: &[usize]) -> bool {
    dims.len() >= 2
}

/// The running means of one parameter, to save and to look at.
#[derive(Debug, Clone)]
pub struct Moments {
    /// The parameter's name.
    pub name: String,
    /// How many steps it has been updated in.
    pub steps: u64,
    /// The running mean of its gradient, f32, of its shape.
    pub first: Tensor,
    /// The running mean of its squared gradient, f32, of its shape.
    pub second: Tensor,
}

/// The AdamW optimiser over groups of parameters.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    groups: Vec<Group>,
    steps: usize,
}

#[derive(Debug)]
struct Group {
    lr: f64,
    weight_decay: f64,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    steps: u64,
    state: State,
}

impl AdamW {
    /// An optimiser of `groups` with moments of zero.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if a parameter stands in two groups or a constant is out of its range.
    pub fn new(groups: Vec<ParamGroup>, config: AdamWConfig) -> Result<Self> {
        check_config(&config)?;
        let mut seen = HashSet::new();
        let mut made = Vec::with_capacity(groups.len());
        for ParamGroup { vars, lr, weight_decay } in groups {
            check_rate("lr", lr)?;
            check_rate("weight_decay", weight_decay)?;
            let mut slots = Vec::with_capacity(vars.len());
            for (name, var) in vars {
                if !seen.insert(var.id()) {
                    return Err(Error::argument("groups", format!("parameter '{name}' is there twice")));
                }
                let state = State::new(&var)?;
                slots.push(Slot { name, var, steps: 0, state });
            }
            made.push(Group { lr, weight_decay, slots });
        }
        Ok(Self { config, groups: made, steps: 0 })
    }

    /// Updates every parameter that has a gradient, at `lr_factor` (see [`Schedule`](super::Schedule)) times its group's rate, and
    /// returns the global norm of the gradients before clipping.
    ///
    /// # Errors
    /// [`Training`](crate::ErrorKind::Training) if the norm is not finite; then nothing has been changed.
    pub fn step(&mut self, grads: &GradStore, lr_factor: f64) -> Result<f64> {
        let slots = self.groups.iter().flat_map(|group| &group.slots);
        let norm = finite_norm(grads, slots.map(|slot| (slot.name.as_str(), &slot.var)), self.steps + 1)?;
        // The 1e-6 is torch.nn.utils.clip_grad_norm_'s.
        let scale = self.config.clip_norm.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0));
        let config = self.config;
        self.steps += 1;
        for group in &mut self.groups {
            for slot in &mut group.slots {
                let Some(grad) = grads.get(&slot.var) else { continue };
                slot.steps += 1;
                let update = Update::new(&config, group.lr * lr_factor, group.weight_decay, scale, slot.steps);
                slot.state.apply(&slot.var, grad, update)?;
            }
        }
        Ok(norm)
    }

    /// The running means of every parameter, in the order of the groups (copied where they live in host memory).
    ///
    /// # Errors
    /// When candle cannot allocate the copies.
    pub fn moments(&self) -> Result<Vec<Moments>> {
        let slots = self.groups.iter().flat_map(|group| &group.slots);
        let moments = slots.map(|slot| {
            let (first, second) = slot.state.tensors(&slot.var)?;
            Ok(Moments { name: slot.name.clone(), steps: slot.steps, first, second })
        });
        moments.collect()
    }

    /// Puts back what [`AdamW::moments`] gave after `steps` steps, by name.
    pub(super) fn restore(&mut self, steps: usize, moments: impl Fn(&str) -> Result<Moments>) -> Result<()> {
        for slot in self.groups.iter_mut().flat_map(|group| &mut group.slots) {
            let found = moments(&slot.name)?;
            if found.first.dims() != slot.var.dims() || found.second.dims() != slot.var.dims() {
                let message =
                    format!("'{}' has {:?}, its moments {:?}", slot.name, slot.var.dims(), found.first.dims());
                return Err(Error::argument("state", message));
            }
            slot.state.set(&found.first, &found.second)?;
            slot.steps = found.steps;
        }
        self.steps = steps;
        Ok(())
    }
}

pub(super) fn check_rate(argument: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(argument, format!("is {value}; a finite number of at least 0 is needed")))
}

fn check_config(config: &AdamWConfig) -> Result<()> {
    for (argument, beta) in [("beta1", config.beta1), ("beta2", config.beta2)] {
        if !(0.0..1.0).contains(&beta) {
            return Err(Error::argument(argument, format!("is {beta}; it must be at least 0 and below 1")));
        }
    }
    check_rate("eps", config.eps)?;
    match config.clip_norm {
        Some(norm) if norm.is_nan() || norm <= 0.0 => {
            Err(Error::argument("clip_norm", format!("is {norm}; it must be above 0, or none for no clipping")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use crate::ErrorKind;

    use super::*;

    const START: [f32; 6] = [0.5, -1.25, 2.0, 0.0, 1e-3, -3.0];

    /// Ten steps on Σ cos(k + 3t) · (θ² / 2 + θ), of f32 parameters and of f64 ones, which take the plain path.
    fn ten_steps(dtype: DType, weight_decay: f64) -> Vec<f32> {
        let start = Tensor::new(&START, &Device::Cpu).unwrap().reshape((2, 3)).unwrap().to_dtype(dtype).unwrap();
        let theta = Var::from_tensor(&start).unwrap();
        let group = ParamGroup { vars: vec![(String::from("theta"), theta.clone())], lr: 1e-2, weight_decay };
        let mut optimizer = AdamW::new(vec![group], AdamWConfig::default()).unwrap();
        for step in 0..10 {
            let slope: Vec<f32> = (0..6).map(|k| f64::from(k + 3 * step).cos() as f32).collect();
            let slope = Tensor::from_vec(slope, (2, 3), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let value = ((theta.sqr().unwrap() * 0.5).unwrap() + theta.as_tensor()).unwrap();
            let grads = (value * slope).unwrap().sum_all().unwrap().backward().unwrap();
            optimizer.step(&grads, 1.0 - f64::from(step) / 20.0).unwrap();
        }
        theta.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    // torch 2.11, the same with:
    //   p = torch.tensor(START).reshape(2, 3).requires_grad_(); o = torch.optim.AdamW([p], lr=1e-2, weight_decay=wd)
    //   for t in range(10):
    //       w = torch.cos(torch.arange(6, dtype=torch.float64).reshape(2, 3) + 3 * t).float()
    //       o.zero_grad(); (w * (0.5 * p * p + p)).sum().backward()
    //       o.param_groups[0]["lr"] = 1e-2 * (1 - t / 20); o.step()
    const DECAYED: [f32; 6] = [0.481_178_9, -1.227_463_1, 2.003_637_3, 0.015_042_64, 0.013_613_3, -2.957_141];
    const PLAIN: [f32; 6] = [0.484_960_4, -1.237_104_2, 2.019_174_3, 0.015_127_36, 0.013_697_56, -2.980_227_2];

    #[test]
    fn ten_steps_equal_pytorch_on_both_paths() {
        for dtype in [DType::F32, DType::F64] {
            for (weight_decay, expected) in [(0.1, DECAYED), (0.0, PLAIN)] {
                let found = ten_steps(dtype, weight_decay);
                for (f, e) in found.iter().zip(expected) {
                    assert!((f - e).abs() < 1e-6, "{dtype:?} {weight_decay}: {found:?}");
                }
            }
        }
    }

    fn named(name: &str, values: &[f32]) -> (String, Var) {
        (name.to_string(), Var::new(values, &Device::Cpu).unwrap())
    }

    fn group(vars: Vec<(String, Var)>) -> ParamGroup {
        ParamGroup { vars, lr: 0.1, weight_decay: 0.0 }
    }

    #[test]
    fn large_gradients_are_scaled_to_the_norm_and_small_ones_are_left() {
        let (a, b) = (named("a", &[0.0]), named("b", &[0.0, 0.0]));
        let config = AdamWConfig { clip_norm: Some(1.0), ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(vec![group(vec![a.clone()]), group(vec![b.clone()])], config).unwrap();
        let mut grads = GradStore::default();
        grads.insert(&a.1, Tensor::new(&[3f32], &Device::Cpu).unwrap());
        grads.insert(&b.1, Tensor::new(&[0f32, -4.0], &Device::Cpu).unwrap());
        assert!((optimizer.step(&grads, 1.0).unwrap() - 5.0).abs() < 1e-12);
        // The first moment after one step is a tenth of the clipped gradient, (3, 0, -4) / 5.
        let first = |o: &AdamW| -> Vec<f32> {
            o.moments().unwrap().iter().flat_map(|m| m.first.to_vec1::<f32>().unwrap()).collect()
        };
        for (found, expected) in first(&optimizer).iter().zip([0.06, 0.0, -0.08]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let mut small = AdamW::new(vec![group(vec![a.clone()])], config).unwrap();
        grads.insert(&a.1, Tensor::new(&[0.5f32], &Device::Cpu).unwrap());
        assert!((small.step(&grads, 1.0).unwrap() - 0.5).abs() < 1e-12);
        assert!((first(&small)[0] - 0.05).abs() < 1e-7);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing_and_is_named() {
        let (a, b) = (named("a", &[1.0]), named("b", &[2.0]));
        let mut optimizer = AdamW::new(vec![group(vec![a.clone(), b.clone()])], AdamWConfig::default()).unwrap();
        let mut grads = GradStore::default();
        grads.insert(&a.1, Tensor::new(&[1f32], &Device::Cpu).unwrap());
        grads.insert(&b.1, Tensor::new(&[f32::NAN], &Device::Cpu).unwrap());
        let error = optimizer.step(&grads, 1.0).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Training { step: 1, .. }) && error.to_string().contains("of: b;"),
            "{error}"
        );
        assert_eq!((a.1.to_vec1::<f32>().unwrap(), b.1.to_vec1::<f32>().unwrap()), (vec![1.0], vec![2.0]));
        assert_eq!(optimizer.moments().unwrap()[0].steps, 0);
    }

    #[test]
    fn a_parameter_without_a_gradient_stays_as_it_is() {
        let (a, b) = (named("a", &[1.0]), named("b", &[2.0]));
        let decaying = ParamGroup { weight_decay: 0.5, ..group(vec![a.clone(), b.clone()]) };
        let mut optimizer = AdamW::new(vec![decaying], AdamWConfig::default()).unwrap();
        optimizer.step(&a.1.sqr().unwrap().sum_all().unwrap().backward().unwrap(), 1.0).unwrap();
        assert_eq!(b.1.to_vec1::<f32>().unwrap(), [2.0]);
        // 1 · (1 − 0.1 · 0.5) − 0.1 · sign(gradient).
        assert!((a.1.to_vec1::<f32>().unwrap()[0] - 0.85).abs() < 1e-6);
    }

    #[test]
    fn matrices_decay_and_vectors_and_scalars_do_not() {
        let scale = Var::new(1f32, &Device::Cpu).unwrap();
        let matrix = Var::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        let vars =
            vec![named("norm.weight", &[1.0]), (String::from("weight"), matrix), (String::from("logit_scale"), scale)];
        let [with, without] = ParamGroup::split_decay(vars, 1e-3, 0.05);
        assert_eq!((with.vars.len(), with.vars[0].0.as_str(), with.weight_decay), (1, "weight", 0.05));
        assert_eq!((without.vars.len(), without.weight_decay, without.lr), (2, 0.0, 1e-3));
    }

    #[test]
    fn senseless_settings_are_refused() {
        let a = named("a", &[1.0]);
        assert!(AdamW::new(vec![group(vec![a.clone(), a.clone()])], AdamWConfig::default()).is_err());
        assert!(
            AdamW::new(vec![ParamGroup { lr: f64::NAN, ..group(vec![a.clone()]) }], AdamWConfig::default()).is_err()
        );
        for config in [
            AdamWConfig { beta1: 1.0, ..AdamWConfig::default() },
            AdamWConfig { clip_norm: Some(0.0), ..AdamWConfig::default() },
            AdamWConfig { eps: -1.0, ..AdamWConfig::default() },
        ] {
            assert!(AdamW::new(vec![group(vec![a.clone()])], config).is_err(), "{config:?}");
        }
    }
}
