//! [`Params`], the loading context every layer is built from, and [`Parameters`], what a built model owns.
//!
//! A tower is built by walking names: `params.pp("encoder").pp("layers.0").get("layer_norm1.weight", &[768], Init::Ones)`.
//! Where the tensor comes from (a checkpoint, a seed, a candle `VarBuilder`, an already built model) is the
//! [`ParamSource`]'s business. Everything that was asked for is recorded; a tensor that is never asked for does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};
use rayon::iter::Either;
use rayon::prelude::*;

use super::Activations;
use super::param_source::{Adapter, Init, ParamSource};
use crate::ops::{PackedWeight, Packing, Weight};
use crate::{ErrorKind, Result};

/// The loading context: a source, a place in the tree of names, and the record of what was asked for.
#[derive(Clone)]
pub struct Params {
    source: Arc<dyn ParamSource>,
    prefix: String,
    packing: Packing,
    record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    tensors: BTreeMap<String, Weight>,
    buffers: BTreeSet<String>,
    linears: BTreeSet<String>,
    matrices: BTreeSet<String>,
    problems: Vec<String>,
}

impl Params {
    /// A context at the root of `source`.
    pub fn new(source: impl ParamSource + 'static) -> Self {
        Self { source: Arc::new(source), prefix: String::new(), packing: Packing::None, record: Arc::default() }
    }

    /// The same context, where the weights of linear layers that nothing trains are packed as they are asked for, one after
    /// another: the unpacked ones are not kept.
    #[must_use]
    pub fn packing(self, packing: Packing) -> Self {
        Self { packing, ..self }
    }

    /// The context one level down: names asked for get `name.` in front.
    #[must_use]
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let prefix = self.full(&name.to_string());
        Self { prefix, ..self.clone() }
    }

    /// The parameter `name`, of shape `shape`; `init` says how it starts where nothing is read.
    ///
    /// A problem (missing, other shape) is noted and a stand-in returned: [`Params::finish`] reports all of them together.
    ///
    /// # Errors
    /// Only when candle cannot make the stand-in.
    pub fn get(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let full = self.full(name);
        match self.source.get(&full, shape, init) {
            Ok(tensor) => {
                self.lock().tensors.insert(full, Weight::Plain(tensor.clone()));
                Ok(tensor)
            }
            Err(problem) => {
                self.lock().problems.push(problem);
                Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
            }
        }
    }

    /// As [`Params::get`], for a matrix that rows are multiplied with, (N,K) or (N,…): packed where [`Params::packing`] or the
    /// source says so.
    ///
    /// # Errors
    /// As [`Params::get`].
    pub fn weight(&self, name: &str, shape: &[usize], init: Init) -> Result<Weight> {
        let full = self.full(name);
        self.lock().matrices.insert(full.clone());
        let packed = match self.source.packed(&full, shape) {
            Some(packed) => packed,
            None => {
                let tensor = self.get(name, shape, init)?;
                match PackedWeight::pack(&tensor, self.packing)? {
                    // What is not in the record is a stand-in.
                    Some(packed) if self.lock().tensors.contains_key(&full) => packed,
                    _ => return Ok(Weight::Plain(tensor)),
                }
            }
        };
        let weight = Weight::Packed(packed);
        self.lock().tensors.insert(full, weight.clone());
        Ok(weight)
    }

    /// As [`Params::get`], for what belongs to the model and is never trained, such as a batch norm's running statistics: the
    /// tensor is saved and counted like a parameter, and is no variable whatever the source makes of it.
    ///
    /// # Errors
    /// As [`Params::get`].
    pub fn buffer(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let tensor = self.get(name, shape, init)?.detach();
        let full = self.full(name);
        let mut record = self.lock();
        if let Some(recorded) = record.tensors.get_mut(&full) {
            *recorded = Weight::Plain(tensor.clone());
            record.buffers.insert(full);
        }
        Ok(tensor)
    }

    /// The adapter of the linear layer at this place in the tree, whose `weight` is (output, input): A (r, input), B (output, r)
    /// and the factor of their product.
    ///
    /// # Errors
    /// As [`Params::get`].
    pub(crate) fn low_rank(&self, input: usize, output: usize) -> Result<Option<(Tensor, Tensor, f64)>> {
        self.lock().linears.insert(self.prefix.clone());
        let Some(Adapter { rank, scale }) = self.source.adapter(&self.prefix) else { return Ok(None) };
        let down = self.get("lora_A.weight", &[rank, input], Init::ZEROS)?;
        Ok(Some((down, self.get("lora_B.weight", &[output, rank], Init::ZEROS)?, scale)))
    }

    /// What blocks keep for a backward pass.
    pub(crate) fn activations(&self) -> Activations {
        self.source.activations()
    }

    /// The places of all linear layers that were built.
    pub(crate) fn linears(&self) -> BTreeSet<String> {
        self.lock().linears.clone()
    }

    /// The names that [`Params::weight`] was asked for.
    pub(crate) fn matrices(&self) -> BTreeSet<String> {
        self.lock().matrices.clone()
    }

    /// Notes a problem that [`Params::finish`] is to report with the others, such as a tensor of the file that nobody asked for.
    pub fn note_problem(&self, problem: impl Into<String>) {
        self.lock().problems.push(problem.into());
    }

    /// Ends the building: all parameters by full name, or one error that lists every problem.
    ///
    /// # Errors
    /// [`ErrorKind::Tensors`] with one line for each missing or mis-shaped tensor.
    pub fn finish(&self, source_name: &str) -> Result<Parameters> {
        let mut record = self.lock();
        if record.problems.is_empty() {
            let (tensors, buffers) = (std::mem::take(&mut record.tensors), std::mem::take(&mut record.buffers));
            return Ok(Parameters { tensors, buffers, ..Parameters::default() });
        }
        let problems = std::mem::take(&mut record.problems);
        Err(ErrorKind::Tensors { source_name: source_name.to_string(), problems }.into())
    }

    /// Ends the building with what there is and what is wrong.
    pub(crate) fn finish_with_problems(&self) -> (Parameters, Vec<String>) {
        let record = std::mem::take(&mut *self.lock());
        let parameters = Parameters { tensors: record.tensors, buffers: record.buffers, ..Parameters::default() };
        (parameters, record.problems)
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The named parameters of a built model, in the order of their names. A trainable one is a candle [`Var`]; buffers
/// ([`Params::buffer`]) are among them and never trainable.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    tensors: BTreeMap<String, Weight>,
    buffers: BTreeSet<String>,
    adapters: BTreeMap<String, Adapter>,
    activations: Activations,
}

impl Parameters {
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
    use super::super::RandomSource;
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
