//! [`Optimizer`]: any of the optimisers, with a state that can be kept and put back.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

use super::optimizer::{AdamW, AdamWConfig, Moments, ParamGroup};
use super::sgd::{Sgd, SgdConfig};
use crate::{Error, Result};

/// Which optimiser, with its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum OptimizerConfig {
    /// AdamW.
    AdamW(AdamWConfig),
    /// Gradient descent with momentum.
    Sgd(SgdConfig),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::AdamW(AdamWConfig::default())
    }
}

impl OptimizerConfig {
    /// The same with gradients clipped to the global norm `clip_norm`.
    #[must_use]
    pub fn with_clip_norm(self, clip_norm: Option<f64>) -> Self {
        match self {
            Self::AdamW(config) => Self::AdamW(AdamWConfig { clip_norm, ..config }),
            Self::Sgd(config) => Self::Sgd(SgdConfig { clip_norm, ..config }),
        }
    }
}

/// Any of the optimisers.
#[derive(Debug)]
#[non_exhaustive]
pub enum Optimizer {
    /// AdamW.
    AdamW(AdamW),
    /// Gradient descent with momentum.
    Sgd(Sgd),
}

impl Optimizer {
    /// An optimiser of `groups`.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if a constant is out of its range.
    pub fn new(groups: Vec<ParamGroup>, config: OptimizerConfig) -> Result<Self> {
        Ok(match config {
            OptimizerConfig::AdamW(config) => Self::AdamW(AdamW::new(groups, config)?),
            OptimizerConfig::Sgd(config) => Self::Sgd(Sgd::new(groups, config)?),
        })
    }

    /// Updates every parameter that has a gradient, at `lr_factor` times its group's rate; returns the global norm of the
    /// gradients before clipping.
    ///
    /// # Errors
    /// [`Training`](crate::ErrorKind::Training) if the norm is not finite; then nothing has been changed.
    pub fn step(&mut self, grads: &GradStore, lr_factor: f64) -> Result<f64> {
        match self {
            Self::AdamW(optimizer) => optimizer.step(grads, lr_factor),
            Self::Sgd(optimizer) => optimizer.step(grads, lr_factor),
        }
    }

    /// What must be kept to go on, as named tensors.
    ///
    /// # Errors
    /// When candle cannot allocate the copies.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        match self {
            Self::AdamW(optimizer) => {
                for Moments { name, steps, first, second } in optimizer.moments()? {
                    state.push((format!("steps/{name}"), Tensor::new(&[steps as i64], &Device::Cpu)?));
                    state.push((format!("first/{name}"), first));
                    state.push((format!("second/{name}"), second));
                }
            }
            Self::Sgd(optimizer) => {
                state.extend(optimizer.velocities().map(|(name, v)| (format!("velocity/{name}"), v.clone())));
            }
        }
        Ok(state)
    }

    /// Puts back what [`Optimizer::state`] gave after `steps` steps.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if the state is another optimiser's, or of other parameters.
    pub fn restore(&mut self, steps: usize, state: &HashMap<String, Tensor>) -> Result<()> {
        match self {
            Self::AdamW(optimizer) => {
                let find = |kind: &str, name: &str| {
                    let missing = || Error::argument("state", format!("has no {kind} moment of '{name}'"));
                    state.get(&format!("{kind}/{name}")).cloned().ok_or_else(missing)
                };
                let moments = |name: &str| {
                    let count = find("steps", name)?.to_vec1::<i64>()?;
                    let steps = count.first().and_then(|&steps| u64::try_from(steps).ok()).unwrap_or(0);
                    Ok(Moments {
                        name: name.to_string(),
                        steps,
                        first: find("first", name)?,
                        second: find("second", name)?,
                    })
                };
                optimizer.restore(steps, moments)
            }
            Self::Sgd(optimizer) => optimizer.restore(steps, |name| state.get(&format!("velocity/{name}")).cloned()),
        }
    }
}
