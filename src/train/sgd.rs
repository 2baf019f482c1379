//! Stochastic gradient descent with momentum, as `torch.optim.SGD` computes it:
//!
//! ```text
//! g ← g + decay · θ
//! v ← μ v + g            (v = g in the first step)
//! θ ← θ − lr · v         (Nesterov: θ ← θ − lr · (g + μ v))
//! ```

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use super::norm::finite_norm;
use super::optimizer::ParamGroup;
use crate::{Error, Result};

/// The constants of [`Sgd`] that all groups share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// μ; 0 for none.
    pub momentum: f64,
    /// Whether a step looks ahead by Nesterov's rule.
    pub nesterov: bool,
    /// Gradients of a larger global norm are scaled down to it; `None` leaves them as they are.
    pub clip_norm: Option<f64>,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false, clip_norm: None }
    }
}

/// Gradient descent over groups of parameters; the decay is not decoupled.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    slots: Vec<Slot>,
    steps: usize,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    lr: f64,
    weight_decay: f64,
    velocity: Option<Tensor>,
}

impl Sgd {
    /// An optimiser of `groups` that rests.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if a constant is out of its range.
    pub fn new(groups: Vec<ParamGroup>, config: SgdConfig) -> Result<Self> {
        if !(0.0..1.0).contains(&config.momentum) {
            return Err(Error::argument(
                "momentum",
                format!("is {}; it must be at least 0 and below 1", config.momentum),
            ));
        }
        if config.clip_norm.is_some_and(|norm| norm.is_nan() || norm <= 0.0) {
            return Err(Error::argument("clip_norm", "must be above 0, or none for no clipping"));
        }
        let mut slots = Vec::new();
        for ParamGroup { vars, lr, weight_decay } in groups {
            if !(lr.is_finite() && lr >= 0.0 && weight_decay.is_finite() && weight_decay >= 0.0) {
                let message = format!("are {lr} and {weight_decay}; finite numbers of at least 0 are needed");
                return Err(Error::argument("lr, weight_decay", message));
            }
            slots.extend(vars.into_iter().map(|(name, var)| Slot { name, var, lr, weight_decay, velocity: None }));
        }
        Ok(Self { config, slots, steps: 0 })
    }

    /// Updates every parameter that has a gradient, at `lr_factor` times its group's rate; returns the global norm of the
    /// gradients before clipping.
    ///
    /// # Errors
    /// [`Training`](crate::ErrorKind::Training) if the norm is not finite; then nothing has been changed.
    pub fn step(&mut self, grads: &GradStore, lr_factor: f64) -> Result<f64> {
        let named = self.slots.iter().map(|slot| (slot.name.as_str(), &slot.var));
        let norm = finite_norm(grads, named, self.steps + 1)?;
        let scale = self.config.clip_norm.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0));
        self.steps += 1;
        let SgdConfig { momentum, nesterov, .. } = self.config;
        for slot in &mut self.slots {
            let Some(grad) = grads.get(&slot.var) else { continue };
            let theta = slot.var.as_detached_tensor().to_dtype(DType::F32)?;
            let grad = ((grad.detach().to_dtype(DType::F32)? * scale)? + (&theta * slot.weight_decay)?)?;
            let velocity = match slot.velocity.take() {
                Some(velocity) => ((velocity * momentum)? + &grad)?,
                None => grad.clone(),
            };
            let change = if nesterov { (grad + (&velocity * momentum)?)? } else { velocity.clone() };
            slot.var.set(&(theta - (change * (slot.lr * lr_factor))?)?.to_dtype(slot.var.dtype())?)?;
            slot.velocity = Some(velocity);
        }
        Ok(norm)
    }

    /// What must be kept to go on: each parameter's velocity, f32, under its name.
    pub(super) fn velocities(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.slots.iter().filter_map(|slot| Some((slot.name.as_str(), slot.velocity.as_ref()?)))
    }

    /// Puts velocities back; parameters that `find` knows none of rest.
    pub(super) fn restore(&mut self, steps: usize, find: impl Fn(&str) -> Option<Tensor>) -> Result<()> {
        for slot in &mut self.slots {
            let found = find(&slot.name);
            if let Some(velocity) = found.as_ref().filter(|velocity| velocity.dims() != slot.var.dims()) {
                let message = format!("'{}' has {:?}, its state {:?}", slot.name, slot.var.dims(), velocity.dims());
                return Err(Error::argument("state", message));
            }
            slot.velocity = found;
        }
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    // torch 2.11: p = torch.tensor([1., -2.]).requires_grad_(); o = torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01,
    // nesterov=n); five times: o.zero_grad(); (p ** 2 * torch.tensor([1., 3.])).sum().backward(); o.step()
    #[test]
    fn five_steps_equal_pytorch() {
        for (nesterov, expected) in [(false, PLAIN), (true, NESTEROV)] {
            let theta = Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
            let group = ParamGroup { vars: vec![("p".to_string(), theta.clone())], lr: 0.1, weight_decay: 0.01 };
            let mut optimizer = Sgd::new(vec![group], SgdConfig { nesterov, ..SgdConfig::default() }).unwrap();
            for _ in 0..5 {
                let weights = Tensor::new(&[1f32, 3.0], &Device::Cpu).unwrap();
                let loss = (theta.sqr().unwrap() * weights).unwrap().sum_all().unwrap();
                optimizer.step(&loss.backward().unwrap(), 1.0).unwrap();
            }
            for (found, expected) in theta.to_vec1::<f32>().unwrap().iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{nesterov}: {found} against {expected}");
            }
        }
    }

    const PLAIN: [f32; 2] = [-0.583_956_1, 0.453_852];
    const NESTEROV: [f32; 2] = [-0.416_360_1, -0.123_499_4];
}
