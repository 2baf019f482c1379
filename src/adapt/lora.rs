//! Low-rank adaptation (LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1).
//!
//! A frozen linear layer W (N,K) gets two small trainable matrices, A (r,K) and B (N,r):
//!
//! ```text
//! y = x·Wᵀ + b + α/r · (x·Aᵀ)·Bᵀ
//! ```
//!
//! A starts uniform in ±1/√K, B at zero: the adapted model starts as the model it was. While B is zero A has a gradient of zero.
//! Merged into W the adapter costs nothing.

use crate::ops::Weight;
use crate::weights::{Adapter, Init, ParamSource, Parameters, Pattern, RandomSource};
use crate::{ClipModel, Error, Result};

/// Which linear layers get adapters, and of what rank.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// r; 4 to 32 are usual.
    pub rank: usize,
    /// α; what the adapter adds is multiplied by α/r.
    pub alpha: f64,
    /// Patterns over names of layers ([`ClipModel::linear_layers`]), such as `*.q_proj`.
    pub targets: Vec<Pattern>,
    /// What A is drawn from.
    pub seed: u64,
}

impl LoraConfig {
    /// Adapters of rank `rank` and α = 2r on the queries' and values' projections of both towers.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if the rank is 0.
    pub fn new(rank: usize) -> Result<Self> {
        if rank == 0 {
            return Err(Error::argument("rank", "is 0; at least 1 is needed"));
        }
        let targets = ["*.q_proj", "*.v_proj"].map(Pattern::new).into_iter().collect::<Result<_>>()?;
        Ok(Self { rank, alpha: 2.0 * rank as f64, targets, seed: 0 })
    }

    /// The same on other layers.
    #[must_use]
    pub fn with_targets(self, targets: Vec<Pattern>) -> Self {
        Self { targets, ..self }
    }
}

impl ClipModel {
    /// The same model with fresh low-rank adapters on the linear layers that `config` names; they alone are trainable.
    /// [`ClipModel::with_trainable`] adds others: names with `.lora_` in them are the adapters'.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if the rank is 0, a pattern matches no linear layer, or the model has adapters already.
    pub fn with_lora(self, config: &LoraConfig) -> Result<Self> {
        if config.rank == 0 || !config.alpha.is_finite() {
            let message =
                format!("are {} and {}; a rank of at least 1 and a finite alpha are needed", config.rank, config.alpha);
            return Err(Error::argument("rank, alpha", message));
        }
        let layers = self.linear_layers();
        if let Some(pattern) = config.targets.iter().find(|pattern| !layers.iter().any(|name| pattern.matches(name))) {
            let some = layers.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::argument("targets", format!("'{pattern}' matches no linear layer; they are {some}, …")));
        }
        let wanted = |name: &&String| config.targets.iter().any(|pattern| pattern.matches(name));
        let modules: Vec<&String> = layers.iter().filter(wanted).collect();
        let adapter = Adapter { rank: config.rank, scale: config.alpha / config.rank as f64 };
        self.with_adapters(&modules, |module, weight, parameters| {
            let &[output, input] = weight.dims() else {
                return Err(Error::argument(
                    "targets",
                    format!("'{module}' has a weight of shape {:?}", weight.dims()),
                ));
            };
            let source = RandomSource::new(config.seed, weight.dtype(), weight.device());
            let draw = |name: &str, shape: [usize; 2], init| {
                let drawn = source.get(&format!("{module}.{name}"), &shape, init);
                drawn.map_err(|message| Error::argument("rank", message))
            };
            let bound = 1.0 / (input.max(1) as f32).sqrt();
            let down = draw("lora_A.weight", [config.rank, input], Init::Uniform { bound })?;
            let up = draw("lora_B.weight", [output, config.rank], Init::ZEROS)?;
            parameters.insert_adapter(module, adapter, down, up);
            Ok(())
        })
    }

    /// Gives each of `modules` what `add` inserts; only adapters are trainable afterwards.
    pub(super) fn with_adapters(
        self,
        modules: &[&String],
        add: impl Fn(&str, &Weight, &mut Parameters) -> Result<()>,
    ) -> Result<Self> {
        if self.parameters().adapters().next().is_some() {
            return Err(Error::argument("model", "has adapters already; merge_lora first"));
        }
        self.map_parameters(|parameters| {
            let mut adapted = parameters.with_trainable(|_| false)?;
            for module in modules {
                if let Some(weight) = parameters.weight(&format!("{module}.weight")) {
                    add(module, weight, &mut adapted)?;
                }
            }
            Ok(adapted)
        })
    }

    /// The same model with every adapter added to its layer's weight: the same outputs to rounding, and as fast as before. The
    /// weights are frozen as they were.
    ///
    /// # Errors
    /// When candle fails.
    pub fn merge_lora(self) -> Result<Self> {
        self.map_parameters(Parameters::merged)
    }
}
