//! How a step's forward pass runs: what it keeps for the backward pass, and in which numbers the towers compute.
//!
//! With [`Precision::Bf16`] the towers compute on bf16 copies of the parameters, made anew in each step inside the graph:
//! `y = tower(bf16(θ), x)`. The gradient that arrives at θ is f32, as are θ itself and the optimiser's means, so that steps too small for bf16's
//! eight digits add up (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1). Projections, loss and scale stay f32.

use std::borrow::Cow;

use candle_core::DType;

use crate::model::ClipConfig;
use crate::weights::Activations;
use crate::{ClipModel, Result};

/// In which numbers the towers compute during training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precision {
    /// In the parameters' own type.
    #[default]
    Parameters,
    /// In bf16, on copies of the parameters. For GPUs: a CPU has no fast bf16 products.
    Bf16,
}

impl ClipModel {
    /// The same model, on the same variables, whose transformer towers keep this of a forward pass for the backward pass.
    ///
    /// # Errors
    /// Never for a built model.
    pub fn with_activations(self, activations: Activations) -> Result<Self> {
        self.map_parameters(|parameters| Ok(parameters.with_activations(activations)))
    }

    /// The model for one forward pass in `precision`, with a graph that leads to this model's variables. After a step of the optimiser
    /// it is stale.
    ///
    /// # Errors
    /// When candle cannot allocate the copies.
    pub fn for_step(&self, precision: Precision) -> Result<Cow<'_, Self>> {
        match precision {
            Precision::Parameters => Ok(Cow::Borrowed(self)),
            Precision::Bf16 => Ok(Cow::Owned(self.clone().map_towers(|parameters| parameters.cast(DType::BF16))?)),
        }
    }

    fn map_towers(
        self,
        map: impl Fn(&crate::weights::Parameters) -> Result<crate::weights::Parameters>,
    ) -> Result<Self> {
        let in_tower = |name: &str| name.starts_with(ClipConfig::TEXT) || name.starts_with(ClipConfig::IMAGE);
        self.map_parameters(|parameters| match parameters.weights().next() {
            Some((name, _)) if in_tower(name) => map(parameters),
            _ => Ok(parameters.clone()),
        })
    }
}
