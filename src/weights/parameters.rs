//! [`Parameters`], what a built model owns: names and weights, which of them are trained, and the adapters on them.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor, Var};
use rayon::iter::Either;
use rayon::prelude::*;

use super::Activations;
use super::param_source::{Adapter, Init, ParamSource};
use crate::ops::{PackedWeight, Packing, Weight};
use crate::{ErrorKind, Result};

/// The named parameters of a built model, in the order of their names. A trainable one is a candle [`Var`]; buffers
/// ([`Params::buffer`](super::Params::buffer)) are among them and never trainable.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    tensors: BTreeMap<String, Weight>,
    buffers: BTreeSet<String>,
    adapters: BTreeMap<String, Adapter>,
    activations: Activations,
}

impl Parameters {
    /// What layers asked for, and which of it are buffers.
    pub(super) fn built(tensors: BTreeMap<String, Weight>, buffers: BTreeSet<String>) -> Self {
        Self { tensors, buffers, ..Self::default() }
    }

    /// Names and tensors, sorted by name. A tensor shares its storage with the model's, unless it is packed there: such a one is
    /// unpacked as it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor)> {
        // A packed weight has as many numbers as its shape says, which is all that making a tensor needs.
        self.tensors.iter().filter_map(|(name, weight)| Some((name.as_str(), weight.to_tensor().ok()?)))
    }

    /// Names and parameters as they are kept, sorted by name.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.tensors.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    fn plain(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.weights().filter_map(|(name, weight)| match weight {
            Weight::Plain(tensor) => Some((name, tensor)),
            Weight::Packed(_) => None,
        })
    }

    /// The trainable ones, as `Var`s that any candle optimiser can step.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, Var)> {
        // `from_tensor` of a tensor that is a variable is that variable and cannot fail.
        self.plain().filter(|(_, t)| t.is_variable()).filter_map(|(name, t)| Some((name, Var::from_tensor(t).ok()?)))
    }

    /// The same names with what `read` makes of name and shape, on all cores, the largest first; buffers are detached. All problems are
    /// reported together.
    pub(crate) fn read(
        &self,
        source_name: &str,
        read: impl Fn(&str, &[usize]) -> Result<Weight> + Sync,
    ) -> Result<Self> {
        let mut names: Vec<(&String, &[usize])> = self.tensors.iter().map(|(name, w)| (name, w.dims())).collect();
        names.sort_by_key(|(_, shape)| std::cmp::Reverse(shape.iter().product::<usize>()));
        let read = |&(name, shape): &(&String, &[usize])| match read(name, shape) {
            Ok(Weight::Plain(tensor)) if self.is_buffer(name) => Ok((name.clone(), Weight::Plain(tensor.detach()))),
            Ok(weight) => Ok((name.clone(), weight)),
            Err(error) => Err(format!("{name}: {error}")),
        };
        let (tensors, problems): (BTreeMap<_, _>, Vec<_>) =
            names.par_iter().with_max_len(1).partition_map(|name| match read(name) {
                Ok(read) => Either::Left(read),
                Err(problem) => Either::Right(problem),
            });
        if problems.is_empty() {
            return Ok(Self { tensors, ..self.clone() });
        }
        Err(ErrorKind::Tensors { source_name: source_name.to_string(), problems }.into())
    }

    /// How many numbers all parameters hold together.
    #[must_use]
    pub fn element_count(&self) -> usize {
        self.tensors.values().map(|weight| weight.dims().iter().product::<usize>()).sum()
    }

    /// Whether the tensor of that name is a buffer, which nothing trains.
    #[must_use]
    pub fn is_buffer(&self, name: &str) -> bool {
        self.buffers.contains(name)
    }

    /// The same parameters, where those `trainable` says yes to are `Var`s and the others (and all buffers) plain tensors.
    /// Storage is shared wherever it can be: a `Var` stays that `Var`, and freezing one copies nothing.
    ///
    /// # Errors
    /// When candle cannot allocate a `Var`.
    pub fn with_trainable(&self, trainable: impl Fn(&str) -> bool) -> Result<Self> {
        let pick = |(name, weight): (&String, &Weight)| -> Result<(String, Weight)> {
            let trained = !self.is_buffer(name) && trainable(name);
            let weight = match weight {
                Weight::Packed(packed) if trained && packed.packing() == Packing::Int8 => {
                    let message = format!(
                        "'{name}' is quantised, which cannot be trained; load floats (`dequantize`, not `quantize`), or train adapters (`with_lora`)"
                    );
                    return Err(crate::Error::argument("trainable", message));
                }
                weight if trained => Weight::Plain(Var::from_tensor(&weight.to_tensor()?)?.into_inner()),
                Weight::Plain(tensor) => Weight::Plain(tensor.detach()),
                packed => packed.clone(),
            };
            Ok((name.clone(), weight))
        };
        Ok(Self { tensors: self.tensors.iter().map(pick).collect::<Result<_>>()?, ..self.clone() })
    }

    /// The same parameters with what `map` makes of each tensor that is not packed.
    pub(crate) fn map_plain(&self, map: impl Fn(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let pick = |(name, weight): (&String, &Weight)| {
            let weight = match weight {
                Weight::Plain(tensor) => Weight::Plain(map(name, tensor)?),
                packed => packed.clone(),
            };
            Ok((name.clone(), weight))
        };
        Ok(Self { tensors: self.tensors.iter().map(pick).collect::<Result<_>>()?, ..self.clone() })
    }

    /// The same parameters as `dtype`, buffers included, with the graph that leads back to the variables: their gradients are of the
    /// variables' own type.
    pub(crate) fn cast(&self, dtype: DType) -> Result<Self> {
        let cast = |(name, weight): (&String, &Weight)| {
            Ok((name.clone(), Weight::Plain(weight.to_tensor()?.to_dtype(dtype)?)))
        };
        Ok(Self { tensors: self.tensors.iter().map(cast).collect::<Result<_>>()?, ..self.clone() })
    }

    /// The same parameters seen without gradients: every tensor shares its storage with this one's.
    #[must_use]
    pub fn detached(&self) -> Self {
        let detached = |weight: &Weight| match weight {
            Weight::Plain(tensor) => Weight::Plain(tensor.detach()),
            packed => packed.clone(),
        };
        let tensors = self.tensors.iter().map(|(name, weight)| (name.clone(), detached(weight))).collect();
        Self { tensors, ..self.clone() }
    }

    /// Puts `prefix.` in front of every name.
    #[must_use]
    pub fn prefixed(&self, prefix: &str) -> Self {
        self.renamed(|name| Some(format!("{prefix}.{name}")))
    }

    /// Those whose name starts with `prefix.`, without it.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        self.renamed(|name| Some(name.strip_prefix(prefix)?.strip_prefix('.')?.to_string()))
    }

    /// Those whose name starts with none of `prefixes` and a dot.
    #[must_use]
    pub fn without(&self, prefixes: &[&str]) -> Self {
        let below =
            |name: &str| prefixes.iter().any(|p| name.strip_prefix(p).is_some_and(|rest| rest.starts_with('.')));
        self.renamed(|name| (!below(name)).then(|| name.to_string()))
    }

    /// Those that get a name, under it.
    fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let tensors = self.tensors.iter().filter_map(|(name, tensor)| Some((rename(name)?, tensor.clone())));
        let buffers = self.buffers.iter().filter_map(|name| rename(name));
        let adapters = self.adapters.iter().filter_map(|(module, adapter)| Some((rename(module)?, *adapter)));
        let (tensors, buffers, adapters) = (tensors.collect(), buffers.collect(), adapters.collect());
        Self { tensors, buffers, adapters, activations: self.activations }
    }

    /// These and the other's parameters in one.
    pub fn extend(&mut self, other: Self) {
        self.tensors.extend(other.tensors);
        self.buffers.extend(other.buffers);
        self.adapters.extend(other.adapters);
    }

    /// The same parameters, of towers that keep this for a backward pass.
    #[must_use]
    pub fn with_activations(&self, activations: Activations) -> Self {
        Self { activations, ..self.clone() }
    }

    /// The linear layers that have low-rank adapters.
    pub fn adapters(&self) -> impl Iterator<Item = (&str, Adapter)> {
        self.adapters.iter().map(|(module, adapter)| (module.as_str(), *adapter))
    }

    /// Gives the linear layer `module` an adapter of `down` (r, input) and `up` (output, r).
    pub(crate) fn insert_adapter(&mut self, module: &str, adapter: Adapter, down: Tensor, up: Tensor) {
        self.adapters.insert(module.to_string(), adapter);
        self.tensors.insert(format!("{module}.lora_A.weight"), Weight::Plain(down));
        self.tensors.insert(format!("{module}.lora_B.weight"), Weight::Plain(up));
    }

    /// The same with every adapter's `scale · B·A` added to its layer's weight, and without adapters.
    pub(crate) fn merged(&self) -> Result<Self> {
        let mut merged = Self { adapters: BTreeMap::new(), ..self.clone() };
        for (module, adapter) in &self.adapters {
            let mut take = |name: &str| merged.tensors.remove(&format!("{module}.{name}.weight"));
            let (Some(down), Some(up)) = (take("lora_A"), take("lora_B")) else { continue };
            if let Some(weight) = merged.tensors.get_mut(&format!("{module}.weight")) {
                *weight = plus_product(weight, &up.to_tensor()?, &down.to_tensor()?, adapter.scale)?;
            }
        }
        Ok(merged)
    }

    /// The parameter of that name as it is kept.
    #[must_use]
    pub fn weight(&self, name: &str) -> Option<&Weight> {
        self.tensors.get(name)
    }

    /// The parameter of that name, unpacked.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name)?.to_tensor().ok()
    }
}

/// `weight + scale · up·down`, kept as the weight was: a variable, a tensor, packed.
fn plus_product(weight: &Weight, up: &Tensor, down: &Tensor, scale: f64) -> Result<Weight> {
    let single = |tensor: &Tensor| tensor.detach().to_dtype(DType::F32);
    let product = (single(up)?.matmul(&single(down)?)? * scale)?;
    let sum = (single(&weight.to_tensor()?)? + product)?.to_dtype(weight.dtype())?;
    Ok(match weight {
        Weight::Plain(tensor) if tensor.is_variable() => Weight::Plain(Var::from_tensor(&sum)?.into_inner()),
        Weight::Plain(_) => Weight::Plain(sum),
        Weight::Packed(packed) => {
            PackedWeight::pack(&sum, packed.packing())?.map_or(Weight::Plain(sum), Weight::Packed)
        }
    })
}

/// Already built parameters are a source too: a tower is rebuilt from them to freeze it or to run it without a graph.
impl ParamSource for Parameters {
    fn get(&self, name: &str, shape: &[usize], _init: Init) -> std::result::Result<Tensor, String> {
        let weight = self.tensors.get(name).ok_or_else(|| format!("{name}: missing"))?;
        if weight.dims() != shape {
            return Err(format!("{name}: expected shape {shape:?}, found {:?}", weight.dims()));
        }
        weight.to_tensor().map_err(|error| format!("{name}: {error}"))
    }

    fn packed(&self, name: &str, shape: &[usize]) -> Option<PackedWeight> {
        match self.tensors.get(name) {
            Some(Weight::Packed(packed)) if packed.dims() == shape => Some(packed.clone()),
            _ => None,
        }
    }

    fn adapter(&self, module: &str) -> Option<Adapter> {
        self.adapters.get(module).copied()
    }

    fn activations(&self) -> Activations {
        self.activations
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::{Params, RandomSource};
    use super::*;

    fn parameters() -> Result<Parameters> {
        let params = Params::new(RandomSource::new(1, DType::F32, &Device::Cpu)).pp("norm");
        params.get("weight", &[2], Init::ONES)?;
        assert!(!params.buffer("running_mean", &[2], Init::ZEROS)?.is_variable());
        params.finish("test")
    }

    #[test]
    fn buffers_are_kept_and_counted_and_never_become_trainable() -> Result<()> {
        let parameters = parameters()?.with_trainable(|_| true)?;
        assert_eq!(parameters.element_count(), 4);
        assert_eq!(parameters.trainable().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["norm.weight"]);
        assert!(parameters.get("norm.running_mean").is_some());
        Ok(())
    }

    #[test]
    fn a_buffer_stays_one_under_any_name() -> Result<()> {
        let mut all = Parameters::default();
        all.extend(parameters()?.prefixed("image"));
        assert!(all.is_buffer("image.norm.running_mean"));
        assert!(all.under("image").without(&["text"]).detached().is_buffer("norm.running_mean"));
        assert!(all.without(&["image"]).iter().next().is_none());
        Ok(())
    }
}
