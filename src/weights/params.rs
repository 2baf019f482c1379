//! [`Params`], the loading context every layer is built from.
//!
//! A tower is built by walking names: `params.pp("encoder").pp("layers.0").get("layer_norm1.weight", &[768], Init::Ones)`.
//! Where the tensor comes from (a checkpoint, a seed, a candle `VarBuilder`, an already built model) is the
//! [`ParamSource`]'s business. Everything that was asked for is recorded; a tensor that is never asked for does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};

use super::param_source::{Adapter, Init, ParamSource};
use super::{Activations, Parameters};
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
            return Ok(Parameters::built(tensors, buffers));
        }
        let problems = std::mem::take(&mut record.problems);
        Err(ErrorKind::Tensors { source_name: source_name.to_string(), problems }.into())
    }

    /// Ends the building with what there is and what is wrong.
    pub(crate) fn finish_with_problems(&self) -> (Parameters, Vec<String>) {
        let record = std::mem::take(&mut *self.lock());
        (Parameters::built(record.tensors, record.buffers), record.problems)
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
